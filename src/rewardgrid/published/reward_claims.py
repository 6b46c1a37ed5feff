"""Claims about sweeps: orders, effects, ranks, learning rates, batch sizes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

from pydantic import Field

from rewardgrid.published.judging import (
    NOT_RUN,
    Answer,
    Judgement,
    Ours,
    Range,
    by_p,
    column_of,
    figure,
    has,
    in_seeds,
    range_in_words,
    with_p,
    within,
)
from rewardgrid.published.statement import WORDS, Metric, Statement, either, subject
from rewardgrid.report.batch_findings import batch_pairs, completions_in_words
from rewardgrid.report.columns import PASSING, SPEC_COLUMNS, THRESHOLDS, decimals, setting, show
from rewardgrid.report.finding import Question
from rewardgrid.report.pace import both_at_pace
from rewardgrid.report.reward_findings import (
    Direction,
    Effect,
    effect,
    goes,
    goes_p,
    in_short,
    lr_ratios,
    smallest_configuration,
)
from rewardgrid.report.statistics import (
    ALPHA,
    below,
    equivalence,
    mean_of,
    more_often,
    rank_correlation,
    unpaired,
)
from rewardgrid.report.tables import Configuration, Row, configurations
from rewardgrid.report.words import change_in_words, in_words, numbered, spread, times_in_words
from rewardgrid.study.cell import EvalMode
from rewardgrid.study.steps import SMOOTHING_STEPS
from rewardgrid.study.text import count


def _figures(ours: Ours, cells: Sequence[Row], metric: str, mode: EvalMode | None = None) -> list[float]:
    values = (figure(ours.evidence, row, metric, mode, None) for row in cells)
    return [value for value in values if value is not None]


def _effect(ours: Ours, cells: Sequence[Row], by: str, metric: str, mode: EvalMode | None) -> Effect | None:
    return effect(cells, by, lambda row: figure(ours.evidence, row, metric, mode, None))


def _one_set(found: Effect) -> str:
    return f"{found.path}; one set of cells"


class Order(Statement):
    """A metric falls or rises as a setting rises."""

    kind: Literal["order"]
    metric: Metric
    by: str
    direction: Direction

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        found = _effect(ours, cells, self.by, self.metric, None)
        if found is None:
            return NOT_RUN
        p = goes_p(found, self.direction)
        if p is None:
            return Judgement("cannot be told", _one_set(found), found.cells)
        holds = goes(found, self.direction, p)
        answer: Answer = "cannot be told" if holds is None else "agrees" if holds else "differs"
        return Judgement(answer, f"{found.path}; {change_in_words(found.difference)}", found.cells, p)

    @property
    def question(self) -> Question:
        return Question(self.direction, column_of(self.metric), self.by)

    def words(self) -> str:
        return f"{subject(self.metric)} {self.direction} as {self.by.replace('_', ' ')} rises"


class Negligible(Statement):
    """A setting makes no difference to a metric, up to a limit."""

    kind: Literal["negligible"]
    metric: Metric
    by: str
    limit: float = Field(gt=0)
    mode: EvalMode | None = None

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        found = _effect(ours, cells, self.by, self.metric, self.mode)
        if found is None:
            return NOT_RUN
        p = equivalence(found.changes, self.limit)
        if p is None:
            return Judgement("cannot be told", _one_set(found), found.cells)
        sign = math.copysign(1, found.difference.mean)
        beyond = below([-sign * change for change in found.changes], -self.limit)
        return Judgement(by_p(p, beyond), f"{found.path}; {change_in_words(found.difference)}", found.cells, p)

    @property
    def question(self) -> Question | None:
        return Question("negligible", column_of(self.metric), self.by, self.limit) if self.mode is None else None

    def words(self) -> str:
        by = self.by.replace("_", " ")
        return f"{by} changes {subject(self.metric, self.mode)} by less than {self.limit:g}"


OTHER_HARDWARE = "seconds are of other hardware"
AT_ITS_PACE = ", at the usual pace of each"


class Contrast(Statement):
    """A metric at one value of a setting beside that at another, all else equal: by how much, or how many times."""

    kind: Literal["contrast"]
    by: str
    of: Any
    to: Any
    metrics: tuple[Metric, ...] = Field(min_length=1)
    measure: Literal["ratio", "difference"] = "ratio"
    range: Range

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        pairs = [
            (row, other)
            for row in cells
            if has(row, {self.by: self.of})
            for other in ours.evidence.finished()
            if self._partners(row, other)
        ]
        known = ours.known_paces if self._timed else {}
        timed = [both_at_pace(*pair, known) if self._timed else pair for pair in pairs]
        if pairs and not any(timed):
            return Judgement("cannot be told", OTHER_HARDWARE, [*chain(*pairs)])
        values: list[float] = []
        used: list[Row] = []
        paced = False
        for pair, found in zip(pairs, timed, strict=True):
            if found is not None and (value := self._value(ours, *found)) is not None:
                values.append(value)
                used += pair
                paced |= found[0] is not pair[0]
        if not values:
            return NOT_RUN
        if self.measure == "difference":
            answer, p = within(values, self.range)
            return Judgement(answer, with_p(in_seeds(values), p), used, p)
        low, high = (None if end is None else math.log(end) for end in self.range)
        answer, p = within([math.log(value) for value in values], (low, high))
        return Judgement(answer, with_p(times_in_words(values) + (AT_ITS_PACE if paced else ""), p), used, p)

    def _partners(self, row: Row, other: Row) -> bool:
        """Whether two cells differ in this setting alone, the other having the value that is compared with."""
        return has(other, {self.by: self.to}) and all(
            row[name] == other[name] for name in SPEC_COLUMNS if name != self.by
        )

    @property
    def _timed(self) -> bool:
        """Whether it is about wall clock, which compares only on the same hardware."""
        return any(metric.startswith("seconds") for metric in self.metrics)

    def _value(self, ours: Ours, row: Row, other: Row) -> float | None:
        pairs = [
            (mine, theirs)
            for metric in self.metrics
            if (mine := figure(ours.evidence, row, metric, None, None)) is not None
            and (theirs := figure(ours.evidence, other, metric, None, None)) is not None
        ]
        if not pairs:
            return None
        if self.measure == "difference":
            return math.fsum(mine - theirs for mine, theirs in pairs) / len(pairs)
        return math.exp(math.fsum(math.log(mine / theirs) for mine, theirs in pairs) / len(pairs))

    def words(self) -> str:
        what = " and ".join(WORDS.get(metric, metric) for metric in self.metrics)
        name = {"batch_size": "batch"}.get(self.by, self.by)
        of, to = either(self.by, self.of), either(self.by, self.to)
        nothing = 1 if self.measure == "ratio" else 0
        if self.range == (nothing, None):
            return f"{what}: more at {name} {of} than at {to}"
        size = f"{range_in_words(self.range)} times that" if nothing else f"{range_in_words(self.range)} more than"
        return f"{what}: at {name} {of} {size} at {to}"


class Beside(Statement):
    """A metric beside that of another experiment's cells: its mean minus a share of theirs lies in a range."""

    kind: Literal["beside"]
    metric: Metric
    mode: EvalMode | None = None
    steps: tuple[int, int] | None = None
    other: str
    other_where: dict[str, Any] = Field(default_factory=dict)
    other_mode: EvalMode | None = None
    share: float = 1.0
    range: Range

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        others = [row for row in ours.cells(self.other, self.other_where) if row["state"] == "done"]
        mine = [figure(ours.evidence, row, self.metric, self.mode, self.steps) for row in cells]
        theirs = [figure(ours.evidence, row, self.metric, self.other_mode, self.steps) for row in others]
        a = [value for value in mine if value is not None]
        b = [self.share * value for value in theirs if value is not None]
        if not a or not b:
            return NOT_RUN
        text = f"{in_words(spread(a))} beside {self._share()}{in_words(spread([value / self.share for value in b]))}"
        gap = unpaired(a, b)
        used = [*cells, *others]
        if gap.low is None or gap.high is None or gap.p is None:
            return Judgement("cannot be told", f"{text}; n = {gap.n}", used)
        low, high = self.range
        inside = (low is None or gap.low >= low) and (high is None or gap.high <= high)
        outside = (low is not None and gap.high < low) or (high is not None and gap.low > high)
        answer: Answer = "agrees" if inside else "differs" if outside else "cannot be told"
        return Judgement(answer, f"{text}; {change_in_words(gap)}", used, self._one_sided(gap.mean, gap.p))

    def _share(self) -> str:
        return {1.0: "", 0.5: "half "}.get(self.share, f"{self.share:g} times ")

    def _one_sided(self, mean: float, p: float) -> float | None:
        """P that the figure lies on the wrong side of the other's; None of a range with two ends."""
        if 0.0 not in self.range or None not in self.range:
            return None
        right = mean < 0 if self.range[0] is None else mean > 0
        return p / 2 if right else 1 - p / 2

    def words(self) -> str:
        low, high = self.range
        whose = ", ".join(setting(name, value) for name, value in self.other_where.items())
        other = f"{self._share()}that of {self.other}{f' at {whose}' if whose else ''}"
        what = subject(self.metric, self.mode, self.steps)
        if low is not None and high is not None:
            return f"{what} differs from {other} by less than {high:g}"
        return f"{what} is {'below' if low is None else 'above'} {other}"


