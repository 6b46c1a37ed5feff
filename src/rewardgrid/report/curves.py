"""What a run did over its steps: pure functions of ``history`` and ``routing`` tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

COLLAPSED = 0.1
"""The task is lost when retain_only's sl10 is below this and stays there."""
LAST_EVALUATIONS = 3
"""sl10 and happy "at the end" are means over this many last evaluations."""


def stays_below(steps: Sequence[int], values: Sequence[float], limit: float) -> int | None:
    """First step from which every value is below ``limit``; None if the last one is not."""
    first = None
    for step, value in zip(reversed(steps), reversed(values), strict=True):
        if not value < limit:
            break
        first = int(step)
    return first


def mode_curve(routing: pd.DataFrame, mode: str, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric of one mode, by step; empty if the mode was not evaluated."""
    chosen = routing[routing["mode"] == mode].sort_values("step")
    return chosen["step"].astype(int).tolist(), chosen[metric].astype(float).tolist()


def within(steps: Sequence[int], values: Sequence[float], first: int, last: int) -> list[float]:
    """The values at steps ``first`` to ``last``, both included."""
    return [value for step, value in zip(steps, values, strict=True) if first <= step <= last]


def at_end(routing: pd.DataFrame, mode: str, metric: str) -> float | None:
    """Mean of a metric over the last evaluations of a mode."""
    values = mode_curve(routing, mode, metric)[1][-LAST_EVALUATIONS:]
    return math.fsum(values) / len(values) if values else None


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to ``width - 1`` before it; NaN where one of them is not finite."""
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return [math.fsum(window) / len(window) if all(map(math.isfinite, window)) else math.nan for window in windows]
