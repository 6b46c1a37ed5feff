"""What both engines keep of a cell while they train it: its lease, its rows, its checkpoints, and the finished result.

A cell's directory while it is trained, and after:

``lease-<n>.json``
    who trains it, and how far they are (:mod:`rewardgrid.train.lease`).
``checkpoints/``
    what the run continues from (:mod:`rewardgrid.train.checkpoint`), and its history so far, to be looked at
    (:mod:`rewardgrid.study.history`).
``kept/``
    the finished run, renamed into place in one go; ``kept.damaged/`` if it was found damaged.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import HISTORY
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, same, sha256, sync, write_text
from rewardgrid.study.history import LiveHistory
from rewardgrid.study.study import Recording
from rewardgrid.train import checkpoint
from rewardgrid.train.events import note, tell
from rewardgrid.train.lease import acquire
from rewardgrid.train.record import Outcome, Progress, Record, finish
from rewardgrid.train.rollout import Assessor, Rollout, diverged, is_evaluation_step, mode_rows, rollout_rows
from rewardgrid.train.stop_rule import StopRule
from rewardgrid.train.stopping import Stopped
from rewardgrid.train.weights import save_weights

HELD = "stop_when/held"
"""In a checkpoint: the steps in a row that the cell's stop_when has held for."""


class OfAnother(UserError):
    """A finished run that is sound and another cell's."""


class Trainee(Protocol):
    """A cell as its engine has it between two steps."""

    assessor: Assessor

    @property
    def shape(self) -> Architecture:
        """What says how its weights are computed with."""

    def merged(self, mode: str | None = None) -> Weights:
        """Weights (C = 1) to sample from, with the adapters of an evaluation mode switched on (None: all)."""

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: trained parameters and their moments."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Trained weights under the names of Hugging Face (``model``) or PEFT (one entry per adapter)."""