# --- degeneracy ----------------------------------------------------------------------------------------


class Ends(Statement):
    """At the lowest value of a setting every cell is degenerate, at the highest none is."""

    kind: Literal["ends"]
    by: str

    def judge(self, ours: Ours) -> Judgement:
        ran = ours.cells(self.experiment, self.where)
        values = sorted({row[self.by] for row in ran})
        if len(values) < 2:
            return NOT_RUN
        lowest, highest = ([row for row in ran if row[self.by] == value] for value in (values[0], values[-1]))
        bad_low, bad_high = (sum(_gone(row) for row in cells) for cells in (lowest, highest))
        text = (
            f"degenerate: {bad_low} of {len(lowest)} at {show(self.by, values[0])}, {bad_high} of {len(highest)} at "
            f"{show(self.by, values[-1])}"
        )
        cells = [*lowest, *highest]
        if bad_low < len(lowest) or bad_high:
            # "Every" and "none" fall with a single cell.
            return Judgement("differs", text, cells, 1.0)
        p = more_often((bad_low, len(lowest)), (bad_high, len(highest)))
        return Judgement("agrees" if p < ALPHA else "cannot be told", with_p(text, p), cells, p)

    def words(self) -> str:
        return f"the lowest {self.by} is degenerate and the highest is not"


