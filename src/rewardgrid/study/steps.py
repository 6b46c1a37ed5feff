"""When a run counts as having reached a threshold (of rewards, of hacking), or as no longer ok."""

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


def recorded_from(steps: Sequence[int], at: int) -> int:
    """The first of the recorded steps from ``at`` on, or else the last one: where to look for what began there."""
    return next((step for step in steps if step >= at), steps[-1])


def lasting_from(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    """The step from which something holds to the end; None if it does not.

    A single recorded step shows few rollouts, and may say so of a policy that is as it was. So it begins with the first
    of two in a row at which it holds, and two in a row at which it does not end it again.
    """
    begun = None
    for step, *pair in zip(steps, holds, holds[1:], strict=False):
        if all(pair) and begun is None:
            begun = step
        elif not any(pair):
            begun = None
    return begun
