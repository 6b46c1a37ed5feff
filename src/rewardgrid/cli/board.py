"""What a run of the workflow is doing, for whoever waits: cells done, running, waiting, and what went wrong.

A board hears of jobs (from :mod:`snakemake_logger_plugin_rewardgrid`) and knows nothing of Snakemake; how far a running
cell is, it reads from the cell's files. Its texts come from anywhere, and are fit for a terminal.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from rewardgrid.cli.outlook import Outlook, Progress, progress_of
from rewardgrid.study.forecast import duration
from rewardgrid.study.text import count, printable

if TYPE_CHECKING:
    from rich.text import Text

NAMED = {
    "base": "bringing in base",
    "evaluate_base": "measuring base",
    "train": "training",
    "evaluate": "measuring",
    "tell": "telling stories",
}
"""Rules whose jobs take long enough to be named while they run."""
LOG_LINES = 10
"""Of a failed job's log, where no line says what was wrong."""
CURVE_WIDTH = 16
WIDE = 100
"""Columns of a terminal that has room for curves."""
ENDING = re.compile(r"returned non-zero exit status (\d+)|died with <Signals\.\w+: (\d+)>")
"""What Snakemake says of a command that failed, after the command."""


@dataclass(frozen=True)
class Job:
    """A job that has begun: one run of a rule."""

    rule: str
    subject: str = ""
    """The cell or base that it is about, or whatever else its wildcards say."""
    outputs: tuple[Path, ...] = ()
    logs: tuple[Path, ...] = ()

    @property
    def place(self) -> Path | None:
        """The directory of its cell or base, if it has one."""
        return next((out for path in self.outputs for out in path.parents if out.name == self.subject), None)


@dataclass
class Board:
    """Counts jobs, and puts into words what has happened and what goes on."""

    planned: Counter[str] = field(default_factory=Counter)
    """Jobs of this run, by rule."""
    running: dict[int, Job] = field(default_factory=dict)
    finished: Counter[str] = field(default_factory=Counter)
    failed: set[str] = field(default_factory=set)
    """Subjects, or rules, whose job has failed and has not begun again."""
    ready: Sequence[str] = ()
    """Paths that are what was asked for."""
    nothing_to_do: bool = False
    """Whether all that was asked for was there already."""
    wrong: bool = False
    """Whether anything has been told as an error."""
    endings: list[str] = field(default_factory=list)
    """What Snakemake has said of commands that failed."""
    outlook: Outlook = field(default_factory=Outlook)
    begun: dict[int, float] = field(default_factory=dict)
    """When each running job began."""

    def plan(self, jobs: Mapping[str, int]) -> None:
        """What is to be done: jobs by rule; ``all`` and sums are not among them."""
        self.planned = Counter({rule: number for rule, number in jobs.items() if rule not in ("all", "total")})

    def summary(self) -> list[str]:
        """What would be done, for a dry run."""
        jobs = ", ".join(f"{number} {printable(rule)}" for rule, number in self.planned.most_common())
        return [f"Would run {self.planned.total()} jobs: {jobs}.", "With --verbose, each of them with its reason."]

    def start(self, number: int, job: Job) -> None:
        """A job begins, or is handed to the cluster."""
        self.running[number] = job
        self.begun[number] = time.monotonic()
        if job.rule == "train":
            self.outlook.begun.add(job.subject)
        self.failed.discard(job.subject or job.rule)

    def finish(self, number: int) -> list[str]:
        """A job has succeeded; what to say of it."""
        job = self.running.pop(number, None)
        if job is None:
            return []
        self.finished[job.rule] += 1
        if job.rule == "evaluate":
            self.outlook.measuring.append(time.monotonic() - self.begun[number])
        if job.rule == "evaluate" or (job.rule == "train" and not self.planned["evaluate"]):
            return [f"{self._share(job.rule)}  {printable(job.subject)}{_result(job)}"]
        return [f"{printable(job.subject)} is ready"] if job.rule == "evaluate_base" else []

    def fail(self, number: int, job: Job, message: str = "") -> list[str]:
        """A job has failed: what its log says was wrong, and where the log is."""
        self.running.pop(number, None)
        self.failed.add(job.subject or job.rule)
        from rewardgrid.cli.status import last_error, tail

        found = next((error for path in job.logs if (error := last_error(path, job.subject))), "")
        ended = next((end for text in self.endings if (end := ending(text, job.logs))), "the job failed")
        lines = [f"error: {printable(job.rule)}{f' {printable(job.subject)}' if job.subject else ''}: "]
        lines[0] += printable(found or message.split("\n")[0] or ended, 2000)
        for path in job.logs:
            lines.append(f"  log: {printable(path)}" + ("" if path.exists() else " (not there)"))
            lines += [] if found else [f"    {printable(line)}" for line in tail(path)[-LOG_LINES:]]
        return lines

    def counts(self) -> str:
        """Cells done, running, waiting; jobs where no cell is to be trained or measured."""
        rule = "evaluate" if self.planned["evaluate"] else "train"
        cells = max(self.planned["train"], self.planned["evaluate"])
        if not cells:
            jobs = f"{self.finished.total()} of {self.planned.total()} jobs done"
            return jobs + (f", {len(self.running)} running" if self.running else "")
        busy = {job.subject for job in self.running.values() if job.rule in ("train", "evaluate")}
        done, failed = self.finished[rule], len(self.failed - busy)
        parts = (
            ("done", done),
            ("running", len(busy)),
            ("waiting", cells - done - len(busy) - failed),
            ("failed", failed),
        )
        return f"{count(cells, 'cell')}: " + ", ".join(f"{number} {what}" for what, number in parts if number > 0)

    def report(self) -> str:
        """What goes on now, on one line: counts, time left, and of the running cells the one that has most left."""
        jobs = list(self.running.values())
        training = _training(jobs)
        parts = [self.counts(), self._left(jobs, training)]
        if known := {name: each.left for name, each in training.items() if each.left is not None}:
            last = max(known, key=lambda name: known[name])
            parts.append(f"last of those running: {printable(last)}  {_figures(training[last])}")
        return "; ".join(filter(None, parts))

    def _left(self, jobs: Sequence[Job], training: Mapping[str, Progress]) -> str:
        """The time until all is done, in words; empty where nothing tells."""
        measured_now = sum(job.rule == "evaluate" for job in jobs)
        to_measure = self.planned["evaluate"] - self.finished["evaluate"]
        seconds = self.outlook.left(training, measured_now, self.planned["train"], to_measure)
        return f"about {duration(seconds)} left" if seconds else ""

    def display(self, width: int, height: int) -> Text:
        """What goes on now: a line for each job that takes long, as many as there is room for, and the counts."""
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis")
        jobs = list(self.running.values())
        training = _training(jobs)
        lines = [line for job in jobs if (line := _line(job, training.get(job.subject), width))]
        # Where both do not stand on one line, the counts are cut off and not the time.
        left, counts = self._left(jobs, training), self.counts()
        if left and len(counts) + len(left) + 2 > width:
            lines, counts = [*lines, counts], left
        elif left:
            counts += f"; {left}"
        room = max(height - 3, 1)
        for line in lines[:room]:
            text.append(line + "\n", style="dim")
        if len(lines) > room:
            text.append(f"and {len(lines) - room} more\n", style="dim")
        return text.append(counts, style="bold")

    def last(self) -> list[str]:
        """The paths of what is ready, if all went well."""
        done = self.nothing_to_do or (self.planned and self.finished.total() >= self.planned.total())
        return [f"Ready: {printable(path)}" for path in self.ready if done and not self.wrong and Path(path).exists()]

    def _share(self, rule: str) -> str:
        number = str(self.planned[rule])
        return f"{self.finished[rule]:>{len(number)}}/{number}"


