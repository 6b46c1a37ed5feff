"""Findings about larger batches: what they take to the same reward, in time and in completions."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rewardgrid.report.columns import SPEC_COLUMNS, THRESHOLDS, decimals
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import NOT_ENOUGH, Finding, Scope, finding
from rewardgrid.report.tables import Row
from rewardgrid.report.words import times_in_words
from rewardgrid.study.text import count

Both = tuple[float | None, float | None]
"""A figure of the larger batch and of the smaller one."""

_SHAPE = ("method", "batch_size", "max_new_tokens", "base")
"""What a step's seconds depend on, beside the hardware; the rank of an adapter hardly tells."""


def on_hardware(row: Row, hardware: str, evidence: Evidence) -> Row | None:
    """The cell with the seconds that it would take on some hardware: its own, if it ran there.

    Otherwise its steps take the median seconds per step of the finished cells of its shape that ran there; None if
    there are none.
    """
    if row["hardware"] == hardware:
        return row
    paces = [
        other["seconds_per_step"]
        for other in evidence.finished()
        if other["hardware"] == hardware
        and other["seconds_per_step"]
        and all(other[name] == row[name] for name in _SHAPE)
    ]
    if not paces:
        return None
    pace = statistics.median(paces)
    steps = {suffix: row[f"steps_to_{suffix}"] for suffix in THRESHOLDS}
    times = {f"seconds_to_{suffix}": None if n is None else round(n * pace) for suffix, n in steps.items()}
    return {**row, **times, "seconds_per_step": pace, "hardware": hardware}


@dataclass(frozen=True)
class BatchPair:
    """A finished cell and the otherwise equal one of the smallest batch.

    Attributes:
        there: the smaller on the larger's hardware, if that can be told.
    """

    larger: Row
    smaller: Row
    there: Row | None

    @property
    def cells(self) -> tuple[Row, Row]:
        """Both cells."""
        return self.larger, self.smaller

    @property
    def comparable(self) -> bool:
        """Whether their seconds are of the same hardware, or can be estimated for it."""
        return self.there is not None

    @property
    def estimated(self) -> bool:
        """Whether the smaller's seconds are those of its steps at the pace of the larger's hardware."""
        return self.there is not None and self.there is not self.smaller

    def steps(self, suffix: str) -> Both:
        """Steps to a threshold."""
        name = f"steps_to_{suffix}"
        return self.larger[name], self.smaller[name]

    def seconds(self, suffix: str) -> Both:
        """Seconds to it on the larger's hardware."""
        name = f"seconds_to_{suffix}"
        return self.larger[name], None if self.there is None else self.there[name]

    def sooner(self, suffix: str) -> str:
        """Whether the larger batch reaches a threshold sooner; never is later than any time."""
        later, earlier = self.seconds(suffix)
        if not self.comparable:
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


def batch_pairs(scope: Scope, scaled: bool = False) -> list[BatchPair]:
    """The cells of larger batches with their smaller ones, which may stand in any experiment.

    Equal means the same learning rate or, ``scaled``, the same learning rate for each completion of the batch.
    """
    others = [name for name in SPEC_COLUMNS if name not in ("batch_size", "lr")]
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
            there = on_hardware(smallest, row["hardware"], scope.evidence)
            pairs.append(BatchPair(row, smallest, there))
    return pairs


def slower_than_baseline(scope: Scope) -> Finding:
    """Whether a larger batch reaches the thresholds sooner in wall clock than the smallest one."""
    return _larger_batch(scope, batch_pairs(scope), "is otherwise equal")


def slower_when_scaled(scope: Scope) -> Finding:
    """The same, where the learning rate grows with the batch."""
    equal = "is otherwise equal and has the same learning rate for each completion"
    return _larger_batch(scope, batch_pairs(scope, scaled=True), equal)


def _larger_batch(scope: Scope, pairs: Sequence[BatchPair], equal: str) -> Finding:
    rule = (
        f"Each cell is set against the finished cell of the smallest batch that {equal}, in any experiment. Seconds "
        "compare only on the same hardware, completions on any: where the smaller batch ran on other hardware than the "
        "larger, its seconds are its steps by the median seconds per step of cells of its method and batch on the "
        "larger's hardware, if there are any. Never is later than any time. How many times as many is a geometric "
        "mean, over both thresholds of a pair and then over pairs."
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
            f"In {slower} of {count(len(decided), 'comparison')} the larger batch reaches the threshold no sooner "
            "in wall clock."
        )
    time = _by_size([(pair, pair.time(*THRESHOLDS)) for pair in pairs], "time")
    completions = completions_in_words(pairs)
    if time:
        sentences.append(f"Where both reach it, {time}.")
    if completions:
        sentences.append(f"To the same reward {completions}, whatever the hardware.")
    estimated = sum(pair.estimated for pair in pairs) * len(THRESHOLDS)
    if estimated:
        sentences.append(
            f"In {count(estimated, 'comparison')} the smaller batch ran on other hardware, and its seconds are its "
            "steps at the pace of the larger's."
        )
    left = len(rows) - len(decided)
    if left:
        sentences.append(
            f"Seconds of {count(left, 'comparison')} cannot be decided: no threshold reached, or other hardware."
        )
    sentences += _uneven(scope.evidence.finished(), cells)
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


UNEVEN = 1.5
"""Cells of one shape whose seconds per step differ by this factor were not timed on an idle machine."""


def _uneven(all_cells: Sequence[Row], timed: Sequence[Row]) -> Iterator[str]:
    """What to know of seconds, where cells of the same shape on the same hardware took very different ones a step."""
    shape = ("hardware", *_SHAPE)
    for key in sorted({tuple(row[name] for name in shape) for row in timed}, key=str):
        alike = [row for row in all_cells if tuple(row[name] for name in shape) == key]
        paces = [pace for row in alike if (pace := row["seconds_per_step"])]
        if paces and max(paces) >= UNEVEN * min(paces):
            yield (
                f"Steps of {count(len(paces), 'cell')} of batch {alike[0]['batch_size']} took "
                f"{decimals(min(paces), 2)} to {decimals(max(paces), 2)} s on the same hardware: it had other work "
                "beside some of them, or their texts became shorter. The number of steps depends on neither."
            )


def _timed(pair: BatchPair, suffix: str) -> dict[str, Any]:
    """One threshold of a pair as a row of figures."""
    steps, seconds = pair.steps(suffix), pair.seconds(suffix)
    return {
        **{name: pair.larger[name] for name in ("rank", "lr", "batch_size")},
        "smaller batch": pair.smaller["batch_size"],
        "threshold": str(THRESHOLDS[suffix]),
        "steps": steps[0],
        "steps of the smaller": steps[1],
        "seconds": seconds[0],
        "seconds of the smaller": seconds[1],
        "its seconds": (
            "at the larger's pace" if pair.estimated else "as measured" if pair.comparable else "of other hardware"
        ),
        "times the seconds": pair.time(suffix),
        "times the completions": pair.completions(suffix),
        "larger batch": pair.sooner(suffix),
    }
