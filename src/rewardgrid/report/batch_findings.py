"""Findings about larger batches: what they take to the same reward, in time and in completions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rewardgrid.report.columns import SPEC_COLUMNS, THRESHOLDS, decimals
from rewardgrid.report.finding import NOT_ENOUGH, Finding, Scope, finding
from rewardgrid.report.pace import Pace, Paces, both_at_pace, pace_of, paces
from rewardgrid.report.tables import Row
from rewardgrid.report.words import times_in_words
from rewardgrid.study.text import count

Both = tuple[float | None, float | None]
"""A figure of the larger batch and of the smaller one."""


@dataclass(frozen=True)
class BatchPair:
    """A finished cell and the otherwise equal one of the smallest batch.

    Attributes:
        timed: both with the seconds that they take on the larger's hardware, if that can be told.
        pace: those of their steps there, if any cells tell.
    """

    larger: Row
    smaller: Row
    timed: tuple[Row, Row] | None
    pace: tuple[Pace, Pace] | None

    @property
    def cells(self) -> tuple[Row, Row]:
        """Both cells."""
        return self.larger, self.smaller

    def steps(self, suffix: str) -> Both:
        """Steps to a threshold."""
        name = f"steps_to_{suffix}"
        return self.larger[name], self.smaller[name]

    def seconds(self, suffix: str) -> Both:
        """Seconds to it on the larger's hardware."""
        name = f"seconds_to_{suffix}"
        return (None, None) if self.timed is None else (self.timed[0][name], self.timed[1][name])

    def sooner(self, suffix: str) -> str:
        """Whether the larger batch reaches a threshold sooner; never is later than any time."""
        later, earlier = self.seconds(suffix)
        if self.timed is None:
            return "other hardware"
        if later is None:
            return "neither reaches it" if earlier is None else "slower"
        return "sooner" if earlier is None or later < earlier else "slower"

    def time(self, *suffixes: str) -> float | None:
        """How many times the smaller's seconds the larger takes: a geometric mean over thresholds that both reach."""
        return _mean_ratio(self.seconds(suffix) for suffix in suffixes)

    def completions(self, *suffixes: str) -> float | None:
        """How many times as many completions it takes, which no hardware changes."""
        steps = _mean_ratio(self.steps(suffix) for suffix in suffixes)
        return None if steps is None else steps * self.larger["batch_size"] / self.smaller["batch_size"]


def _mean_ratio(figures: Iterable[Both]) -> float | None:
    logs = [math.log(mine / theirs) for mine, theirs in figures if mine and theirs]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def batch_pairs(scope: Scope, scaled: bool = False, known: Paces | None = None) -> list[BatchPair]:
    """The cells of larger batches with their smaller ones, which may stand in any experiment.

    Equal means the same learning rate or, ``scaled``, the same learning rate for each completion of the batch. Paces
    are those of the evidence, if none are ``known``.
    """
    others = [name for name in SPEC_COLUMNS if name not in ("batch_size", "lr")]
    known = paces(scope.evidence) if known is None else known
    pairs = []
    for row in scope.finished:
        alike = [
            other
            for other in scope.evidence.finished()
            if all(other[name] == row[name] for name in others)
            and math.isclose(other["lr"], row["lr"] * (other["batch_size"] / row["batch_size"] if scaled else 1))
        ]
        smallest = min(alike, key=lambda other: other["batch_size"], default=row)
        if smallest["batch_size"] < row["batch_size"]:
            pairs.append(_pair(row, smallest, known))
    return pairs


def _pair(larger: Row, smaller: Row, known: Paces) -> BatchPair:
    its, others = (pace_of(row, larger["hardware"], known) for row in (larger, smaller))
    pace = None if its is None or others is None else (its, others)
    return BatchPair(larger, smaller, both_at_pace(larger, smaller, known), pace)


def slower_than_baseline(scope: Scope) -> Finding:
    """Whether a larger batch reaches the thresholds sooner in wall clock than the smallest one."""
    return _larger_batch(scope, batch_pairs(scope), "is otherwise equal")


def slower_when_scaled(scope: Scope) -> Finding:
    """The same, where the learning rate grows with the batch."""
    equal = "is otherwise equal and has the same learning rate for each completion"
    return _larger_batch(scope, batch_pairs(scope, scaled=True), equal)


