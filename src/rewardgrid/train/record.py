"""What a run writes while it trains: history, rollouts, evaluations by mode, status, and a line of progress."""

from __future__ import annotations

import math
import os
import platform
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import HISTORY, MODE_SAMPLES, ROLLOUTS, SAYS, read_table, write_table
from rewardgrid.study.files import sha256, write_json

PROGRESS_SECONDS = 5.0

TABLES: dict[str, pa.Schema] = {"history": HISTORY, "rollouts": ROLLOUTS, "mode_samples": MODE_SAMPLES}


@dataclass
class Record:
    """The rows of one cell's run so far, by table (see :mod:`rewardgrid.study.contracts`)."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in TABLES})

    def add(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to a table."""
        self.rows[table].extend(dict(row) for row in rows)

    def write(self, directory: Path) -> None:
        """Write all tables as parquet."""
        for name, schema in TABLES.items():
            said = dict.fromkeys(key for row in self.rows[name] for key in row if key.startswith(SAYS))
            frame = pd.DataFrame(self.rows[name], columns=[*schema.names, *said])
            write_table(directory / f"{name}.parquet", frame, schema)

    @classmethod
    def read(cls, directory: Path) -> Record:
        """Read what :meth:`write` wrote."""
        return cls(
            {
                name: [
                    {str(key): value for key, value in row.items()}
                    for row in read_table(directory / f"{name}.parquet", schema).to_dict("records")
                ]
                for name, schema in TABLES.items()
            }
        )


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``done``, or ``diverged`` or ``stopped`` (by its stop_when) with the reason."""

    state: str
    steps_done: int
    reason: str | None = None


class Progress:
    """Prints a line every few seconds: cell, step, reward, KL, steps/s, time left.

    ``speed`` is in steps per second, ``left`` in seconds; both are NaN until they are known.
    """

    def __init__(self, cell: Cell, every: float = PROGRESS_SECONDS) -> None:
        self.cell, self.every = cell, every
        self.printed = self.started = time.monotonic()
        self.first: int | None = None
        self.speed = self.left = math.nan

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Report one row of the history."""
        now, step = time.monotonic(), int(row["step"])
        if self.first is None:
            # The first step pays for warming up: speed is counted from its end.
            self.first, self.started = step, now
        if step > self.first:
            self.speed = (step - self.first) / max(now - self.started, 1e-9)
            self.left = (self.cell.max_steps - step) / self.speed
        last = step == self.cell.max_steps
        if now - self.printed < self.every and not last:
            return
        self.printed = now
        print(
            f"{self.cell.name}  step {step}/{self.cell.max_steps}  reward {row['reward']:.3f}  kl {row['kl']:.3f}  "
            f"{self.speed:.2f} steps/s  {clock(self.left)} left",
            file=sys.stderr,
            flush=True,
        )


def clock(seconds: float) -> str:
    """Seconds as people read them: ``45s``, ``3:07``, ``2:03:07``."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest}s"


def hardware() -> str:
    """What this process computes on, for the provenance of a table."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"CPU {model}"


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for package in ("rewardgrid", "torch", "transformers", "trl", "peft", "tokenizers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def finish(
    directory: Path,
    cell: Cell,
    record: Record,
    outcome: Outcome,
    weights: Mapping[str, str],
    device: str,
) -> None:
    """Write a finished run's tables and, last, ``status.json``, which says that everything else is there."""
    record.write(directory)
    write_json(
        directory / "status.json",
        {
            "cell": cell.name,
            "state": outcome.state,
            "reason": outcome.reason,
            "steps_done": outcome.steps_done,
            **({"stopped_at": outcome.steps_done} if outcome.state == "stopped" else {}),
            "seconds": sum(row["seconds"] for row in record.rows["history"]),
            "engine": cell.engine,
            "device": device,
            "hardware": hardware(),
            "host": socket.gethostname(),
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "versions": versions(),
            "weights": dict(weights),
            "tables": {f"{name}.parquet": sha256(directory / f"{name}.parquet") for name in TABLES},
        },
    )