def job_of(rule: str, wildcards: Mapping[str, str], outputs: Iterable[str] | None, logs: Iterable[str] | None) -> Job:
    """A job from what Snakemake says of it."""
    subject = wildcards.get("cell") or wildcards.get("base") or " ".join(map(str, wildcards.values()))
    return Job(rule, str(subject), tuple(map(Path, outputs or ())), tuple(map(Path, logs or ())))


def ending(text: str, logs: Iterable[Path]) -> str:
    """How a command ended, from what Snakemake says of it; empty if it is not that of the job with these logs."""
    found = list(ENDING.finditer(text))
    if not found or not any(str(log) in text for log in logs):
        return ""
    status, killed = found[-1].groups()
    number = int(killed) if killed else int(status) - 128
    try:
        return f"stopped by {Signals(number).name}"
    except ValueError:
        return f"ended with exit status {status}"


def _training(jobs: Iterable[Job]) -> dict[str, Progress]:
    """How far each cell is that trains, by name."""
    return {job.subject: progress_of(job.place) for job in jobs if job.rule == "train" and job.place}


def _line(job: Job, progress: Progress | None, width: int) -> str:
    """A running job; of a training its step, reward and time left."""
    if job.rule not in NAMED:
        return ""
    state = _progress(job.place, progress, width >= WIDE) if job.place and progress else ""
    room = max(width - len(state) - len(NAMED[job.rule]) - 3, 20)
    return f"{NAMED[job.rule]} {_short(printable(job.subject), room)}  {state}".rstrip()


def _short(name: str, room: int) -> str:
    """A name without its hash, cut in the middle: seeds stand at its end."""
    slug = name.rpartition("-")[0] or name
    kept = room // 3
    return slug if len(slug) <= room else f"{slug[: room - kept - 1]}…{slug[-kept:]}"


def _progress(directory: Path, progress: Progress, wide: bool) -> str:
    from rewardgrid.report.sparkline import sparkline
    from rewardgrid.study.history import rewards_so_far
    from rewardgrid.study.layout import Layout

    if progress.step is None or progress.steps is None:
        return "starts"
    rewards = rewards_so_far(Layout(directory.parent.parent), directory.name) if wide else []
    return "  ".join([*([sparkline(rewards, CURVE_WIDTH)] if rewards else []), _figures(progress)])


def _figures(progress: Progress) -> str:
    from rewardgrid.train.record import clock

    step, steps, reward, _, left = progress
    return "  ".join(
        [
            *([] if step is None or steps is None else [f"{step:.0f}/{steps:.0f}"]),
            *([] if reward is None else [f"reward {reward:.3f}"]),
            *([] if left is None else [f"{clock(left)} left"]),
        ]
    )


def _result(job: Job) -> str:
    """What a finished cell came to."""
    from rewardgrid.study.files import number, object_in, read_bounded

    if job.rule != "evaluate" or job.place is None:
        return ""
    found: dict[str, Any] = {}
    try:
        found = object_in(read_bounded(job.place / "evaluation" / "metrics.json", 2**20)) or {}
    except OSError:
        return ""
    full = found.get("full")
    reward = number(full.get("reward")) if isinstance(full, dict) else None
    label = found.get("verdict") or found.get("state") or ""
    if found.get("state") == "stopped":
        label = f"stopped early ({label})"
    paid = "" if reward is None else f"measured reward {reward:.3f}"
    return "".join(f"  {text}" for text in (paid, printable(label)) if text)
