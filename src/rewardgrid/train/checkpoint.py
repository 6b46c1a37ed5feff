"""Checkpoints that are whole or not there: enough of a run to continue it bit for bit.

A checkpoint is a directory ``checkpoints/step-000100`` with the trained tensors and the optimizer's moments
(safetensors), the tables so far (parquet) and, written last, ``manifest.json`` with the SHA-256 of each file and
the spec they belong to. It is made beside its final name and renamed into place. Two are kept. Draws need no
state: they are functions of the step.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, sha256, sync, write_json
from rewardgrid.train.events import tell
from rewardgrid.train.record import TABLES, Record

KEPT = 2
STATE = "state.safetensors"
FILES = {STATE, *(f"{name}.parquet" for name in TABLES)}
"""What a checkpoint holds besides its manifest: read only if that vouches for it."""
NAME = re.compile(r"step-[0-9]{6,9}")


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    record: Record


def save(directory: Path, cell: Cell, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically and remove all but the newest two.

    Raises:
        UserError: the file system is full; the older checkpoints are untouched.
    """
    final = directory / f"step-{checkpoint.step:06d}"
    temporary = directory / f".{final.name}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(checkpoint.tensors, temporary / STATE)
        sync(temporary / STATE)
        checkpoint.record.write(temporary)
        files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        manifest = {"step": checkpoint.step, "spec": cell.identity(), "files": files}
        write_json(temporary / "manifest.json", manifest)  # which flushes the directory too
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(directory)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{final}: cannot write the checkpoint ({error}); free some space and run the same command again: "
            "it continues from the checkpoint before"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _newest_first(directory)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load(directory: Path, cell: Cell) -> Checkpoint | None:
    """The newest whole checkpoint of this cell, or None. Torn, corrupt or foreign ones are reported and passed over."""
    for path in _newest_first(directory):
        try:
            return _read(path, cell)
        except (UserError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            tell(directory.parent, f"warning: {path}: passed over: {error}")
    return None


def discard(directory: Path) -> None:
    """Remove a finished cell's checkpoints."""
    shutil.rmtree(directory, ignore_errors=True)


def _newest_first(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("step-*") if NAME.fullmatch(path.name)] if directory.is_dir() else []
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read(path: Path, cell: Cell) -> Checkpoint:
    manifest: Mapping[str, object] = read_json(path / "manifest.json")
    if manifest["spec"] != cell.identity():
        raise UserError("it belongs to another spec")
    files = manifest["files"]
    if not isinstance(files, dict) or not files.keys() >= FILES:
        raise UserError(f"manifest.json does not name the files {', '.join(sorted(FILES))}")
    for name, digest in files.items():
        if Path(name).name != name or not (path / name).is_file() or sha256(path / name) != digest:
            raise UserError(f"{name!r} is torn or corrupt (its SHA-256 differs from the manifest's)")
    if manifest["step"] != _step(path):
        raise UserError(f"manifest.json is of another step ({manifest['step']!r})")
    return Checkpoint(_step(path), load_file(path / STATE), Record.read(path))
