"""A writer that is stopped at a change of the disk, loses its lease meanwhile, and wakes when another has finished."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rewardgrid.base.load import Base
from rewardgrid.study.cell import Cell
from rewardgrid.train import keeper
from rewardgrid.train.lease import acquire
from tests.kills import changes_disk, forked
from tests.runs import OFTEN, Train, assert_same_run, run

SOON = partial(acquire, wait=60.0, stale=0.3, every=0.05)
"""A lease that is taken over after a third of a second of silence instead of a minute."""


def stopped_at(change: int, directory: Path, train: Callable[[], Any]) -> int | None:
    """Train in a child that stops just before its n-th change below ``directory``: its number, None if it has fewer."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if changes_disk(event, arguments, directory):
            count += 1
            if count == change:
                os.kill(os.getpid(), signal.SIGSTOP)

    def sleepy() -> None:
        sys.addaudithook(hook)
        train()

    child = forked(sleepy)
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return child
    assert status == 0, f"the run failed with status {status}"
    return None


def kept_of(directory: Path) -> dict[str, bytes]:
    """Every file of a finished run."""
    kept = directory / "kept"
    return {str(path.relative_to(kept)): path.read_bytes() for path in kept.rglob("*") if path.is_file()}


def stop_at_each(
    changes: Iterable[int], train: Train, cell: Cell, base: Base, root: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Stop a writer before each of these changes, let another finish the cell, and wake the first.

    What the other has kept must still be there, byte for byte, and the next copy must find the cell finished. Ends at
    the first change that no run has; returns how often a writer was stopped.
    """
    (whole,) = run(train, [cell], base, root / "whole", OFTEN)
    monkeypatch.setattr(keeper, "acquire", SOON)
    stops = 0
    for change in changes:
        place = root / str(change)
        again = partial(run, train, [cell], base, place, OFTEN)
        child = stopped_at(change, place, again)
        if child is None:
            break
        stops += 1
        try:
            (directory,) = again()
            before = kept_of(directory)
        finally:
            os.kill(child, signal.SIGCONT)
            os.waitpid(child, 0)
        assert kept_of(directory) == before, f"change {change}: the one who woke has touched what was finished"
        assert_same_run(whole, *again())
        assert kept_of(directory) == before, f"change {change}: trained again"
        assert {path.name for path in directory.iterdir()} - {"events.log"} == {"kept", "spec.json", "train"}
    return stops
