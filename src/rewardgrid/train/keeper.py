"""What both engines keep of a cell while they train it: its lease, its rows, its checkpoints, and the finished result.

A cell's directory while it is trained, and after:

``lease-<n>.json``
    who trains it, and how far they are (:mod:`rewardgrid.train.lease`).
``checkpoints/``
    what the run continues from (:mod:`rewardgrid.train.checkpoint`).
``kept/``
    the finished run, renamed into place in one go.
``events.log``
    what has happened to it on the way, if anything has (:mod:`rewardgrid.train.events`).
``train/``, ``spec.json``
    the same files again (hard links), as the outputs of the workflow's rule.

Snakemake removes the outputs of a rule before it starts a job and after a job has failed, also when the job of a
Snakemake that was killed has finished in the meantime. What it removes is put back from ``kept/``: a finished cell is
never trained again, unless its directory is removed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import link, sha256, sync, write_text
from rewardgrid.study.study import Recording
from rewardgrid.train import checkpoint
from rewardgrid.train.events import note, tell
from rewardgrid.train.lease import acquire
from rewardgrid.train.record import Outcome, Progress, Record, finish
from rewardgrid.train.rollout import diverged, is_evaluation_step
from rewardgrid.train.stopping import Stopped

Rows = Sequence[Mapping[str, Any]]


class Keeper:
    """The one writer of a cell, from the moment that it holds the lease.

    ``outcome`` is set if the cell is finished already: nothing is left to do. Otherwise ``found`` is the checkpoint
    to continue from, if there is one, and ``step`` the steps done.

    Raises:
        Held: another process trains the cell and did not finish in time.
        UserError: the directory cannot be written.
    """

    def __init__(self, cell: Cell, directory: Path, recording: Recording) -> None:
        self.cell, self.directory, self.recording = cell, directory, recording
        try:
            self.lease = acquire(directory)
            _sweep(directory)
        except OSError as error:
            raise _cannot_write(directory, error) from error
        self.outcome = restore(directory, cell)
        if self.outcome:
            checkpoint.discard(directory / "checkpoints")
        self.found = None if self.outcome else checkpoint.load(directory / "checkpoints", cell)
        self.record = self.found.record if self.found else Record()
        self.step = self.found.step if self.found else 0
        self.progress = Progress(cell)
        if self.found:
            tell(directory, f"{cell.name}  continues after step {self.step}")

    def report(self, row: Mapping[str, Any]) -> None:
        """One step is done: a row of the history, the heartbeat, now and then a line for the log.

        Raises:
            Lost: another process has taken the cell over.
        """
        if self.lease.lost:
            self.lease.check()
        self.step = int(row["step"])
        self.record.add("history", [row])
        self.progress(row)
        self.lease.report(
            step=self.step,
            max_steps=self.cell.max_steps,
            reward=row["reward"],
            kl=row["kl"],
            speed=self.progress.speed,
            left=self.progress.left,
        )

    def after_step(
        self, row: Mapping[str, Any], alive: bool, rollouts: Callable[[], Rows], modes: Callable[[], Rows]
    ) -> Outcome | None:
        """Record a step: its row of the history, and what else is due.

        Args:
            alive: whether its loss, gradient and KL were within bounds, so that the weights have changed.
            rollouts: makes the rows of its completions.
            modes: samples the rows of an evaluation by mode.

        Returns:
            How the run has ended with this step; None: it goes on.

        Raises:
            Lost: another process has taken the cell over.
        """
        self.report(row)
        if self.step == 1 or self.step % self.recording.rollouts_every == 0:
            self.record.add("rollouts", rollouts())
        if is_evaluation_step(self.cell, self.step):
            self.record.add("mode_samples", modes())
        if not alive:
            return diverged(self.cell, row, self.step)
        return Outcome("done", self.step) if self.step == self.cell.max_steps else None

    def checkpoint_if_due(self, stopping: bool, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep an unfinished run every so many steps, and where a signal has asked for a stop; see :meth:`checkpoint`.

        Args:
            state: the tensors to continue from.
        """
        if stopping or self.step % self.recording.checkpoint_every == 0:
            self.checkpoint(state())

    def checkpoint(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep an unfinished run as it is after this step.

        Raises:
            Lost: another process has taken the cell over.
            UserError: the file system is full; the older checkpoints are untouched.
        """
        self.lease.check()
        state = checkpoint.Checkpoint(self.step, dict(tensors), self.record)
        checkpoint.save(self.directory / "checkpoints", self.cell, state)

    def stopped(self) -> Stopped:
        """To be raised when a signal has asked for a stop and the checkpoint is written."""
        stopped = Stopped(self.cell.name, f"after step {self.step} of {self.cell.max_steps}")
        note(self.directory, str(stopped))
        return stopped

    def end(self, outcome: Outcome, save: Callable[[Path], Mapping[str, str]], device: str) -> None:
        """Keep a finished run: all of it, or nothing.

        Args:
            save: writes the weights below a directory and returns their digests.

        Raises:
            Lost: another process has taken the cell over.
            UserError: the file system is full; the checkpoints are untouched.
        """
        self.lease.check()
        kept, temporary = self.directory / "kept", self.directory / ".kept.tmp"
        try:
            _remove(temporary)
            digests = save(temporary / "weights")
            finish(temporary, self.cell, self.record, outcome, digests, device)
            for path in sorted(temporary.rglob("*"), reverse=True):
                sync(path)
            sync(temporary)
            self.lease.check()
            _remove(kept)
            temporary.rename(kept)
            sync(self.directory)
            publish(self.directory, self.cell)
        except OSError as error:
            raise _cannot_write(self.directory, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        checkpoint.discard(self.directory / "checkpoints")
        self.outcome = outcome

    def release(self) -> None:
        """Give the cell up, whatever has become of it."""
        self.lease.release()


def restore(directory: Path, cell: Cell) -> Outcome | None:
    """How a finished cell ended, its outputs put back if they are not all there; None if it is not finished."""
    kept = directory / "kept"
    if not kept.is_dir():
        return None
    try:
        status = json.loads((kept / "status.json").read_text(encoding="utf-8"))
        if status["cell"] != cell.name:
            raise ValueError(f"it is of cell {status['cell']!r}")
        for name, digest in status["weights"].items():
            if sha256(kept / "weights" / name) != digest:
                raise ValueError(f"{name} is torn or corrupt (its SHA-256 differs from that in status.json)")
        outcome = Outcome(status["state"], status["steps_done"], status["reason"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        tell(directory, f"warning: {kept}: passed over: {error}")
        return None
    try:
        if not _published(directory):
            publish(directory, cell)
    except OSError as error:
        raise _cannot_write(directory, error) from error
    tell(directory, f"{cell.name}  is trained already ({outcome.state} after step {outcome.steps_done})")
    return outcome


def publish(directory: Path, cell: Cell) -> None:
    """Make the workflow's outputs of what is kept, which costs no space where the file system has hard links."""
    temporary, train = directory / ".train.tmp", directory / "train"
    write_text(directory / "spec.json", cell.canonical_json() + "\n")
    _remove(temporary)
    shutil.copytree(directory / "kept", temporary, copy_function=link)
    _remove(train)
    temporary.rename(train)


def _published(directory: Path) -> bool:
    """Whether the outputs are all there; then they are left alone, because others may be reading them."""
    kept, train = directory / "kept", directory / "train"
    sizes = ((path.stat().st_size, train / path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
    return (directory / "spec.json").exists() and all(
        path.exists() and path.stat().st_size == size for size, path in sizes
    )


def _sweep(directory: Path) -> None:
    """Remove what a writer that was killed had not finished; only the holder of the lease makes such files."""
    for path in [*directory.glob(".*.tmp"), *directory.glob("checkpoints/.*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def _cannot_write(directory: Path, error: OSError) -> UserError:
    return UserError(
        f"{directory}: cannot write: {error.strerror or error}; free some space, then run the same command again "
        "(finished work is kept, an unfinished run continues from its checkpoint)"
    )
