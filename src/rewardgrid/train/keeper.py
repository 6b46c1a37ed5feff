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
    a copy, as the outputs of the workflow's rule.

Snakemake removes the outputs of a rule before it starts a job and after a job has failed, also when the job of a
Snakemake that was killed has finished in the meantime. What it removes is put back from ``kept/``: a finished cell is
never trained again, unless its directory is removed.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import object_in, read_bounded, read_json, same, sha256, sync, write_text
from rewardgrid.study.forecast import STATUS_BYTES
from rewardgrid.study.study import Recording
from rewardgrid.train import checkpoint
from rewardgrid.train.events import note, tell
from rewardgrid.train.lease import acquire
from rewardgrid.train.record import Outcome, Progress, Record, finish
from rewardgrid.train.stopping import Stopped


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

    @property
    def checkpoint_due(self) -> bool:
        """Whether this is a step after which a checkpoint is written anyway."""
        return self.step % self.recording.checkpoint_every == 0

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
        outcome = _read(kept, cell)
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        tell(directory, f"warning: {kept}: passed over: {error}")
        return None
    try:
        if not _published(directory):
            publish(directory, cell)
    except OSError as error:
        raise _cannot_write(directory, error) from error
    tell(directory, f"{cell.name}  is trained already ({outcome.state} after step {outcome.steps_done})")
    return outcome


def mend(directory: Path, cell: Cell) -> None:
    """Make sure that ``train/`` is what training left; if it is damaged, it is put back from what is kept.

    Raises:
        UserError: what is kept is damaged too. Both are removed, so that the same command trains the cell anew; but not
            if they are of another cell.
    """
    train = directory / "train"
    try:
        _read(train, cell)
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        damage = error
    else:
        return
    if restore(directory, cell) is None:
        if not train.exists():
            raise UserError(f"{train / 'status.json'}: no such file; train the cell first")
        for run in (train, directory / "kept"):
            other = _cell_named(run)
            if other not in (None, cell.name):  # sound perhaps, and not ours to remove
                raise UserError(f"{run / 'status.json'}: is of cell {other!r}, not {cell.name!r}; train it again")
        _remove(directory / "kept")
        _remove(train)
        raise UserError(
            f"{train}: damaged ({damage}), and there is no sound copy; it was removed: run the same command again, "
            "which trains the cell anew"
        )


def _cell_named(run: Path) -> object:
    """The cell that a finished run says it is of; None if it does not say."""
    try:
        return (object_in(read_bounded(run / "status.json", STATUS_BYTES)) or {}).get("cell")
    except OSError:
        return None


def _read(run: Path, cell: Cell) -> Outcome:
    """How a finished run ended, once all that its status names has been found as it was written."""
    status = read_json(run / "status.json")
    if status["cell"] != cell.name:
        raise ValueError(f"it is of cell {status['cell']!r}")
    named = {f"weights/{name}": digest for name, digest in status["weights"].items()} | status.get("tables", {})
    for name, digest in named.items():
        if not (run / name).is_file() or sha256(run / name) != digest:
            raise ValueError(f"{name!r} is torn or corrupt (its SHA-256 differs from that in status.json)")
    if status["state"] not in ("done", "diverged") or type(status["steps_done"]) is not int:
        raise ValueError(f"it ended as {status['state']!r} after step {status['steps_done']!r}")
    return Outcome(status["state"], status["steps_done"], status["reason"])


def publish(directory: Path, cell: Cell) -> None:
    """Make the workflow's outputs of what is kept: copies, so that what is written over one spoils not both."""
    temporary, train = directory / ".train.tmp", directory / "train"
    write_text(directory / "spec.json", cell.canonical_json() + "\n")
    _remove(temporary)
    shutil.copytree(directory / "kept", temporary)
    for path in temporary.rglob("*"):
        sync(path)
    _remove(train)
    temporary.rename(train)
    sync(directory)


def _published(directory: Path) -> bool:
    """Whether the outputs are all there; then they are left alone, because others may be reading them."""
    kept, train = directory / "kept", directory / "train"
    return (directory / "spec.json").exists() and all(
        same(path, train / path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()
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
