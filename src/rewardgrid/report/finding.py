"""What a finding is, and what it may look at.

A finding says its ``conclusion`` in a few words, then ``sentences`` in plain English, the ``rule`` that was applied,
``cells`` and ``seeds`` (how many stand behind it), and ``rows``, the figures themselves, with their ``columns`` in
order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

from rewardgrid.report.evidence import Evidence
from rewardgrid.report.tables import Configuration, Row, configurations

NOT_ENOUGH = "not enough cells"


class Finding(TypedDict):
    """What one finding says; see the module's docstring."""

    conclusion: str
    sentences: list[str]
    rule: str
    cells: int
    seeds: int
    columns: list[str]
    rows: list[dict[str, Any]]


class Question(NamedTuple):
    """What is asked of an experiment's cells: whether a column ``falls`` or ``rises`` with a setting, whether a change
    of it is ``negligible`` (less than a limit), whether routing ``works``."""

    kind: str
    column: str = ""
    by: str = ""
    limit: float = 0.0


class Window(NamedTuple):
    """A stretch of steps, both ends included, of a metric of training or (with a mode) of its evaluations."""

    metric: str
    first: int
    last: int
    mode: str | None = None


class Reference(NamedTuple):
    """A figure of another study beside a cell of ours, for pictures."""

    cell: Row
    kl: float | None
    reward: float
    verdict: str
    study: str


@dataclass(frozen=True)
class Scope:
    """What a finding or a picture may look at: all the evidence, from the point of view of one experiment.

    ``windows`` are the stretches of steps that somebody has said something about, ``references`` are another study's
    figures. ``adjusted`` are one-sided P of questions that were asked among others, adjusted for that (Holm), by
    question: a finding that answers one of them uses this P, so that both say the same.
    """

    evidence: Evidence
    experiment: str
    by: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()
    references: tuple[Reference, ...] = ()
    adjusted: Mapping[Question, float] = field(default_factory=dict)

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
    conclusion: str,
    sentences: Sequence[str],
    cells: Sequence[Row],
    rows: Sequence[Mapping[str, Any]] = (),
    rule: str = "",
) -> Finding:
    """A finding's record; ``cells`` are those that stand behind it, ``rows`` its figures."""
    return Finding(
        conclusion=conclusion,
        sentences=list(sentences),
        rule=rule,
        cells=len({row["cell"] for row in cells}),
        seeds=len({row["seed"] for row in cells}),
        columns=list(dict.fromkeys(key for row in rows for key in row)),
        rows=[dict(row) for row in rows],
    )


def not_enough(needed: str, cells: Sequence[Row] = (), rule: str = "") -> Finding:
    """A finding that lacks data, and what it lacks."""
    return finding(NOT_ENOUGH, [f"Not enough cells: {needed}."], cells, rule=rule)
