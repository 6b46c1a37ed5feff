"""Where every file lies under the results directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rewardgrid.study.cell import METRICS_VERSION, Cell
from rewardgrid.study.files import JSON_BYTES, object_in, read_bounded


@dataclass(frozen=True)
class Layout:
    """Paths under one results directory (``results``, ``results/quick``).

    The strings of the Snakemake rules are the same ones, with wildcards in place of names.
    """

    root: Path

    @property
    def study(self) -> Path:
        """The checked configuration of the study whose results these are."""
        return self.root / "study.json"

    def base(self, base_id: str) -> Path:
        """HF model directory, prompts and provenance of a base."""
        return self.root / "base" / base_id

    def cell(self, name: str) -> Path:
        """Everything about one cell."""
        return self.root / "cells" / name

    def spec(self, name: str) -> Path:
        """The cell's spec as JSON."""
        return self.cell(name) / "spec.json"

    def train(self, name: str) -> Path:
        """What training left: weights/, history, rollouts, mode_samples (parquet), status.json."""
        return self.cell(name) / "train"

    def checkpoints(self, name: str) -> Path:
        """Unfinished training, undeclared to Snakemake so that a retry finds it."""
        return self.cell(name) / "checkpoints"

    def live_history(self, name: str) -> Path:
        """The history of a cell that is not finished, as far as it has come."""
        return self.checkpoints(name) / "history.jsonl"

    def kept(self, name: str) -> Path:
        """The finished training again, undeclared to Snakemake, which cannot take it back therefore."""
        return self.cell(name) / "kept"

    def metrics(self, name: str) -> Path:
        """What evaluation measured. The file that stands for a finished cell."""
        return self.cell(name) / "evaluation" / "metrics.json"

    def samples(self, name: str) -> Path:
        """The completions that evaluation measured."""
        return self.cell(name) / "evaluation" / "samples.parquet"

    def routing(self, name: str) -> Path:
        """Evaluations by mode during training, a row per step and mode (none unless the cell is routing)."""
        return self.cell(name) / "evaluation" / "routing.parquet"

    def course(self, name: str) -> Path:
        """The verdict's signals while it trained, a row per recorded step."""
        return self.cell(name) / "evaluation" / "course.parquet"

    def base_metrics(self, base_id: str) -> Path:
        """The same measurements of the base itself."""
        return self.root / "base" / base_id / "evaluation" / "metrics.json"

    def base_samples(self, base_id: str) -> Path:
        """The base's own completions."""
        return self.root / "base" / base_id / "evaluation" / "samples.parquet"

    def teacher(self, teacher: str) -> Path:
        """Where the teacher of this identity lies, and what is known of it."""
        return self.root / "storyteller" / "teacher" / teacher / "teacher.json"

    def told(self, teacher: str, stories: int) -> Path:
        """Shards of so many stories each that this teacher has told."""
        return self.root / "storyteller" / "told" / f"{teacher}-{stories}"

    def table(self, experiment: str) -> Path:
        """One tidy row per cell of an experiment."""
        return self.root / "tables" / f"{experiment}.parquet"


def measured(metrics: Path) -> bool:
    """Whether a cell or base is measured, and as this rewardgrid measures. A torn file is not."""
    try:
        found = object_in(read_bounded(metrics, JSON_BYTES))
    except OSError:
        return False
    return found is not None and found.get("version") == METRICS_VERSION


def checkpointed(layout: Layout, name: str) -> int | None:
    """The step of a cell's newest checkpoint, if it has one."""
    steps = (re.fullmatch(r"step-([0-9]{1,9})", path.name) for path in layout.checkpoints(name).glob("step-*"))
    return max((int(step[1]) if step else 0 for step in steps), default=None)


def done(layout: Layout, cell: Cell) -> str:
    """State of a cell from its files: ``done``, ``trained``, ``started`` or ``waiting``."""
    name = cell.name
    if measured(layout.metrics(name)):
        return "done"
    if any((path / "status.json").exists() for path in (layout.train(name), layout.kept(name))):
        return "trained"
    return "started" if layout.checkpoints(name).exists() else "waiting"


def stopped_at(layout: Layout, cell: Cell) -> int | None:
    """The step with which a cell's stop_when has ended it; None if it has not, or not yet."""
    if cell.stop_when is None:
        return None
    try:
        found = object_in(read_bounded(layout.train(cell.name) / "status.json", JSON_BYTES))
    except OSError:
        return None
    step = found.get("stopped_at") if found else None
    return step if type(step) is int else None
