"""Faults that need no cluster, many times over: kills at any moment and at every change of the disk, a full disk."""

from __future__ import annotations

import os
import random
import signal
import time
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest

from rewardgrid.base.load import Base
from rewardgrid.study.errors import UserError
from tests.kills import forked, kill_at_each
from tests.runs import OFTEN, assert_same_run, run
from tests.slurm.faults import Trial
from tests.tiny import SHORT, lora_cell, make_cell

pytestmark = pytest.mark.slurm

SPEC = SHORT | {"max_steps": 4, "batch_size": 4, "num_generations": 2}


@pytest.mark.parametrize(("engine", "every"), [("native", 1), ("trl", 5)])
def test_a_kill_at_every_change_of_the_disk(engine: str, every: int, base: Base, tmp_path: Path, trial: Trial) -> None:
    cell = lora_cell(**SPEC, engine=engine)
    train = import_module(f"rewardgrid.train.engines.{engine}").train
    kills = kill_at_each(count(1, every), train, cell, base, tmp_path)
    assert kills > 60 / every
    # At most the steps since the last checkpoint, two here, are computed again.
    trial.injected("`kill -9` at every change of the disk", "the next copy says from whom it takes over", times=kills)


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_kill_at_any_moment(engine: str, base: Base, tmp_path: Path, trial: Trial) -> None:
    cell = make_cell(**SPEC | {"max_steps": 12}, engine=engine)
    train = import_module(f"rewardgrid.train.engines.{engine}").train
    (whole,) = run(train, [cell], base, tmp_path / "whole", OFTEN)
    began = time.monotonic()
    run(train, [cell], base, tmp_path / "timed", OFTEN)
    seconds = time.monotonic() - began
    draws, kills = random.Random(5), 0
    for number in range(5):
        directory = tmp_path / str(number)
        for _ in range(3):  # again and again
            child = forked(lambda directory=directory: run(train, [cell], base, directory, OFTEN))
            time.sleep(draws.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert_same_run(whole, *run(train, [cell], base, directory, OFTEN))
    trial.injected("`kill -9` at a random moment", "the next copy says from whom it takes over", times=kills)


@pytest.mark.parametrize("room", [0, 20_000, 60_000, 150_000, 300_000])
def test_a_full_file_system(room: int, small: Path, base: Base, tmp_path: Path, trial: Trial) -> None:
    cell = make_cell(**SPEC)
    train = import_module("rewardgrid.train.engines.native").train
    (whole,) = run(train, [cell], base, tmp_path / "whole", OFTEN)
    ballast = small / "ballast"
    free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
    ballast.write_bytes(bytes(max(0, free - room)))
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        run(train, [cell], base, small / "cells", OFTEN)
    ballast.unlink()
    assert_same_run(whole, *run(train, [cell], base, small / "cells", OFTEN))
    trial.injected("the results' file system full", "`cannot write … No space left on device; free some space`")