def _larger_batch(scope: Scope, pairs: Sequence[BatchPair], equal: str) -> Finding:
    rule = (
        f"Each cell is set against the finished cell of the smallest batch that {equal}, in any experiment. "
        "Completions compare on any hardware. Seconds are the steps of both by the pace of their batch on the larger's "
        "hardware: the median, over the finished cells there of the same method, batch and length of completions, of "
        "each one's median step up to its last threshold, so that other work on the machine hardly counts; where no "
        "cell tells it, seconds as measured, on the same hardware alone. Never is later than any time. How many times "
        "as many is a geometric mean, over both thresholds of a pair and then over pairs."
    )
    rows = [_timed(pair, suffix) for pair in pairs for suffix in THRESHOLDS]
    cells = [cell for pair in pairs for cell in pair.cells]
    if not rows:
        needed = "no finished cell has one of a smaller batch beside it that is otherwise equal"
        return finding(NOT_ENOUGH, [f"Not enough cells: {needed}."], cells, rows, rule)
    decided = [row for row in rows if row["larger batch"] in ("sooner", "slower")]
    slower = sum(row["larger batch"] == "slower" for row in decided)
    sentences = []
    if decided:
        sentences.append(
            f"In {slower} of {count(len(decided), 'comparison')} ({count(len(pairs), 'pair')} of cells) the larger "
            "batch reaches the threshold no sooner in wall clock."
        )
    time = _by_size([(pair, pair.time(*THRESHOLDS)) for pair in pairs], "time")
    completions = completions_in_words(pairs)
    if time:
        sentences.append(f"Where both reach it, {time}.")
    if completions:
        sentences.append(f"To the same reward {completions}, whatever the hardware.")
    sentences += _paces_in_words(pairs)
    left = len(rows) - len(decided)
    if left:
        sentences.append(
            f"Seconds of {count(left, 'comparison')} cannot be decided: no threshold reached, or other hardware."
        )
    if not decided:
        conclusion = f"{completions}; wall clock cannot be told (other hardware)" if completions else NOT_ENOUGH
    else:
        conclusion = "never sooner, in " if slower == len(decided) else f"sooner in {len(decided) - slower} of "
        conclusion += ": ".join(filter(None, [count(len(decided), "comparison"), time]))
    return finding(conclusion, sentences, cells, rows, rule)


def completions_in_words(pairs: Sequence[BatchPair]) -> str:
    """``batch 64 takes 1.4 times (n = 1) the completions of 32``, by batch size, of those that reach a threshold."""
    return _by_size([(pair, pair.completions(*THRESHOLDS)) for pair in pairs], "completions")


def _by_size(ratios: Sequence[tuple[BatchPair, float | None]], what: str) -> str:
    by_size = defaultdict(list)
    for pair, ratio in ratios:
        if ratio is not None:
            by_size[pair.larger["batch_size"], pair.smaller["batch_size"]].append(ratio)
    return " and ".join(
        f"batch {larger} takes {times_in_words(found)} the {what} of {smaller}"
        for (larger, smaller), found in sorted(by_size.items())
    )


def _paces_in_words(pairs: Sequence[BatchPair]) -> Iterator[str]:
    """By what pace the seconds were told, on each hardware."""
    told: dict[str, dict[int, Pace]] = {}
    for pair in pairs:
        if pair.pace is not None:
            for row, pace in zip(pair.cells, pair.pace, strict=True):
                told.setdefault(pair.larger["hardware"], {})[row["batch_size"]] = pace
    for hardware, by_batch in sorted(told.items()):
        said = ", ".join(
            f"{decimals(pace.seconds, 2)} s a step of batch {size} ({count(pace.cells, 'cell')}, "
            f"{decimals(pace.low, 2)} to {decimals(pace.high, 2)})"
            for size, pace in sorted(by_batch.items())
        )
        yield f"Seconds are steps by the pace of {hardware}: {said}."


def _timed(pair: BatchPair, suffix: str) -> dict[str, Any]:
    """One threshold of a pair as a row of figures."""
    steps, seconds = pair.steps(suffix), pair.seconds(suffix)
    return {
        **{name: pair.larger[name] for name in ("rank", "lr", "batch_size")},
        "smaller batch": pair.smaller["batch_size"],
        "threshold": str(THRESHOLDS[suffix]),
        "steps": steps[0],
        "steps of the smaller": steps[1],
        "seconds": None if seconds[0] is None else round(seconds[0]),
        "seconds of the smaller": None if seconds[1] is None else round(seconds[1]),
        "times the seconds": pair.time(suffix),
        "times the completions": pair.completions(suffix),
        "larger batch": pair.sooner(suffix),
    }
