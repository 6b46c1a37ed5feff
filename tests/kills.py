"""SIGKILL a training run at every moment at which it changes the disk, and let it go on."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rewardgrid.base.load import Base
from rewardgrid.study.cell import Cell
from tests.runs import OFTEN, Train, assert_same_run, run

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "os.chmod"}
"""Audit events that change what lies on a disk, besides openings for writing."""


def forked(train: Callable[[], Any]) -> int:
    """Train in a child, which inherits all that is loaded; returns its process number."""
    child = os.fork()
    if not child:
        try:
            train()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def killed_at(change: int, directory: Path, train: Callable[[], Any]) -> bool:
    """Train in a child that dies just before its n-th change below ``directory``; returns whether it died.

    Compiled code (safetensors, parquet) writes unseen, between openings that are seen. Heartbeats do not count:
    they come when they come.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if changes_disk(event, arguments, directory):
            count += 1
            if count == change:
                os.kill(os.getpid(), signal.SIGKILL)

    def doomed() -> None:
        sys.addaudithook(hook)
        train()

    status = os.waitstatus_to_exitcode(os.waitpid(forked(doomed), 0)[1])
    assert status in (0, -signal.SIGKILL), f"the run failed with status {status}"
    return status != 0


def changes_disk(event: str, arguments: tuple[Any, ...], directory: Path) -> bool:
    """Whether an audit event changes something below a directory, heartbeats aside."""
    if event in ("os.remove", "os.rmdir"):
        return "lease-" not in str(arguments[0])  # trees are removed by names relative to descriptors
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        writes = event in CHANGES
    path = str(arguments[0]) if writes else ""
    return path.startswith(str(directory)) and "lease-" not in path


def kill_at_each(changes: Iterable[int], train: Train, cell: Cell, base: Base, root: Path) -> int:
    """Kill a run before each of these changes, and compare what the same call makes of it with an undisturbed run.

    Stops at the first change that no run has; returns how often a run was killed.
    """
    (whole,) = run(train, [cell], base, root / "whole", OFTEN)
    kills = 0
    for change in changes:
        directory = root / str(change)
        if not killed_at(change, directory, lambda directory=directory: run(train, [cell], base, directory, OFTEN)):
            break
        kills += 1
        (resumed,) = run(train, [cell], base, directory, OFTEN)
        assert_same_run(whole, resumed)
        assert {path.name for path in resumed.iterdir()} - {"events.log"} == {"kept", "spec.json", "train"}
    return kills