def _gone(row: Row) -> bool:
    return row["state"] == "diverged" or row["verdict"] == "degenerate"


class Grows(Statement):
    """Degeneracy grows with rank x learning rate."""

    kind: Literal["grows"]

    def judge(self, ours: Ours) -> Judgement:
        ran = [row for row in ours.cells(self.experiment, self.where) if row["rank"] is not None]
        # Seeds of one configuration share its rank and lr: they are no further evidence of what these do.
        together = configurations(ran) if ran else []
        sizes = [found.cells[0]["rank"] * found.cells[0]["lr"] for found in together]
        if len(set(sizes)) < 2:
            return NOT_RUN
        scores = [statistics.fmean(_figures(ours, found.cells, "degeneracy")) for found in together]
        found = rank_correlation(sizes, scores)
        if found is None:
            return Judgement("cannot be told", f"every verdict is the same: {ran[0]['verdict']}", ran)
        text = f"rank correlation {decimals(found.rho, 2)} over {count(len(together), 'configuration')}"
        return Judgement(by_p(found.p), with_p(text, found.p), ran, found.p)

    def words(self) -> str:
        return "degeneracy grows with rank x lr"


class Boundary(Statement):
    """Up to one rank x learning rate every cell is ok, from another one on none is."""

    kind: Literal["boundary"]
    ok_up_to: float
    none_from: float

    def judge(self, ours: Ours) -> Judgement:
        ran = [row for row in ours.cells(self.experiment, self.where) if row["rank"] is not None]
        fine = [row["rank"] * row["lr"] for row in ran if not _bad(row)]
        bad = [row["rank"] * row["lr"] for row in ran if _bad(row)]
        if not ran:
            return NOT_RUN
        if not fine or not bad:
            return Judgement(
                "differs", f"{'none' if not fine else 'every one'} of {count(len(ran), 'cell')} is ok", ran
            )
        text = f"the smallest that is not ok {min(bad):.2g}, the largest that is ok {max(fine):.2g}"
        low, high = sorted((min(bad), max(fine)))
        overlap = low <= self.none_from and high >= self.ok_up_to
        return Judgement("agrees" if overlap else "differs", text, ran)

    def words(self) -> str:
        return f"ok up to a rank x lr of {self.ok_up_to:g}, none from {self.none_from:g} on"


