"""A checkout whose study is trained on the cluster, and what is looked at while it is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rewardgrid.study.cell import Cell
from rewardgrid.train.lease import gone, read_lease
from tests.runs import tables_of, weights_of
from tests.workflow.project import MICRO, Project, make_project

STUDY: dict[str, Any] = deepcopy(MICRO) | {
    "recording": {"checkpoint_every": 25, "rollouts_every": 100},
    "experiments": {
        "sweep": {
            "title": "Cells to be disturbed",
            "fixed": {"max_steps": 400},
            "grids": [{"seed": [1, 2, 3, 4, 5]}],
            "columns": ["seed", "final_reward", "final_kl", "verdict"],
            "by": ["seed"],
        },
        "reference_engine": {
            "title": "The other engine",
            "fixed": {"max_steps": 200, "engine": "trl"},
            "grids": [{"seed": [1]}],
            "columns": ["seed", "final_reward", "final_kl", "verdict"],
            "by": ["seed"],
        },
        "diverging": {
            "title": "A cell that diverges",
            "fixed": {"kl_cap": 1e-4, "lr": 0.01, "max_steps": 100},
            "grids": [{"seed": [1]}],
            "columns": ["seed", "final_reward", "state"],
            "by": ["seed"],
        },
    },
}

PROFILE = (
    *("--profile", "profiles/slurm"),
    # Cells of seconds: look at once, and do not wait for a network file system.
    *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"),
)


@dataclass
class SlurmProject(Project):
    """A project, and Snakemake on the cluster in the background."""

    def __post_init__(self) -> None:
        self.output = self.directory / "driver.log"

    def cell(self, experiment: str, seed: int = 1) -> Cell:
        """The cell of an experiment with that seed."""
        return next(cell for cell in self.study.grid[experiment] if cell.seed == seed)

    def path(self, cell: Cell) -> Path:
        """The cell's directory."""
        return self.directory / self.study.layout.cell(cell.name)

    def log(self, cell: Cell) -> str:
        """What has happened to a cell, over all attempts."""
        path = self.path(cell) / "events.log"
        return path.read_text() if path.exists() else ""

    def start(self, cells: Iterable[Cell], *words: str) -> subprocess.Popen[str]:
        """Snakemake in the background, training these cells on the cluster; it is its own process group."""
        targets = [str(self.study.layout.spec(cell.name)) for cell in cells]
        environment = os.environ | {"PATH": os.defpath}
        with self.output.open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "snakemake", *PROFILE, *words, *targets],
                cwd=self.directory,
                env=environment,
                text=True,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A suite that a shell has put in the background hands on that Ctrl-C is ignored.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )

    def finish(self, driver: subprocess.Popen[str], seconds: float = 420) -> str:
        """Wait for a Snakemake that should succeed; returns what it has said."""
        try:
            status = driver.wait(seconds)
        except subprocess.TimeoutExpired:
            driver.kill()
            status = -1
        text = self.output.read_text()
        if status:
            logs = "\n".join(f"{path}\n{path.read_text()[-1500:]}" for path in self.directory.glob("logs/train/*.log"))
            pytest.fail(f"snakemake: status {status}\n{text[-6000:]}\n{logs}")
        return text

    def holder(self, cell: Cell) -> dict[str, Any]:
        """Who trains a cell now; empty if nobody does."""
        found = read_lease(self.path(cell))
        return found if found and not gone(found) else {}

    def training(self, cell: Cell, step: int = 30, besides: Iterable[int] = ()) -> dict[str, Any]:
        """Wait until a process (but none of ``besides``) has trained a cell up to a step; returns its heartbeat."""
        found: dict[str, Any] = {}

        def far_enough() -> bool:
            found.clear()
            found.update(self.holder(cell))
            return found.get("step", 0) >= step and found["pid"] not in set(besides)

        wait_until(far_enough, f"{cell.name} at step {step}", self.output)
        return found

    @contextmanager
    def paused(self, cells: Iterable[Cell], step: int = 5) -> Iterator[list[dict[str, Any]]]:
        """All of these cells in the middle of their training, each stopped as soon as it is there; then they go on.

        They begin in any order, so all are looked at in turn: whoever waited for one might find another at its end.
        """
        found: dict[str, dict[str, Any]] = {}
        cells = list(cells)

        def all_stopped() -> bool:
            for cell in cells:
                holder = self.holder(cell)
                if cell.name not in found and holder.get("step", 0) >= step:
                    kill(holder["pid"], signal.SIGSTOP)
                    found[cell.name] = holder
            return len(found) == len(cells)

        try:
            wait_until(all_stopped, f"{len(cells)} cells at step {step}", self.output)
            yield [found[cell.name] for cell in cells]
        finally:
            for holder in found.values():
                with contextlib.suppress(ProcessLookupError):
                    kill(holder["pid"], signal.SIGCONT)


