"""SIGSTOP at moments at which a writer changes the disk: whoever wakes late spoils nothing that another has made."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from tests.stops import stop_at_each
from tests.tiny import SHORT, lora_cell

from rewardgrid.base.load import Base
from rewardgrid.train.engines.native import train

CELL = lora_cell(**SHORT, max_steps=2, batch_size=4, num_generations=2)


def test_a_writer_that_wakes_after_another_has_finished_spoils_nothing(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every ninth change; `make test-slurm` takes every one.
    assert stop_at_each(count(3, 9), train, CELL, base, tmp_path, monkeypatch) > 3
