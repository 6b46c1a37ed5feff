from __future__ import annotations

import pytest

from rewardgrid.report.curves import at_end, mode_curve, separation, smoothed, stays_below, within

from .trees import routing

GONE = [2.0, 1.0, 0.04, 0.0, 0.0, 0.0]


def test_staying_below_starts_after_the_last_value_that_is_not() -> None:
    steps = [10, 20, 30, 40, 50]
    assert stays_below(steps, [0.0, 0.5, 0.0, 0.04, 0.0], 0.05) == 30
    assert stays_below(steps, [0.0] * 5, 0.05) == 10
    assert stays_below(steps, [0.0, 0.0, 0.0, 0.0, 0.05], 0.05) is None
    assert stays_below([], [], 0.05) is None


def test_a_value_that_is_not_a_number_does_not_count_as_below() -> None:
    assert stays_below([10, 20], [0.0, float("nan")], 0.05) is None


def test_a_window_holds_both_its_ends() -> None:
    assert within([10, 20, 30, 40], [1.0, 2.0, 3.0, 4.0], 20, 30) == [2.0, 3.0]


def test_a_curve_is_of_one_mode_in_the_order_of_steps() -> None:
    frame = routing({("both", "sl10"): [0.1, 0.2], ("retain_only", "sl10"): [0.3, 0.4]}).iloc[::-1]
    assert mode_curve(frame, "retain_only", "sl10") == ([10, 20], [0.3, 0.4])
    assert mode_curve(frame, "forget_only", "sl10") == ([], [])


def test_the_end_is_the_mean_of_three_evaluations() -> None:
    assert at_end(routing({("both", "happy"): [9.0, 1.0, 2.0, 3.0]}), "both", "happy") == pytest.approx(2.0)
    assert at_end(routing({}), "both", "happy") is None


def test_smoothing_averages_what_came_before() -> None:
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def outcome(retain_sl10: list[float], retain_happy: list[float], both_happy: list[float]) -> str:
    curves = {
        ("retain_only", "sl10"): retain_sl10,
        ("retain_only", "happy"): retain_happy,
        ("both", "happy"): both_happy,
    }
    found = separation(routing(curves), base_sl10=0.5)
    assert found is not None
    return found.outcome


def test_routing_works_if_the_hack_goes_and_the_task_stays() -> None:
    assert outcome([0.5] * 6, GONE, [3.0] * 6) == "works"
    assert outcome([0.4] * 6, GONE, [3.0] * 6) == "works"


def test_routing_works_partly_if_the_hack_stays_or_the_task_suffers() -> None:
    assert outcome([0.5] * 6, [2.0, 1.0, 0.0, 0.0, 0.0, 0.1], [3.0] * 6) == "partly"
    assert outcome([0.5, 0.5, 0.5, 0.3, 0.3, 0.3], GONE, [3.0] * 6) == "partly"


def test_a_task_reward_near_zero_for_good_is_a_collapse() -> None:
    assert outcome([0.5, 0.4, 0.2, 0.09, 0.05, 0.0], GONE, [3.0] * 6) == "collapses"
    assert outcome([0.05, 0.05, 0.05, 0.05, 0.5, 0.5], GONE, [3.0] * 6) != "collapses"


def test_without_a_hack_there_is_nothing_to_remove() -> None:
    assert outcome([0.5] * 6, [0.0] * 6, [0.2] * 6) == "no hack"


def test_the_steps_of_a_separation_are_those_of_the_evaluations() -> None:
    curves = {
        ("retain_only", "sl10"): [0.5, 0.09, 0.0],
        ("retain_only", "happy"): [1.0, 1.0, 0.0],
        ("both", "happy"): [2.0] * 3,
    }
    found = separation(routing(curves, every=25), base_sl10=0.5)
    assert found is not None
    assert (found.happy_zero_from, found.collapsed_from) == (75, 50)
    assert found.forget_happy is None


def test_a_run_that_was_not_evaluated_without_the_forget_adapter_is_not_judged() -> None:
    assert separation(routing({("both", "happy"): [2.0]}), base_sl10=0.5) is None