def _bad(row: Row) -> bool:
    return row["state"] == "diverged" or row["verdict"] != "ok"


# --- ranks and learning rates --------------------------------------------------------------------------


class Members(Statement):
    """The configurations that pass are just those of a published table."""

    kind: Literal["members"]
    table: Literal["lora_rank_summary.csv"]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        wanted = {(line["rank"], line["lr"]) for line in ours.tables[self.table]}
        tried = {(line["rank"], line["lr"]) for line in ours.tables["lora_rank.csv"]}
        ran = {_place(found): found for found in configurations(cells, ["rank", "lr"]) if _place(found) in tried}
        if not wanted <= set(ran):
            return NOT_RUN
        passing = {place for place, found in ran.items() if found.passes()}
        parts = [
            f"{what}: {', '.join(_named(place) for place in sorted(places))}"
            for what, places in (("these too", passing - wanted), ("but not", wanted - passing))
            if places
        ]
        text = "; ".join(parts) or f"just these {len(wanted)}"
        return Judgement("differs" if parts else "agrees", text, cells)

    def words(self) -> str:
        return f"the configurations that are ok with a reward of at least {PASSING} are those of {self.table}"


def _place(found: Configuration) -> tuple[int, float]:
    return found.cells[0]["rank"], found.cells[0]["lr"]


def _named(place: tuple[int, float]) -> str:
    return f"{setting('rank', place[0])} {setting('lr', place[1])}"


class SmallestRank(Statement):
    """The smallest rank that passes, and its learning rate."""

    kind: Literal["smallest_rank"]
    threshold: float
    rank: int
    lr: float

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        best = smallest_configuration(ours.scope(self.experiment), self.threshold)
        if best is None:
            return Judgement("differs", "no rank passes", cells)
        row = best.cells[0]
        if len(best.finished) < 2:
            return Judgement("cannot be told", f"{best.label} (n = 1)", cells)
        same = (row["rank"], row["lr"]) == (self.rank, self.lr)
        return Judgement("agrees" if same else "differs", in_short(best), cells)

    def words(self) -> str:
        smallest = f"{setting('rank', self.rank)}, {setting('lr', self.lr)}"
        return f"the smallest rank that reaches {self.threshold:g} with ok texts is {smallest}"


class Passes(Statement):
    """Some learning rate takes these cells to 0.85 with every seed ok."""

    kind: Literal["passes"]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        found = configurations(cells)
        best = max(found, key=lambda each: (each.passes(), each.reward.mean or 0.0))
        rewards = _figures(ours, best.finished, "reward")
        p = below([-reward for reward in rewards], -PASSING)
        verdicts = ", ".join(f"{number} {label}" for label, number in sorted(best.verdicts.items()))
        text = f"{setting('lr', best.cells[0]['lr'])}: {decimals(best.reward.mean)}, {verdicts}"
        if p is None:
            return Judgement("cannot be told", f"{text} (n = 1)", cells)
        if not best.passes():
            return Judgement("differs", text, cells, 1.0)
        return Judgement(by_p(p), with_p(text, p), cells, p)

    def words(self) -> str:
        return f"passes {PASSING} without degenerating"


class TooLow(Statement):
    """At the lowest learning rate no rank reaches 0.85, at a higher one some of the same ranks does."""

    kind: Literal["too_low"]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        rates = sorted({row["lr"] for row in cells})
        if len(rates) < 2:
            return NOT_RUN
        lowest = [row for row in cells if row["lr"] == rates[0]]
        tried = {row["rank"] for row in lowest}
        higher = configurations([row for row in cells if row["lr"] > rates[0] and row["rank"] in tried])
        if not higher:  # another rank at another rate would say nothing of either
            return NOT_RUN
        rewards = _figures(ours, lowest, "reward")
        reached = max(each.reward.mean or 0.0 for each in higher)
        ranks = numbered("rank", tried)
        text = (
            f"{setting('lr', rates[0])} ({ranks}) reaches {in_words(spread(rewards))}, higher ones up to "
            f"{decimals(reached)}"
        )
        if max(rewards) >= PASSING or reached < PASSING:
            return Judgement("differs", text, cells, 1.0)
        p = below(rewards, PASSING)
        return Judgement(by_p(p), with_p(text, p), cells, p)

    def words(self) -> str:
        return "the lowest lr is too low at every rank"


