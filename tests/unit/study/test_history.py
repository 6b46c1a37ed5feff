"""The history of a cell that runs: appended whole, read whatever has become of it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rewardgrid.study.contracts import HISTORY, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.history import LiveHistory, read_history, rewards_so_far
from rewardgrid.study.layout import Layout

CELL = "cell-0123456789"


def row(step: int, reward: float = 0.1) -> dict[str, Any]:
    return dict.fromkeys(HISTORY.names, 0.25) | {"step": step, "reward": reward}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_a_cell_that_has_not_begun_has_no_rows_but_all_columns(layout: Layout) -> None:
    found = read_history(layout, CELL)
    assert list(found) == HISTORY.names
    assert len(found) == 0
    assert found["step"].dtype == "int64"


def test_rows_are_appended_when_their_time_has_come_and_read_as_they_were(layout: Layout) -> None:
    live = LiveHistory(layout.live_history(CELL), [row(1, 1 / 3)], every=3600)
    live.add(row(2, math.nan))
    assert not layout.live_history(CELL).exists()
    live.append()
    live.every = 0
    live.add(row(3, 1e-300))
    found = read_history(layout, CELL)
    assert found["step"].tolist() == [1, 2, 3]
    assert found["reward"].iloc[[0, 2]].tolist() == [1 / 3, 1e-300]
    assert math.isnan(found["reward"].iloc[1])


def test_a_line_that_was_cut_off_is_dropped_and_spoils_none_of_the_next_ones(layout: Layout) -> None:
    path = layout.live_history(CELL)
    live = LiveHistory(path, [row(1), row(2)], every=0)
    live.append()
    path.write_bytes(path.read_bytes()[:-9])
    assert read_history(layout, CELL)["step"].tolist() == [1]
    live.add(row(3))
    assert read_history(layout, CELL)["step"].tolist() == [1, 3]


def test_an_attempt_begins_with_the_rows_of_its_checkpoint(layout: Layout) -> None:
    first = LiveHistory(layout.live_history(CELL), [], every=0)
    for step in (1, 2, 3):
        first.add(row(step))
    second = LiveHistory(layout.live_history(CELL), [row(1), row(2)], every=0)
    second.append()
    assert read_history(layout, CELL)["step"].tolist() == [1, 2]


def test_rows_wait_while_the_disk_is_full(layout: Layout) -> None:
    path = layout.live_history(CELL)
    path.mkdir(parents=True)
    live = LiveHistory(path, [], every=0)
    live.add(row(1))
    assert read_history(layout, CELL).empty
    path.rmdir()
    live.add(row(2))
    assert read_history(layout, CELL)["step"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"step": 4}', "null", "\x00", '{"step": 4, "reward": "\\u001b[2J"}', "9" * 5000],
    ids=["deep", "short", "null", "zero", "text", "huge"],
)
def test_foreign_lines_are_left_out(layout: Layout, line: str) -> None:
    path = layout.live_history(CELL)
    LiveHistory(path, [row(1)]).append()
    with path.open("a") as stream:
        stream.write(line + "\n")
    assert read_history(layout, CELL)["step"].tolist() == [1]


@pytest.mark.parametrize("changes", [{"reward": "1"}, {"reward": True}, {"step": 1.5}, {"step": 0}, {"step": 10**400}])
def test_rows_of_other_types_are_left_out(layout: Layout, changes: dict[str, Any]) -> None:
    LiveHistory(layout.live_history(CELL), [row(7), row(8) | changes]).append()
    assert read_history(layout, CELL)["step"].tolist() == [7]


def test_the_table_of_a_finished_cell_counts_and_its_damage_is_told(layout: Layout) -> None:
    LiveHistory(layout.live_history(CELL), [row(1)]).append()
    write_table(layout.kept(CELL) / "history.parquet", pd.DataFrame([row(1), row(2)]), HISTORY)
    assert read_history(layout, CELL)["step"].tolist() == [1, 2]
    shutil.copytree(layout.kept(CELL), layout.train(CELL))
    (layout.train(CELL) / "history.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot read"):
        read_history(layout, CELL)
    assert rewards_so_far(layout, CELL) == []
