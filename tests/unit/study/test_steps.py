"""When something has been reached, or has begun to last."""

from __future__ import annotations

from rewardgrid.study.steps import lasting_from

STEPS = (1, 10, 20, 30, 40, 50)


def lasting(*holds: int) -> int | None:
    return lasting_from(STEPS, [bool(each) for each in holds])


def test_one_step_alone_neither_begins_nor_ends_it() -> None:
    assert lasting(0, 1, 0, 1, 0, 1) is None
    assert lasting(0, 1, 1, 0, 1, 0) == 10
    assert lasting(0, 0, 0, 0, 0, 1) is None
    assert lasting(0, 0, 0, 0, 1, 1) == 40
    assert lasting(1, 1, 1, 1, 1, 1) == 1
    assert lasting_from([], []) is None


def test_what_ends_again_does_not_last() -> None:
    assert lasting(0, 1, 1, 1, 0, 0) is None
    assert lasting(1, 1, 0, 0, 1, 1) == 40