class LrRatio(Statement):
    """LoRA's best learning rate by that of full fine-tuning."""

    kind: Literal["lr_ratio"]
    range: tuple[float, float]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        ratios = lr_ratios(ours.scope(self.experiment))
        if not ratios:
            return Judgement("not run", "no rank passes beside a full fine-tuning that is ok")
        text = ", ".join(f"rank {found.rank}: {found.ratio:g} times" for found in ratios)
        used = [row for found in ratios for side in (found.lora, found.full) for row in side.finished]
        spans = [found.span for found in ratios]
        known = [span for span in spans if span is not None]
        if len(known) < len(spans):
            return Judgement("cannot be told", f"{text} (n = 1)", used)
        low, high = self.range
        if any(span[1] < low or span[0] > high for span in known):
            return Judgement("differs", text, used)
        inside = all(low <= span[0] and span[1] <= high for span in known)
        return Judgement("agrees" if inside else "cannot be told", text, used)

    def words(self) -> str:
        return f"LoRA's best learning rate is {self.range[0]:g}–{self.range[1]:g} times that of full fine-tuning"


# --- batch size and time -------------------------------------------------------------------------------


class NeverSooner(Statement):
    """No larger batch reaches a threshold sooner in wall clock than the smaller one that is otherwise equal."""

    kind: Literal["never_sooner"]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        every = batch_pairs(ours.scope(self.experiment), known=ours.known_paces)
        pairs = [pair for pair in every if pair.timed is not None]
        outcomes = [pair.sooner(suffix) for pair in pairs for suffix in THRESHOLDS]
        decided = [outcome for outcome in outcomes if outcome in ("sooner", "slower")]
        if not decided:
            if not every:
                return NOT_RUN
            told = ["no threshold reached" if pairs else OTHER_HARDWARE, completions_in_words(every)]
            return Judgement(
                "cannot be told", "; ".join(filter(None, told)), [row for pair in every for row in pair.cells]
            )
        used = [row for pair in pairs for row in pair.cells]
        sooner = decided.count("sooner")
        ratios = [ratio for pair in pairs if (ratio := pair.time(*THRESHOLDS)) is not None]
        comparisons = count(len(decided), "comparison")
        text = f"sooner in {sooner} of {comparisons}" if sooner else f"never sooner, in {comparisons}"
        text += f"; {times_in_words(ratios)} the time" if ratios else ""
        if any(pair.pace is not None for pair in pairs):
            text += AT_ITS_PACE
        if sooner:
            return Judgement("differs", text, used, 1.0)
        p = below([-math.log(ratio) for ratio in ratios], 0.0)
        return Judgement(by_p(p), with_p(text, p), used, p)

    def words(self) -> str:
        return "at the same lr a larger batch reaches no threshold sooner"


class Climb(Statement):
    """The reward of training never falls back on its way up."""

    kind: Literal["climb"]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        histories = ours.evidence.histories
        curves = [histories[row["cell"]]["reward"].tolist() for row in cells if row["cell"] in histories]
        number = min(map(len, curves), default=0) // SMOOTHING_STEPS
        if number < 2:
            return NOT_RUN
        blocks = [_blocks(curve, number) for curve in curves]
        moves = [[line[i + 1] - line[i] for line in blocks] for i in range(number - 1)]
        first, last = (mean_of([line[place] for line in blocks]).mean for place in (0, -1))
        fall = max(0.0, -min(mean_of(move).mean or 0.0 for move in moves))
        text = (
            f"from {decimals(first, 2)} to {decimals(last, 2)}, largest fall between means of {SMOOTHING_STEPS} steps "
            f"{decimals(fall)} (n = {len(curves)})"
        )
        rose = below([line[0] - line[-1] for line in blocks], 0.0)
        if rose is None:
            return Judgement("cannot be told", text, cells)
        # So many questions at once: each is asked at its share of alpha (Bonferroni).
        fell = any((below(move, 0.0) or 0.0) < ALPHA / len(moves) for move in moves)
        return Judgement("differs" if fell else by_p(rose), text, cells, rose)

    def words(self) -> str:
        return "the reward climbs without falling back"


def _blocks(curve: Sequence[float], number: int) -> list[float]:
    """Means of ten steps each."""
    steps = range(0, number * SMOOTHING_STEPS, SMOOTHING_STEPS)
    return [math.fsum(curve[first : first + SMOOTHING_STEPS]) / SMOOTHING_STEPS for first in steps]
