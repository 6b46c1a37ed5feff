"""The Multi-Process Service: used where it is, done without where it is not.

There is no such service on the machines that run these tests; a program of its name stands in for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewardgrid.cli import mps


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A PATH with nothing on it but the system's shell, and none of the service's variables."""
    for name in (mps.PIPES, mps.LOGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    yield tmp_path
    mps.stop()


def install(directory: Path, body: str) -> Path:
    """A control program that notes how it is called, and then does as it is told."""
    program, calls = directory / mps.CONTROL, directory / "calls"
    quit_or_not = 'word=""; [ "$1" = -d ] || read -r word'
    program.write_text(f'#!/bin/sh\n{quit_or_not}\necho "$*$word ${mps.PIPES}" >> "{calls}"\n{body}\n')
    program.chmod(0o755)
    return calls


def test_where_there_is_none_the_reason_is_said_and_nothing_changes() -> None:
    assert "not on the PATH" in mps.start()
    assert mps.PIPES not in os.environ


def test_it_is_started_for_the_jobs_and_stopped_at_the_end(environment: Path) -> None:
    calls = install(environment, "exit 0")
    assert "side by side" in mps.start()
    pipes = Path(os.environ[mps.PIPES])
    assert pipes.is_dir()
    mps.stop()
    assert calls.read_text().splitlines() == [f"-d {pipes}", f"quit {pipes}"]
    assert mps.PIPES not in os.environ
    assert not pipes.exists()


def test_one_that_does_not_start_is_done_without(environment: Path) -> None:
    install(environment, "echo no device >&2; exit 1")
    assert "none (no device)" in mps.start()
    assert mps.PIPES not in os.environ


def test_one_of_the_users_own_is_left_alone(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install(environment, "exit 0")
    monkeypatch.setenv(mps.PIPES, "/somewhere")
    assert "/somewhere" in mps.start()
    mps.stop()
    assert os.environ[mps.PIPES] == "/somewhere"
    assert not calls.exists()
