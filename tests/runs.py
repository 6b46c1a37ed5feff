"""Training runs of tests: start, kill, and read what they left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rewardgrid.base.load import Base
from rewardgrid.study.cell import Cell
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Recording
from rewardgrid.train.record import TABLES, Outcome, Progress

Train = Callable[..., list[Outcome]]
RECORDING = Recording(rollouts_every=2)
OFTEN = Recording(rollouts_every=2, checkpoint_every=2)


class Killed(Exception):
    """What ends a run in the middle of a step."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever trains within this block dies when it reports that step."""

    def report(_: Progress, row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", report)
        with pytest.raises(Killed):
            yield


def run(train: Train, cells: Sequence[Cell], base: Base, root: Path, recording: Recording = RECORDING) -> list[Path]:
    """Train cells below ``root``; returns their directories."""
    directories = [root / cell.name for cell in cells]
    train(cells, base, directories, recording, "cpu")
    return directories


def weights_of(directory: Path) -> dict[str, str]:
    """SHA-256 of every weights file."""
    found: dict[str, str] = read_json(directory / "train" / "status.json")["weights"]
    return found


def tables_of(directory: Path) -> dict[str, pd.DataFrame]:
    """Everything that a run recorded, but how long its steps took."""
    frames = {name: pd.read_parquet(directory / "train" / f"{name}.parquet") for name in TABLES}
    return frames | {"history": frames["history"].drop(columns="seconds")}


def assert_same_run(first: Path, second: Path) -> None:
    """Two runs left the same weights and tables, bit for bit."""
    assert weights_of(first) == weights_of(second)
    for name, frame in tables_of(first).items():
        pd.testing.assert_frame_equal(frame, tables_of(second)[name], check_exact=True, obj=name)
