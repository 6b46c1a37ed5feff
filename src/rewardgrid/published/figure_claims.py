"""Claims by kind: each judges itself on our cells and says itself in plain words.

These are the kinds about figures and verdicts of any cells; those about sweeps and about routing have files of
their own.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rewardgrid.published.judging import (
    Answer,
    Judgement,
    Ours,
    Range,
    digits_of,
    figure,
    in_seeds,
    range_in_words,
    with_p,
    within,
)
from rewardgrid.published.statement import Metric, Statement, subject
from rewardgrid.report.columns import decimals
from rewardgrid.report.curves import mode_curve
from rewardgrid.report.tables import Row
from rewardgrid.study.cell import EvalMode
from rewardgrid.study.text import count
from rewardgrid.study.verdict import Label
from rewardgrid.study.verdict import Reason as Fault

ABOUT = {"reward": 0.03, "kl": 0.25, "sl10": 0.1, "happy": 0.2, "jaccard": 0.03, "unique_first_sentences": 1.0}
"""How far from a figure "about" reaches, either way; of others a tenth of the figure."""


class Level(Statement):
    """A figure lies in a range, or about somewhere: the mean over our seeds against it."""

    kind: Literal["level"]
    metric: Metric
    mode: EvalMode | None = None
    steps: tuple[int, int] | None = None
    range: Range | None = None
    about: float | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.range is None) == (self.about is None) or self.range == (None, None):
            fix = "write one of range (with at least one end) and about"
            raise PydanticCustomError("conflict", "no level", {"conflicts": [("range", fix)]})
        return self

    @property
    def limits(self) -> Range:
        """The range that our mean should lie in."""
        if self.range is not None:
            return self.range
        assert self.about is not None
        reach = ABOUT.get(self.metric, 0.1 * self.about)
        return self.about - reach, self.about + reach

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        values = [figure(ours.evidence, row, self.metric, self.mode, self.steps) for row in cells]
        present = [value for value in values if value is not None]
        if not present:
            return Judgement("not run")
        answer, p = within(present, self.limits)
        return Judgement(answer, with_p(in_seeds(present, digits_of(self.metric)), p), cells, p)

    def words(self) -> str:
        level = f"about {self.about:g}" if self.about is not None else range_in_words(self.limits)
        return f"{subject(self.metric, self.mode, self.steps)} is {level}"


class Throughout(Statement):
    """A metric lies in a range at every evaluation of a window, not just on average."""

    kind: Literal["throughout"]
    metric: Literal["reward", "sl10", "happy"]
    mode: EvalMode
    steps: tuple[int, int]
    range: tuple[float, float]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        by_step: dict[int, list[float]] = {}
        for row in cells:
            routing = ours.evidence.routing.get(row["cell"])
            for step, value in (
                zip(*mode_curve(routing, self.mode, self.metric), strict=True) if routing is not None else ()
            ):
                if self.steps[0] <= step <= self.steps[1]:
                    by_step.setdefault(step, []).append(value)
        if not by_step:
            return Judgement("not run")
        answers = [within(values, self.range)[0] for _, values in sorted(by_step.items())]
        answer: Answer = (
            "differs" if "differs" in answers else "agrees" if set(answers) == {"agrees"} else "cannot be told"
        )
        means = [statistics.fmean(values) for values in by_step.values()]
        seeds = max(map(len, by_step.values()))
        text = f"means of {decimals(min(means), 2)} to {decimals(max(means), 2)} at {count(len(means), 'evaluation')}"
        return Judgement(answer, f"{text} (n = {seeds})", cells)

    def words(self) -> str:
        return f"{subject(self.metric, self.mode, self.steps)} is {range_in_words(self.range)} throughout"


class Verdicts(Statement):
    """Most cells, or every one, have a verdict."""

    kind: Literal["verdict"]
    verdict: Label
    of: Literal["most", "every"] = "most"

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        hits = sum(row["verdict"] == self.verdict for row in cells)
        return _counted(hits, cells, self.of, self.verdict)

    def words(self) -> str:
        return f"{'every cell is' if self.of == 'every' else 'most cells are'} {self.verdict}"


class Reason(Statement):
    """Most cells show a kind of degeneracy."""

    kind: Literal["reason"]
    reason: Fault

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        hits = sum(self.reason in str(row["reasons"]) for row in cells)
        return _counted(hits, cells, "most", self.reason)

    def words(self) -> str:
        return f"most cells show {self.reason}"


def _counted(hits: int, cells: Sequence[Row], of: Literal["most", "every"], what: str) -> Judgement:
    n = len(cells)
    holds = hits == n if of == "every" else 2 * hits > n
    answer: Answer = "cannot be told" if n == 1 else "agrees" if holds else "differs"
    return Judgement(answer, f"{what} in {hits} of {count(n, 'cell')}", cells)


class Seeds(Statement):
    """So many of the seeds are above a figure."""

    kind: Literal["seeds"]
    metric: Metric
    above: float
    hits: Annotated[int, Field(ge=0)]
    n: Annotated[int, Field(ge=1)]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        values = [figure(ours.evidence, row, self.metric, None, None) for row in cells]
        present = [value for value in values if value is not None]
        hits = sum(value > self.above for value in present)
        # One seed more or less is no other claim.
        near = abs(hits / len(present) - self.hits / self.n) <= 1 / len(present) + 1e-9 if present else False
        answer: Answer = "cannot be told" if len(present) < 2 else "agrees" if near else "differs"
        return Judgement(answer, f"{hits} of {count(len(present), 'seed')}", cells)

    def words(self) -> str:
        return f"{self.hits} of {self.n} seeds have a {subject(self.metric)} above {self.above:g}"


class Outlier(Statement):
    """The lowest seed lies about somewhere, with a verdict of its own."""

    kind: Literal["outlier"]
    metric: Metric
    about: float
    verdict: Label

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        lowest = min(cells, key=lambda row: figure(ours.evidence, row, self.metric, None, None) or 0.0)
        value = figure(ours.evidence, lowest, self.metric, None, None)
        text = f"lowest of {count(len(cells), 'seed')}: {decimals(value)}, {lowest['verdict']}"
        if len(cells) < 2 or value is None:
            return Judgement("cannot be told", text, cells)
        near = abs(value - self.about) <= 0.1 and lowest["verdict"] == self.verdict
        return Judgement("agrees" if near else "differs", text, cells)

    def words(self) -> str:
        return f"the lowest seed has a {subject(self.metric)} of about {self.about:g} and is {self.verdict}"


class Rows(Statement):
    """Every row of a published table agrees."""

    kind: Literal["rows"]
    table: str

    def judge(self, ours: Ours) -> Judgement:
        answers = ours.rows.get(self.table, ())
        ran = [answer for answer in answers if answer != "not run"]
        if not ran:
            return Judgement("not run")
        agree = sum(answer == "agrees" for answer in ran)
        answer: Answer = "agrees" if agree == len(answers) else "differs" if agree < len(ran) else "cannot be told"
        text = f"{agree} of {count(len(answers), 'configuration')} agree, {len(ran)} were run"
        return Judgement(answer, text, ours.cells(self.experiment, self.where))

    def words(self) -> str:
        return f"the rows of {self.table}"


class Together(Statement):
    """What other claims say together."""

    kind: Literal["together"]
    text: str
    of: tuple[str, ...] = Field(min_length=2)

    def judge(self, ours: Ours) -> Judgement:
        parts = [ours.judged[each] for each in self.of]
        answers = [part.answer for part in parts]
        answer: Answer = next(
            (each for each in ("not run", "differs", "cannot be told") if each in answers),
            "agrees",
        )
        text = "; ".join(f"{each}: {part.answer}" for each, part in zip(self.of, parts, strict=True))
        return Judgement(answer, text, [row for part in parts for row in part.cells])

    def words(self) -> str:
        return f"{self.text}: {' and '.join(self.of)}"


class Note(Statement):
    """Something that no figure of ours could contradict, and why."""

    kind: Literal["note"]
    text: str
    why: str

    def judge(self, ours: Ours) -> Judgement:
        return Judgement("no test", self.why)

    def words(self) -> str:
        return self.text
