"""One fault of each kind, of those that `make test-slurm` injects twenty times: clocks, full disks, lost files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.injected import FULL, READS, Chain, full_disk, jump, lose, make_chain
from tests.runs import OFTEN, run
from tests.tiny import SHORT, lora_cell

from rewardgrid.base.load import Base
from rewardgrid.train.engines.native import train


@pytest.fixture(scope="module")
def chain(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root / "workflow/scripts"))
        yield make_chain(root, tmp_path_factory.mktemp("chain") / "project")


def test_two_copies_whose_clocks_jump_train_a_cell_once(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = lora_cell(**SHORT, max_steps=4, batch_size=4, num_generations=2)
    (whole,) = run(train, [cell], base, tmp_path / "whole", OFTEN)
    jump(3, cell, base, whole, tmp_path / "jumping", monkeypatch)


@pytest.mark.parametrize("stage", READS)
def test_a_lost_file_is_named_or_not_needed_and_made_again(stage: str, chain: Chain, tmp_path: Path) -> None:
    lose(chain, stage, random.Random(1), tmp_path / "results")


@pytest.mark.parametrize("when", FULL)
def test_a_full_disk_is_told_in_every_stage(
    when: str, chain: Chain, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(chain, when, 0.3, small, monkeypatch)
