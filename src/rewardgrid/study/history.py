"""The history of a cell, finished or running.

A finished cell has it as a table (schema HISTORY). While it trains, its rows are appended to
``checkpoints/history.jsonl`` every few seconds, one JSON object a line, so that curves can be looked at before they are
whole; with the checkpoints it goes when the cell is finished. Nothing is ever continued from it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from rewardgrid.study.contracts import HISTORY, read_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import JSON_BYTES, object_in, read_bounded
from rewardgrid.study.layout import Layout

APPEND_SECONDS = 5.0


class LiveHistory:
    """Appends rows of the history to a file for whoever looks on; what cannot be written is never a reason to stop.

    Args:
        rows: those of the checkpoint that the run continues from. The file begins anew with them, because what an
            attempt did after its last checkpoint is done again.
    """

    def __init__(self, path: Path, rows: Iterable[Mapping[str, Any]], every: float = APPEND_SECONDS) -> None:
        self.path, self.every = path, every
        self.pending = [dict(row) for row in rows]
        self.begun = False
        self.appended = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row; every few seconds, append those that are kept."""
        self.pending.append(dict(row))
        if time.monotonic() - self.appended >= self.every:
            self.append()

    def append(self) -> None:
        """Append the rows that are kept: whole lines in one go, which a full disk or a kill may cut off."""
        self.appended = time.monotonic()
        # The newline in front ends a line that was cut off.
        text = "".join(f"\n{json.dumps(row, default=float)}" for row in self.pending) + "\n"
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab" if self.begun else "wb") as stream:
                stream.write(text.encode())
            self.begun = True
            self.pending.clear()


def read_history(layout: Layout, name: str) -> pd.DataFrame:
    """What is known of a cell's history by now (schema HISTORY); no rows if it has not begun.

    Raises:
        UserError: the table of a finished cell is damaged.
    """
    tables = [path / "history.parquet" for path in (layout.train(name), layout.kept(name))]
    for _ in range(2):  # it may be finished while one looks
        for table in tables:
            if table.is_file():
                return read_table(table, HISTORY)
        with contextlib.suppress(OSError):
            return _rows(read_bounded(layout.live_history(name), JSON_BYTES))
    return _frame({})


def rewards_so_far(layout: Layout, name: str) -> list[float]:
    """The rewards of the steps so far; none where the history cannot be read."""
    try:
        return [float(value) for value in read_history(layout, name)["reward"]]
    except UserError:
        return []


def _rows(content: bytes) -> pd.DataFrame:
    """The rows that bytes hold; lines that are no whole row are left out, and of a step the last row counts."""
    rows: dict[int, dict[str, float]] = {}
    for line in content.split(b"\n"):
        row = object_in(line) if line else None
        if row is not None and row.keys() == set(HISTORY.names) and all(map(_is_number, row.values())):
            step = row["step"]
            if type(step) is int and 0 < step < 2**31:
                rows[step] = row
    return _frame(rows)


def _frame(rows: Mapping[int, Mapping[str, float]]) -> pd.DataFrame:
    frame = pd.DataFrame([rows[step] for step in sorted(rows)], columns=HISTORY.names)
    return frame.astype({field.name: "int64" if pa.types.is_integer(field.type) else "float64" for field in HISTORY})


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**53)
