"""Faults of one kind each, injected once: a clock that jumps, a disk that is full in a stage, a file that is lost.

Each function injects one, sees to it that it is told, repeats the same command and compares with an undisturbed run.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rewardgrid.base.load import Base
from rewardgrid.cli.run import evaluate_cells, train_cells
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_text
from rewardgrid.study.study import Study
from rewardgrid.train import checkpoint, keeper
from rewardgrid.train.engines.native import train
from rewardgrid.train.lease import acquire, read_lease
from tests.kills import forked
from tests.runs import OFTEN, assert_same_run, run
from tests.workflow.project import MICRO, make_project

JUMPS = (-1e10, -86400.0, -3600.0, -61.0, 61.0, 3600.0, 86400.0, 1e9)
"""Seconds by which a clock is set wrong: before 1970, a day, an hour, more than a lease's patience."""


@contextmanager
def jumping_clock(seed: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time of day jumps to and fro, every fifth time that it is asked for."""
    draws, real, offset = random.Random(seed), time.time, 0.0

    def jumping() -> float:
        nonlocal offset
        if draws.random() < 0.2:
            offset = draws.choice(JUMPS)
        return real() + offset

    with patch.context() as clock:
        clock.setattr(time, "time", jumping)
        yield


def jump(seed: int, cell: Cell, base: Base, whole: Path, root: Path, patch: pytest.MonkeyPatch) -> None:
    """Two copies of a cell, each with a clock of its own that jumps: the second waits, and nothing is trained twice."""
    # Patient: on a busy machine a process may get no time for seconds.
    patch.setattr(keeper, "acquire", partial(acquire, wait=300.0, stale=60.0, every=0.02))
    again = partial(run, train, [cell], base, root, OFTEN)

    def first() -> None:
        with jumping_clock(seed, patch):
            again()

    child = forked(first)
    try:
        while read_lease(root / cell.name) is None and not (root / cell.name / "kept").exists():
            time.sleep(0.002)
        with jumping_clock(seed + 1, patch):
            (directory,) = again()
    finally:
        _, status = os.waitpid(child, 0)
    assert status == 0
    assert_same_run(whole, directory)
    log = (directory / "events.log").read_text()
    assert "takes over from" not in log
    assert "is trained already" in log


# --- a study of one cell, stage by stage ------------------------------------------------------------------------

STAGES: dict[str, tuple[str, ...]] = {
    "train": ("cells/*/spec.json", "cells/*/train", "cells/*/kept"),
    "evaluate": ("cells/*/evaluation", "base/*/evaluation"),
    "table": ("tables",),
    "figures": ("figures",),
    "findings": ("findings.json",),
    "results": ("RESULTS.md",),
}
"""What each stage makes, below the results directory; each stage needs only those before it."""

ONE_CELL: dict[str, Any] = MICRO | {
    "published": None,
    "recording": {"rollouts_every": 1, "checkpoint_every": 1},
    "experiments": {
        "one": {
            "title": "One cell",
            "grids": [{"seed": 1}],
            "columns": ["seed", "final_reward", "verdict"],
            "by": ["seed"],
            "findings": ["best_tradeoff"],
            "figures": ["learning_curves"],
        }
    },
}


@dataclass
class Chain:
    """The study and its finished results; the process is in the project's directory."""

    study: Study

    @property
    def results(self) -> Path:
        """Where all stages are done."""
        return Path(self.study.results)

    def at(self, results: Path) -> Study:
        """The same study with its results elsewhere."""
        return self.study.model_copy(update={"results": str(results)})

    def before(self, stage: str, results: Path) -> None:
        """Copy what there is before a stage: the base, the configuration, and the results of the stages before."""
        done = list(STAGES)[: list(STAGES).index(stage)]
        patterns = ["base/*/model", "base/*/*.*", *(each for name in done for each in STAGES[name])]
        for path in (found for pattern in patterns for found in self.results.glob(pattern)):
            target = results / path.relative_to(self.results)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, target)
        write_text(results / "study.json", self.at(results).model_dump_json())

    def made(self, stage: str, results: Path) -> dict[str, bytes]:
        """The files that a stage has made."""
        trees = [tree for pattern in STAGES[stage] for tree in results.glob(pattern)]
        files = [path for tree in trees for path in [tree, *tree.rglob("*")] if path.is_file()]
        return {str(path.relative_to(results)): path.read_bytes() for path in files}

    def run(self, stage: str, results: Path) -> None:
        """Run a stage.

        Raises:
            UserError: with what its program says.
        """
        study = self.at(results)
        cells = list(study.cells.values())
        if stage == "train":
            train_cells(study, cells, "cpu")
        elif stage == "evaluate":
            evaluate_cells(study, cells)
        else:
            words = {
                "table": ["--experiment", "one", "--out", str(results / "tables/one.parquet")],
                "figures": ["--experiment", "one", "--out", str(results / "figures/one")],
                "findings": ["--tables", str(results / "tables"), "--out", str(results / "findings.json")],
                "results": ["--findings", str(results / "findings.json"), "--out", str(results / "RESULTS.md")],
            }[stage]
            with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
                status = import_module(stage).main(["--study", str(results / "study.json"), *words])
            if status:
                raise UserError(said.getvalue())