def make_slurm_project(
    root: Path, directory: Path, config: dict[str, Any], base_of: SlurmProject | None = None
) -> SlurmProject:
    """A checkout with this configuration, and another's base if it has the same."""
    project = SlurmProject(make_project(root, directory).directory)
    project.configure(config)
    if base_of:
        shutil.copytree(base_of.directory / "results/base", directory / "results/base")
    return project


def wait_until(true: Callable[[], bool], what: str, log: Path | None = None, seconds: float = 240) -> None:
    """Poll, and give up with a message."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:.0f} s: {what}\n{log.read_text()[-4000:] if log else ''}")
        time.sleep(0.1)


def assert_same_training(project: SlurmProject, reference: SlurmProject, cells: Iterable[Cell]) -> None:
    """Weights and tables of these cells are, bit for bit, those of the undisturbed run, and nobody holds them."""
    for cell in cells:
        ours, theirs = project.path(cell), reference.path(cell)
        assert weights_of(ours) == weights_of(theirs), cell.name
        for name, frame in tables_of(theirs).items():
            assert tables_of(ours)[name].equals(frame), f"{cell.name}: {name}"
        assert sorted(path.name for path in ours.iterdir() if path.name not in ("evaluation", "events.log")) == [
            "kept",
            "spec.json",
            "train",
        ]


def assert_same_evaluation(project: SlurmProject, reference: SlurmProject) -> None:
    """Every file of every evaluation has the same bytes."""
    for name in reference.study.cells:
        for path in (reference.directory / reference.study.layout.cell(name) / "evaluation").iterdir():
            ours = project.directory / path.relative_to(reference.directory)
            assert digest(ours) == digest(path), path


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def marks(project: SlurmProject, cells: Iterable[Cell]) -> dict[str, tuple[int, int]]:
    """Which files hold the finished cells: unchanged as long as none of them is trained again."""
    statuses = {cell.name: project.path(cell) / "kept/status.json" for cell in cells}
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in statuses.items() if path.exists()}


def steps_again(project: SlurmProject, cell: Cell, stopped_at: int) -> int:
    """Steps that a cell has computed twice, after it was killed at a step that its checkpoint did not hold."""
    continued = [
        int(line.rpartition(" ")[2]) for line in project.log(cell).splitlines() if "continues after step" in line
    ]
    return max(0, stopped_at - (continued[-1] if continued else 0))


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """A signal to one process."""
    os.kill(pid, number)


def slurm(*words: str) -> str:
    """A command of SLURM's, and what it prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def queue(project: SlurmProject) -> list[str]:
    """The jobs of a project that are waiting or running."""
    lines = slurm("squeue", "--noheader", "--format=%i %Z").splitlines()
    return [job for job, directory in (line.split(maxsplit=1) for line in lines) if directory == str(project.directory)]


def status_of(project: SlurmProject, cell: Cell) -> dict[str, Any]:
    """A finished cell's status.json."""
    found: dict[str, Any] = json.loads((project.path(cell) / "train/status.json").read_text())
    return found
