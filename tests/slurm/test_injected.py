"""Faults that need no cluster, twenty times each: stopped writers, clocks that jump, full disks, lost files.

The driver is ended in each stage ``ROUNDS`` times (environment; four, unless it says otherwise).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path

import pytest

from rewardgrid.base.load import Base
from rewardgrid.train.engines.native import train
from tests.injected import FULL, READS, Chain, full_disk, jump, lose, make_chain
from tests.runs import OFTEN, run
from tests.slurm.faults import Trial
from tests.stops import stop_at_each
from tests.tiny import SHORT, lora_cell
from tests.workflow.drivers import RULES, end_in_every_stage
from tests.workflow.project import MICRO, make_project

pytestmark = pytest.mark.slurm

TIMES = 20
CELL = lora_cell(**SHORT, max_steps=4, batch_size=4, num_generations=2)


@pytest.fixture(scope="module")
def chain(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root / "workflow/scripts"))
        yield make_chain(root, tmp_path_factory.mktemp("chain") / "project")


def test_a_writer_stopped_at_every_other_change_of_the_disk(
    base: Base, tmp_path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = stop_at_each(count(1, 2), train, CELL, base, tmp_path, monkeypatch)
    assert stops >= TIMES
    told = "the next copy says from whom it takes over, the one who wakes `taken over by …`"
    trial.injected("a writer stopped (SIGSTOP), replaced, and woken", told, times=stops)


def test_clocks_that_jump(base: Base, tmp_path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = run(train, [CELL], base, tmp_path / "whole", OFTEN)
    for number in range(TIMES):
        jump(2 * number, CELL, base, whole, tmp_path / str(number), monkeypatch)
    trial.injected("clocks of two copies that jump by a minute to centuries", "nothing to tell", times=TIMES)


@pytest.mark.parametrize("when", FULL)
def test_full_disks(when: str, chain: Chain, small: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(when)
    for _ in range(TIMES):
        full_disk(chain, when, draws.random() * 0.9, small, monkeypatch)
    names = {"evaluate": "an evaluation", "checkpoint": "a checkpoint", "history": "a finished run and its history"}
    fault = f"a full disk while {names.get(when, 'the ' + when)} is written".replace("the figures is", "figures are")
    fault = fault.replace("the findings is", "findings are").replace("the results is", "RESULTS.md is")
    trial.injected(fault, "`cannot write … No space left on device; free some space`", times=TIMES)


@pytest.mark.parametrize("stage", READS)
def test_lost_files(stage: str, chain: Chain, tmp_path: Path, trial: Trial) -> None:
    draws = random.Random(stage)
    for number in range(TIMES):
        print(lose(chain, stage, draws, tmp_path / str(number)))
    trial.injected(
        f"a file deleted or cut off before `{stage}`",
        "the file by its name, or the cell as missing, if it is needed",
        times=TIMES,
    )


@pytest.mark.parametrize("number", range(int(os.environ.get("ROUNDS", TIMES // len(RULES)))))
def test_drivers_that_are_ended_in_every_stage(number: int, root: Path, tmp_path: Path, trial: Trial) -> None:
    project = make_project(root, tmp_path / "project")
    config = deepcopy(MICRO)
    del config["experiments"]["shared"]
    config["experiments"]["sweep"]["grids"] = [{"beta": [0.1, 0.2]}]
    project.configure(config)
    draws = random.Random(number)
    ended = end_in_every_stage(project, {rule: draws.uniform(0, 1) for rule in RULES})
    told = "`Will exit after finishing currently running jobs`"
    for rule in ended:
        trial.injected(f"SIGTERM to the driving Snakemake in `{rule}`", told)
