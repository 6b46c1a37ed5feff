from __future__ import annotations

import math

import pytest
from tests.trees import routing

from rewardgrid.report.curves import at_end, mode_curve, smoothed, stays_below, within


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


def test_smoothing_has_gaps_where_something_is_not_finite() -> None:
    found = smoothed([1.0, math.inf, -math.inf, 3.0, 5.0], 2)
    assert [math.isnan(value) for value in found] == [False, True, True, True, False]
    assert found[-1] == 4.0