class Keeper:
    """The one writer of a cell, from the moment that it holds the lease.

    ``outcome`` is set if the cell is finished already: nothing is left to do. Otherwise ``found`` is the checkpoint
    to continue from, if there is one, and ``step`` the steps done, of which ``saved`` are in a checkpoint.

    Raises:
        Held: another process trains the cell and did not finish in time.
        UserError: the directory cannot be written.
    """

    def __init__(self, cell: Cell, base: Base, directory: Path, recording: Recording) -> None:
        self.cell, self.base, self.directory, self.recording = cell, base, directory, recording
        try:
            self.lease = acquire(directory)
            _sweep(directory)
        except OSError as error:
            raise _cannot_write(directory, error) from error
        self.outcome = restore(directory, cell)
        try:
            if self.outcome:
                checkpoint.discard(directory / "checkpoints")
            else:
                _set_aside(directory / "kept")
        except OSError as error:
            raise _cannot_write(directory, error) from error
        self.found = None if self.outcome else checkpoint.load(directory / "checkpoints", cell)
        self.record = self.found.record if self.found else Record()
        self.step = self.saved = self.found.step if self.found else 0
        self.rule = StopRule(cell, int(self.found.tensors[HELD]) if self.found and HELD in self.found.tensors else 0)
        self.progress = Progress(cell)
        self.live = LiveHistory(directory / "checkpoints" / "history.jsonl", self.record.rows["history"])
        if self.found:
            tell(directory, f"{cell.name}  continues after step {self.step}")

    def after_step(self, row: Mapping[str, Any], rollout: Rollout, index: int, trainee: Trainee, alive: bool) -> None:
        """One step is done: keep what is to be kept of it, and end the run or write a checkpoint if that is due.

        Args:
            row: of the history, and what ``stop_when`` is decided by, if the cell has it.
            index: the cell's place in the rollout.
            alive: False: it has diverged in this step, which has changed no weight.

        Raises:
            Lost: another process has taken the cell over.
            UserError: the file system is full; the older checkpoints are untouched.
        """
        self._report({name: row[name] for name in HISTORY.names})
        stopped = self.rule.after(row) if alive and self.step < self.cell.max_steps else None
        if stopped or self.step == 1 or self.step % self.recording.rollouts_every == 0:
            self.record.add("rollouts", rollout_rows(self.step, index, rollout, self.cell, self.base))
        if is_evaluation_step(self.cell, self.step) or (stopped and self.cell.is_routing):
            rows = mode_rows(self.cell, self.step, trainee.merged, trainee.shape, self.base, trainee.assessor)
            self.record.add("mode_samples", rows)
        device = rollout.sequences.device
        if not alive:
            self._end(diverged(self.cell, row, self.step), trainee, device)
        elif self.step == self.cell.max_steps:
            self._end(Outcome("done", self.step), trainee, device)
        elif stopped:
            tell(self.directory, f"{self.cell.name}  stopped at step {self.step} of {self.cell.max_steps}: {stopped}")
            self._end(Outcome("stopped", self.step, stopped), trainee, device)
        elif self._checkpoint_due():
            self._checkpoint(trainee)

    def stop(self, trainee: Trainee) -> Stopped:
        """Keep an unfinished run as it is after its step; returns what the engine is to raise then.

        Raises:
            Lost, UserError: as :meth:`after_step`.
        """
        self.keep(trainee)
        stopped = Stopped(self.cell.name, f"after step {self.step} of {self.cell.max_steps}")
        note(self.directory, str(stopped))
        return stopped

    def fail(self, trainee: Trainee, error: UserError) -> None:
        """Keep a run whose next step cannot be made, and note why."""
        self.keep(trainee)
        note(self.directory, f"{self.cell.name}: stopped after step {self.step}: {error}")

    def keep(self, trainee: Trainee) -> None:
        """Write a checkpoint of the steps done, if there is none of them."""
        if self.saved != self.step:
            self._checkpoint(trainee)

    def _report(self, row: Mapping[str, Any]) -> None:
        """A row of the history, the heartbeat, now and then a line for the log."""
        if self.lease.lost:
            self.lease.check()
        self.step = int(row["step"])
        self.record.add("history", [row])
        self.live.add(row)
        self.progress(row)
        self.lease.report(
            step=self.step,
            max_steps=self.cell.max_steps,
            reward=row["reward"],
            kl=row["kl"],
            speed=self.progress.speed,
            left=self.progress.left,
        )

    def _checkpoint_due(self) -> bool:
        """Every so many steps, but not while a rollout is still to be learnt from: it could not be made again."""
        every = self.recording.checkpoint_every
        return self.step % self.cell.num_iterations == 0 and self.step // every > self.saved // every

    def _checkpoint(self, trainee: Trainee) -> None:
        self.lease.check()
        held = {HELD: torch.tensor(self.rule.held)} if self.cell.stop_when else {}
        state = checkpoint.Checkpoint(self.step, trainee.state_tensors() | held, self.record)
        checkpoint.save(self.directory / "checkpoints", self.cell, state)
        self.saved = self.step
        self.live.append()

    def _end(self, outcome: Outcome, trainee: Trainee, device: torch.device) -> None:
        """Keep a finished run: all of it, or nothing."""
        self.lease.check()
        kept, temporary = self.directory / "kept", self.directory / ".kept.tmp"
        try:
            _remove(temporary)
            digests = save_weights(temporary / "weights", self.cell, self.base, trainee.tensors())
            finish(temporary, self.cell, self.record, outcome, digests, str(device))
            for path in temporary.rglob("*"):
                sync(path)
            self.lease.check()
            temporary.rename(kept)  # which fails if a successor's stands there, however late this process wakes
            sync(self.directory)
            publish(self.directory, self.cell)
        except OSError as error:
            self.lease.check()
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
        UserError: what is kept is damaged too. Both are set aside, so that the same command trains the cell anew. Or it
            is a sound run of another cell, or one without weights, which is left as it is.
        OSError: it cannot be read, which says nothing of what it holds.
    """
    train = directory / "train"
    try:
        _read(train, cell)
    except OfAnother as error:
        raise UserError(
            f"{train}: {error}; move it to the directory of that cell, or remove it, and run the same command again"
        ) from None
    except (UserError, ValueError, LookupError, TypeError, AttributeError) as error:
        damage = error
    else:
        return
    if restore(directory, cell) is None:
        if (train / "status.json").is_file() and not (train / "weights").exists():
            raise UserError(
                f"{train}: its weights are not here, as those of no cell from an archive are, and it can be measured "
                f"with nothing else; remove {directory}, and put it back (python -m rewardgrid archive --restore) or "
                "run the same command again, which trains the cell anew"
            )
        for run in (directory / "kept", train):
            _set_aside(run)
        raise UserError(
            f"{train}: damaged ({damage}), and there is no sound copy; it lies in {train.name}.damaged now: run the "
            "same command again, which trains the cell anew"
        )


def _read(run: Path, cell: Cell) -> Outcome:
    """How a finished run ended, once all that its status names has been found as it was written."""
    status = read_json(run / "status.json")
    named = {f"weights/{name}": digest for name, digest in status["weights"].items()} | status.get("tables", {})
    for name, digest in named.items():
        if not (run / name).is_file() or sha256(run / name) != digest:
            raise ValueError(f"{name!r} is torn or corrupt (its SHA-256 differs from that in status.json)")
    if status["state"] not in ("done", "diverged", "stopped") or type(status["steps_done"]) is not int:
        raise ValueError(f"it ended as {status['state']!r} after step {status['steps_done']!r}")
    if status["cell"] != cell.name:
        raise OfAnother(f"it is of cell {status['cell']!r}")
    return Outcome(status["state"], status["steps_done"], status["reason"])


def publish(directory: Path, cell: Cell) -> None:
    """Make the workflow's outputs of what is kept: copies, so that what is written over one spoils not both."""
    temporary, train = directory / ".train.tmp", directory / "train"
    write_text(directory / "spec.json", cell.canonical_json() + "\n")
    _remove(temporary)
    shutil.copytree(directory / "kept", temporary)
    for path in [*temporary.rglob("*"), temporary]:
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


def _set_aside(run: Path) -> None:
    """Give a damaged run another name, if it is there."""
    if run.exists():
        aside = run.with_name(f"{run.name}.damaged")
        _remove(aside)
        run.rename(aside)


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def _cannot_write(directory: Path, error: OSError) -> UserError:
    return UserError(
        f"{directory}: cannot write: {error.strerror or error}; free some space, then run the same command again "
        "(finished work is kept, an unfinished run continues from its checkpoint)"
    )
