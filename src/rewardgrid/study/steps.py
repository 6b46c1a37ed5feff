"""When a figure of training counts as having reached a threshold; the same for rewards and for hacking."""

from __future__ import annotations

import math
from collections.abc import Sequence

SMOOTHING_STEPS = 10
"""A threshold counts as reached by the mean of this many steps; curves are smoothed over as many."""


def first_reaching(values: Sequence[float], threshold: float) -> int | None:
    """First step (from 1) at which the mean of 10 values is at least the threshold; None if none does.

    Steps before the tenth have no such mean.
    """
    for step in range(SMOOTHING_STEPS, len(values) + 1):
        # fsum, because ten rewards of 0.85 must count as reaching 0.85.
        if math.fsum(values[step - SMOOTHING_STEPS : step]) / SMOOTHING_STEPS >= threshold - 1e-12:
            return step
    return None
