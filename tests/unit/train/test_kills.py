"""SIGKILL at the moments at which a run changes the disk: it goes on, and ends as if nothing had been."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from tests.kills import kill_at_each
from tests.tiny import SHORT, lora_cell

from rewardgrid.base.load import Base
from rewardgrid.train.engines.native import train

CELL = lora_cell(**SHORT, max_steps=4, batch_size=4, num_generations=2)


def test_a_run_killed_at_a_change_of_the_disk_ends_as_if_it_had_not_been(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Every sixth change; `make test-slurm` takes every one.
    kills = kill_at_each(count(2, 6), train, CELL, base, tmp_path)
    messages = capsys.readouterr().err
    assert kills > 12
    assert "continues after step 2" in messages
    assert "is trained already (done after step 4)" in messages
    assert messages.count("whose process is gone") > 12
