"""What a finding is, and what it may look at.

A finding is a record (JSON): ``name``, ``experiment``, ``conclusion`` in a few words, ``sentences`` in plain
English, the ``rule`` that was applied, ``cells`` and ``seeds`` (how many stand behind it), and ``rows``, the
figures themselves, with their ``columns`` in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

from rewardgrid.report.columns import decimals
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.published import Claim
from rewardgrid.report.tables import Configuration, Row, configurations
from rewardgrid.study import study

NOT_ENOUGH = "not enough cells"


class Finding(TypedDict):
    """What one finding says; see the module's docstring."""

    name: str
    experiment: str
    conclusion: str
    sentences: list[str]
    rule: str
    cells: int
    seeds: int
    columns: list[str]
    rows: list[dict[str, Any]]


class Spread(TypedDict):
    """Smallest, mean and largest of n values."""

    low: float
    mean: float
    high: float
    n: int


@dataclass(frozen=True)
class Scope:
    """What a finding may look at: all the evidence, from the point of view of one experiment."""

    evidence: Evidence
    experiment: str
    by: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """All cells of the experiment."""
        return list(self.evidence.tables[self.experiment])

    @property
    def finished(self) -> list[Row]:
        """Its finished cells."""
        return [row for row in self.rows if row["state"] == "done"]

    @cached_property
    def configurations(self) -> list[Configuration]:
        """Its configurations, in order; those without a finished cell too."""
        return configurations(self.rows, self.by)


def finding(
    scope: Scope,
    name: study.FindingName,
    conclusion: str,
    sentences: Sequence[str],
    cells: Sequence[Row],
    rows: Sequence[Mapping[str, Any]] = (),
    rule: str = "",
) -> Finding:
    """A finding's record; ``cells`` are those that stand behind it, ``rows`` its figures."""
    return Finding(
        name=name,
        experiment=scope.experiment,
        conclusion=conclusion,
        sentences=list(sentences),
        rule=rule,
        cells=len({row["cell"] for row in cells}),
        seeds=len({row["seed"] for row in cells}),
        columns=list(dict.fromkeys(key for row in rows for key in row)),
        rows=[dict(row) for row in rows],
    )


def not_enough(
    scope: Scope, name: study.FindingName, needed: str, cells: Sequence[Row] = (), rule: str = ""
) -> Finding:
    """A finding that lacks data, and what it lacks."""
    return finding(scope, name, NOT_ENOUGH, [f"Not enough cells: {needed}."], cells, rule=rule)


def count(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
