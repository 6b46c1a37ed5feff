"""When a run of the workflow will be over: from what was told before it began, and from what its cells do now."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from rewardgrid.study.forecast import Rest, seconds_of

AT_ONCE_SECONDS = 600.0
"""How long it counts that so many cells were at work side by side: between two jobs there are fewer for a moment."""


class Progress(NamedTuple):
    """How far a training job is, from its heartbeat; what is not known is None."""

    step: float | None = None
    steps: float | None = None
    reward: float | None = None
    speed: float | None = None
    """Steps per second."""
    left: float | None = None
    """Seconds."""


def progress_of(directory: Path) -> Progress:
    """How far the training of the cell in this directory is."""
    from rewardgrid.study.files import number
    from rewardgrid.train.lease import read_lease

    holder = read_lease(directory) or {}
    return Progress(*(number(holder.get(key)) for key in ("step", "max_steps", "reward", "speed", "left")))


@dataclass
class Outlook:
    """What a run has shown of its speed so far."""

    rests: Mapping[str, Rest] = field(default_factory=dict)
    """The training that each cell of the study needed before this run, by name."""
    begun: set[str] = field(default_factory=set)
    """Cells whose training has begun in this run."""
    paces: dict[str, float] = field(default_factory=dict)
    """Their seconds per step, as measured."""
    measuring: list[float] = field(default_factory=list)
    """Seconds from begin to end of each job that measured a cell."""
    at_work: deque[tuple[float, int]] = field(default_factory=deque)
    """(when, how many cells were at work then)."""

    def left(self, training: Mapping[str, Progress], measured_now: int, to_train: int, to_measure: int) -> float | None:
        """Seconds until all is trained and measured, about; None before anything tells.

        Cells that wait take what was told beforehand, times how much longer than that those of this run take.

        Args:
            training: how far the cells are that train now, by name.
            measured_now: how many are being measured now.
            to_train: how many cells this run trains in all.
            to_measure: how many are still to be measured, those of now included.
        """
        self.paces |= {name: 1 / each.speed for name, each in training.items() if each.speed}
        at_once = self._at_once(sum(each.step is not None for each in training.values()) + measured_now)
        told = [name for name in self.paces if name in self.rests]
        slower = sum(self.paces[name] for name in told) / sum(self.rests[name].pace for name in told) if told else 1.0
        waiting = max(to_train - len(self.begun), 0)
        if not at_once or (not told and (training or waiting)):
            return None

        def expected(name: str) -> float:
            return slower * seconds_of([self.rests[name]]) if name in self.rests else 0.0

        running = [expected(name) if each.left is None else each.left for name, each in training.items()]
        # A run may be of some of the study's cells; of which, Snakemake does not tell.
        later = [expected(name) for name in self.rests if name not in self.begun]
        # The shortest: on a cluster, the time of a job is that in the queue too.
        measuring = to_measure * min(self.measuring, default=0.0)
        return together(running, waiting * fmean(later or [0.0]) + measuring, at_once)

    def _at_once(self, number: int) -> int:
        now = time.monotonic()
        self.at_work.append((now, number))
        while now - self.at_work[0][0] > AT_ONCE_SECONDS:
            self.at_work.popleft()
        return max(each for _, each in self.at_work)


def together(running: Sequence[float], waiting: float, at_once: int) -> float:
    """Seconds until all is done.

    Args:
        running: seconds that each of the cells that run now has left.
        waiting: seconds of all that follows, one after another.
        at_once: how many run side by side.
    """
    return max([*running, (sum(running) + waiting) / at_once])
