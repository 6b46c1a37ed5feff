"""What can become of something published, and the rules by which figures of ours decide it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rewardgrid.published.data import Tables
from rewardgrid.report.columns import COLUMNS, decimals, known
from rewardgrid.report.curves import at_end
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Scope
from rewardgrid.report.pace import Paces, paces
from rewardgrid.report.routing_findings import over_steps
from rewardgrid.report.statistics import ALPHA, below, mean_of
from rewardgrid.report.tables import Row
from rewardgrid.report.words import in_words, p_in_words, spread
from rewardgrid.study.text import count
from rewardgrid.study.verdict import LABELS

Answer = Literal["agrees", "differs", "cannot be told", "not run", "no test"]
"""``not run``: no cell of ours is of these settings; ``no test``: nothing that we measure could contradict it."""

ANSWERS: tuple[Answer, ...] = ("agrees", "differs", "cannot be told", "not run", "no test")

Range = tuple[float | None, float | None]
"""Both ends included; None: open."""


class Judgement(NamedTuple):
    """An answer, ours in words, the cells behind it, and P that chance alone would look like it."""

    answer: Answer
    ours: str = ""
    cells: Sequence[Row] = ()
    p: float | None = None


NOT_RUN = Judgement("not run")


@dataclass(frozen=True)
class Ours:
    """What a claim is judged by.

    Attributes:
        evidence: our cells, by experiment of the published study.
        tables: the published tables, for claims about all of their rows.
        rows: what became of each row of a published table, by the table's name.
        judged: what became of the claims before this one.
        paces: what all of our cells tell of seconds per step, those too that no claim is about; None for those alone
            that are in ``evidence``.
    """

    evidence: Evidence
    tables: Tables = field(default_factory=dict)
    rows: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    judged: Mapping[str, Judgement] = field(default_factory=dict)
    paces: Paces | None = None

    @property
    def known_paces(self) -> Paces:
        """The paces that times are told by."""
        return paces(self.evidence) if self.paces is None else self.paces

    def scope(self, experiment: str) -> Scope:
        """One experiment's cells."""
        return Scope(self.evidence, experiment)

    def cells(self, experiment: str, where: Mapping[str, object]) -> list[Row]:
        """The cells of an experiment with these settings, diverged ones too."""
        return [
            row for row in self.evidence.tables.get(experiment, ()) if row["state"] != "missing" and has(row, where)
        ]


def has(row: Row, where: Mapping[str, object]) -> bool:
    """Whether a cell has these settings; a list holds alternatives."""
    return all(row[name] in value if isinstance(value, list) else row[name] == value for name, value in where.items())


# --- figures of cells ----------------------------------------------------------------------------------

_FINAL = {"reward": "final_reward", "kl": "final_kl"}


def column_of(metric: str) -> str:
    """The column of the experiment's table that a metric at the end of training is."""
    return _FINAL.get(metric, metric)


def figure(evidence: Evidence, row: Row, metric: str, mode: str | None, steps: tuple[int, int] | None) -> float | None:
    """A cell's figure: over a window of steps, at the end of its evaluations by mode, or from its table."""
    if steps is not None:
        return over_steps(evidence, row, metric, *steps, mode)
    if mode is not None:
        routing = evidence.routing.get(row["cell"])
        return None if routing is None else at_end(routing, mode, metric)
    value: float | None = _COMPUTED[metric](evidence, row) if metric in _COMPUTED else row[column_of(metric)]
    return value if known(value) else None


def _questions(evidence: Evidence, row: Row) -> float | None:
    """Share of its sentences that end with a question mark."""
    samples = evidence.samples.get(row["cell"])
    if samples is None:
        return None
    text = "".join(samples["completion"])
    ends = sum(text.count(mark) for mark in ".?!")
    return text.count("?") / ends if ends else None


def _routed(evidence: Evidence, row: Row) -> float | None:
    """Share of all completions of its training that were routed."""
    history = evidence.histories.get(row["cell"])
    return None if history is None else float(history["routed"].mean())


def _degeneracy(_: Evidence, row: Row) -> float | None:
    """0 for ok, 1 for borderline, 2 for degenerate or diverged."""
    if row["state"] == "diverged":
        return 2.0
    return None if row["verdict"] is None else float(LABELS.index(row["verdict"]))


_COMPUTED: dict[str, Callable[[Evidence, Row], float | None]] = {
    "questions": _questions,
    "routed": _routed,
    "degeneracy": _degeneracy,
}
"""Figures that no column of the table holds."""


# --- rules ---------------------------------------------------------------------------------------------


def within(values: Sequence[float], limits: Range) -> tuple[Answer, float | None]:
    """Whether the mean of these seeds lies in a range, and P where the range has one end.

    In a range with two ends: it agrees if the mean lies in it, differs if the mean's 95 % interval misses it, and
    otherwise, as with one seed, it cannot be told. Above or below one end it must be surely so (one-sided t test).
    """
    low, high = limits
    mean = mean_of(values)
    if mean.interval is None:
        return "cannot be told", None
    if low is not None and high is not None:
        if low <= round(mean.mean or 0.0, 3) <= high:
            return "agrees", None
        misses = mean.interval[1] < low or mean.interval[0] > high
        return ("differs" if misses else "cannot be told"), None
    sign, end = (1, high) if high is not None else (-1, low)
    if end is None:
        raise ValueError("a range without an end")
    p = below([sign * value for value in values], sign * end)
    return by_p(p), p


def by_p(p: float | None, against: float | None = None) -> Answer:
    """What a one-sided P of chance says; ``against`` is that of the opposite (1 - p, unless the test is another)."""
    if p is None:
        return "cannot be told"
    against = 1 - p if against is None else against
    return "agrees" if p < ALPHA else "differs" if against < ALPHA else "cannot be told"


def in_seeds(values: Sequence[float], digits: int = 3) -> str:
    """``0.49–0.55 (mean 0.52; 6 cells)``."""
    told = in_words(spread(values), digits)
    cells = "n = 1" if len(values) == 1 else count(len(values), "cell")
    return f"{told[:-1]}; {cells})" if told.endswith(")") else f"{told} ({cells})"


def digits_of(metric: str) -> int:
    """Decimals of a metric's mean over cells; one at least, for a mean of counts need not be one."""
    column = COLUMNS.get(column_of(metric))
    return 3 if column is None or column.digits is None else max(column.digits, 1)


def with_p(text: str, p: float | None) -> str:
    """A text and the P that goes with it."""
    return text if p is None else f"{text}; {p_in_words(p)}"


def range_in_words(limits: Range) -> str:
    """``0.45–0.60``, ``below 0.85``, ``above 1``."""
    low, high = (None if end is None else f"{end:g}" for end in limits)
    if low is None:
        return f"below {high}"
    if high is None:
        return f"above {low}"
    digits = max(len(end.partition(".")[2]) for end in (low, high))
    return "–".join(decimals(end, digits) for end in limits)
