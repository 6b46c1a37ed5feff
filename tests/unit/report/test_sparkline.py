"""Curves in a line of text."""

from __future__ import annotations

import math

from rewardgrid.report.sparkline import sparkline


def test_the_lowest_value_is_the_lowest_block_and_the_highest_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 1, 2]) == "█▁▅"


def test_each_block_is_the_mean_of_its_share_of_the_values() -> None:
    assert sparkline([0, 2, 4, 6, 8, 6, 1, 1], width=4) == sparkline([1, 5, 7, 1])
    assert len(sparkline(list(range(1000)), width=24)) == 24
    assert len(sparkline([1, 2, 3], width=24)) == 3


def test_two_curves_on_one_scale_can_be_compared() -> None:
    assert sparkline([0.0, 0.5], scale=(0, 1)) == "▁▅"
    assert sparkline([0.9, 1.0, 2.0, -1.0], scale=(0, 1)) == "███▁"


def test_what_is_not_finite_is_blank_and_never_scales_the_rest() -> None:
    assert sparkline([0, math.nan, 1, math.inf, 2]) == "▁ ▅ █"
    assert sparkline([math.nan]) == " "
    assert sparkline([0, math.nan, 4, 4], width=2) == "▁█"


def test_a_constant_curve_and_an_empty_one_are_drawn() -> None:
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([]) == ""