def make_chain(root: Path, directory: Path) -> Chain:
    """Train, evaluate and report one cell of two steps; leaves the process in the project's directory."""
    project = make_project(root, directory)
    project.configure(ONE_CELL)
    study = project.study
    os.chdir(directory)
    sys.path.insert(0, str(root / "workflow/scripts"))
    chain = Chain(study)
    chain.before("train", chain.results)
    for stage in STAGES:
        chain.run(stage, chain.results)
    return chain


FULL = ("checkpoint", "history", "evaluate", "table", "figures", "findings", "results")
"""When a disk is full: as a checkpoint, or a finished run with its history, is written, or in a later stage."""


def fill(disk: Path, room: int) -> Path:
    """Leave so many bytes of a file system; returns the file to be removed."""
    gc.collect()  # models of before are mapped into memory: removed, they hold their room until then
    ballast, free = disk / "ballast", os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast.write_bytes(bytes(max(0, free - room)))
    return ballast


def full_disk(chain: Chain, when: str, share: float, disk: Path, patch: pytest.MonkeyPatch) -> None:
    """A disk has only a share of the room that is needed; told once, then mended by the same command.

    Args:
        when: one of FULL.
        share: of the bytes that are to be written; below 1.
        disk: a small file system of its own.
    """
    stage = when if when in STAGES else "train"
    results = disk / "results"
    chain.before(stage, results)
    wanted = chain.made(stage, chain.results)
    if stage != when:  # filled while it trains; the smallest of what is written then
        module, name = (checkpoint, "save") if when == "checkpoint" else (keeper, "finish")
        real, needed = getattr(module, name), 30_000

        def fills(*arguments: Any, **keywords: Any) -> Any:
            fill(disk, int(share * needed))
            return real(*arguments, **keywords)

        with patch.context() as filling:
            filling.setattr(module, name, fills)
            with pytest.raises(UserError, match="No space left on device") as raised:
                chain.run(stage, results)
    else:
        fill(disk, int(share * sum(map(len, wanted.values()))))
        with pytest.raises(UserError, match="No space left on device") as raised:
            chain.run(stage, results)
    assert "free some space" in str(raised.value)
    assert "Traceback" not in str(raised.value)
    (disk / "ballast").unlink()
    chain.run(stage, results)
    if stage == "train":
        assert_same_run(chain.results / cell_of(chain), results / cell_of(chain))
    else:
        assert chain.made(stage, results) == wanted
    assert not [path for path in results.rglob("*") if path.name.endswith(".tmp")]
    shutil.rmtree(results)


def cell_of(chain: Chain) -> Path:
    """The directory of the one cell, below the results."""
    (name,) = chain.study.cells
    return Path("cells") / name


READS = {
    "evaluate": ("cells/*/train/**/*", "cells/*/spec.json"),
    "table": ("cells/*/train/history.parquet", "cells/*/train/status.json", "cells/*/evaluation/metrics.json"),
    "findings": ("tables/*.parquet", "cells/*/evaluation/*", "cells/*/train/history.parquet"),
    "results": ("tables/*.parquet", "findings.json", "cells/*/evaluation/samples.parquet"),
}
"""What lies between a stage and those before it."""


def lose(chain: Chain, stage: str, draws: random.Random, results: Path) -> str:
    """A file between two stages is deleted or cut off somewhere.

    The stage either does without it, or names it in one message, or takes the cell for one that is not trained
    (`status.json`) or measured (`metrics.json`), and says that; what made it is run again, and then the stage gives
    what it gives undisturbed. Returns what was done, in words.
    """
    chain.before(stage, results)
    wanted = chain.made(stage, chain.results)
    lost = draws.choice(sorted({path for each in READS[stage] for path in results.glob(each) if path.is_file()}))
    delete = draws.random() < 0.5
    if delete:
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[: draws.randrange(lost.stat().st_size)])
    told = f"{stage}: {lost.name} {'deleted' if delete else 'cut off'}"
    try:
        chain.run(stage, results)
        again = delete and lost.name in ("status.json", "metrics.json") and chain.made(stage, results) != wanted
    except UserError as error:
        if lost.name not in str(error) and lost.parent.name not in str(error):
            pytest.fail(f"{told}: {error}")
        again = True
    if again:
        lost.unlink(missing_ok=True)
        (maker,) = (name for name, patterns in STAGES.items() if any(owns(results, lost, each) for each in patterns))
        for path in (found for pattern in STAGES[maker] for found in results.glob(pattern) if found.name != "kept"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()  # as Snakemake does before it starts a job again
        chain.run(maker, results)
        chain.run(stage, results)
        told += ", told"
    assert chain.made(stage, results) == wanted, told
    return told


def owns(results: Path, path: Path, pattern: str) -> bool:
    """Whether a path is, or lies in, one that matches."""
    return any(path.is_relative_to(found) for found in results.glob(pattern)) or path.match(pattern)
