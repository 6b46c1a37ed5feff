"""Curves in a line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
MISSING = " "


def sparkline(values: Sequence[float], width: int = 40, scale: tuple[float, float] | None = None) -> str:
    """Values as blocks of eight heights, at most ``width`` of them; each is the mean of as many values as it takes.

    Args:
        scale: (lowest, highest) value; of the blocks themselves where it is not given, so that they fill the line.
            What lies outside is cut, and what is not finite is left blank.
    """
    shown = min(width, len(values))
    parts = [values[i * len(values) // shown : (i + 1) * len(values) // shown] for i in range(shown)]
    means = [_mean(part) for part in parts]
    known = [mean for mean in means if math.isfinite(mean)]
    low, high = scale or (min(known, default=0.0), max(known, default=0.0))
    return "".join(_block(mean, low, high) for mean in means)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return MISSING
    place = (value - low) / (high - low) if high > low else 0.0
    return BLOCKS[min(max(int(place * len(BLOCKS)), 0), len(BLOCKS) - 1)]
