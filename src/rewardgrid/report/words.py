"""Numbers as people say them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict

from rewardgrid.report.columns import decimals
from rewardgrid.report.statistics import ALPHA, Difference, mean_of


class Spread(TypedDict):
    """Smallest, mean and largest of n values."""

    low: float
    mean: float
    high: float
    n: int


def numbered(noun: str, numbers: Iterable[int]) -> str:
    """``rank 8``, ``ranks 8 and 32``, ``ranks 1, 8 and 32``."""
    *first, last = map(str, sorted(numbers))
    return f"{noun}s {', '.join(first)} and {last}" if first else f"{noun} {last}"


def spread(values: Iterable[float | None]) -> Spread | None:
    """Range and mean of the values that there are; None without any."""
    present = [float(value) for value in values if value is not None and not math.isnan(value)]
    if not present:
        return None
    return Spread(low=min(present), mean=math.fsum(present) / len(present), high=max(present), n=len(present))


def in_words(found: Spread | None, digits: int = 3) -> str:
    """``0.49–0.55 (mean 0.52)``, or the value alone if all are the same."""
    if found is None:
        return "not measured"
    low, mean, high = (decimals(value, digits) for value in (found["low"], found["mean"], found["high"]))
    return low if low == high else f"{low}–{high} (mean {mean})"


def change_in_words(gap: Difference, digits: int = 3) -> str:
    """``-0.042 (95 % -0.113 to 0.028, P = 0.03)``."""
    if gap.low is None or gap.high is None or gap.p is None:
        return f"{_signed(gap.mean, digits)} (n = 1)"
    interval = f"{_signed(gap.low, digits)} to {_signed(gap.high, digits)}"
    return f"{_signed(gap.mean, digits)} (95 % {interval}, {p_in_words(gap.p)})"


def _signed(value: float, digits: int) -> str:
    # What rounds to zero has no sign.
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def p_in_words(p: float) -> str:
    """``P = 0.03``, ``P < 0.001``."""
    value = p_value(p)
    return f"P {value}" if value.startswith("<") else f"P = {value}"


def p_value(p: float) -> str:
    """``0.03``, ``< 0.001``; with as many digits as tell on which side of 0.05 it lies."""
    if p < 0.001:
        return "< 0.001"
    said = (f"{p:.{digits}g}" for digits in range(2, 8))
    return next((text for text in said if (float(text) < ALPHA) == (p < ALPHA)), f"{p}")


def times_in_words(ratios: Sequence[float]) -> str:
    """``2.9 times (95 % 1.9 to 4.4, n = 3)``: a geometric mean, its interval from the ratios' logarithms."""
    logs = mean_of([math.log(ratio) for ratio in ratios])
    assert logs.mean is not None
    if logs.low is None or logs.high is None:
        return f"{math.exp(logs.mean):.1f} times (n = 1)"
    low, high = math.exp(logs.low), math.exp(logs.high)
    return f"{math.exp(logs.mean):.1f} times (95 % {low:.1f} to {high:.1f}, n = {logs.n})"


def sentence_case(text: str) -> str:
    """Text with a capital at its start; what follows is left as it is."""
    return text[:1].upper() + text[1:]
