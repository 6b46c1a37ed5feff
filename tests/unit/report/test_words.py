"""How figures are said."""

from __future__ import annotations

from rewardgrid.report.words import p_value


def test_a_p_has_as_many_digits_as_tell_on_which_side_of_the_limit_it_lies() -> None:
    assert [p_value(p) for p in (0.0004, 0.0123, 0.04, 0.05, 0.06)] == ["< 0.001", "0.012", "0.04", "0.05", "0.06"]
    assert [p_value(p) for p in (0.0497, 0.04996)] == ["0.0497", "0.04996"]
