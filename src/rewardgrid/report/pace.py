"""How long a step takes, told apart from what else a machine did beside it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from rewardgrid.report.columns import THRESHOLDS
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.tables import Row

SHAPE = ("method", "batch_size", "max_new_tokens", "base")
"""What a step's seconds depend on, beside the hardware; the rank of an adapter hardly tells."""


class Pace(NamedTuple):
    """Seconds per step of cells of one shape on one hardware: the median over cells of each cell's median step.

    Of each cell the steps up to its last threshold count (all, where it reaches none): later its texts may be shorter.
    """

    seconds: float
    low: float
    high: float
    cells: int


Paces = Mapping[tuple[Any, ...], Pace]
"""By hardware and shape."""


def paces(evidence: Evidence) -> Paces:
    """The paces that finished cells tell; of those without a history, nothing."""
    found = defaultdict(list)
    for row in evidence.finished():
        history = evidence.histories.get(row["cell"])
        if history is not None and len(history):
            reached = max((row[f"steps_to_{suffix}"] or 0 for suffix in THRESHOLDS), default=0) or len(history)
            found[place(row, row["hardware"])].append(float(history["seconds"].head(reached).median()))
    return {where: Pace(statistics.median(each), min(each), max(each), len(each)) for where, each in found.items()}


def pace_of(row: Row, hardware: str, known: Paces) -> Pace | None:
    """The pace of a cell's shape on some hardware, if any cell tells it."""
    return known.get(place(row, hardware))


def at_pace(row: Row, hardware: str, known: Paces) -> Row | None:
    """The cell with the seconds that its steps take on some hardware at the pace of its shape there.

    Where no cell tells that pace: as it was measured, if that was on this hardware; else None.
    """
    pace = pace_of(row, hardware, known)
    if pace is None:
        return row if row["hardware"] == hardware else None
    steps = {suffix: row[f"steps_to_{suffix}"] for suffix in THRESHOLDS}
    times = {f"seconds_to_{suffix}": None if n is None else n * pace.seconds for suffix, n in steps.items()}
    return {**row, **times, "seconds_per_step": pace.seconds, "hardware": hardware}


def both_at_pace(row: Row, other: Row, known: Paces) -> tuple[Row, Row] | None:
    """Two cells with the seconds that they take on the first one's hardware, if that can be told of both."""
    here, there = (at_pace(each, row["hardware"], known) for each in (row, other))
    return None if here is None or there is None else (here, there)


def place(row: Row, hardware: str) -> tuple[Any, ...]:
    """Some hardware and a cell's shape, which together decide its pace."""
    return hardware, *(row[name] for name in SHAPE)
