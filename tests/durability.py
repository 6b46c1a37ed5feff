"""What a crash of the machine would leave: whether files were flushed before they were given their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Identity = tuple[int, int]
State = tuple[int, int]


def _identity(status: os.stat_result) -> tuple[Identity, State]:
    return (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)


@contextmanager
def flushed_before_renamed(
    monkeypatch: pytest.MonkeyPatch, renamed: Callable[[Path, Path], None] = lambda source, target: None
) -> Iterator[list[str]]:
    """Every rename within the block moves what is flushed as it is, and is flushed itself before the next one.

    Args:
        renamed: is called before each rename, with what is moved and where it goes.

    Yields:
        The names that things were given, in order.
    """
    flushed: dict[Identity, State] = {}
    names: list[str] = []
    open_renames: dict[Identity, Path] = {}
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(descriptor: int) -> None:
        real["fsync"](descriptor)
        identity, state = _identity(os.fstat(descriptor))
        flushed[identity] = state
        open_renames.pop(identity, None)

    def moves(move: Callable[..., None]) -> Callable[..., None]:
        def checked(source: Any, target: Any, **keywords: Any) -> None:
            source, target = Path(source), Path(target)
            assert not open_renames, f"{target} is named before these names are flushed: {open_renames.values()}"
            for path in [source, *source.rglob("*")]:
                identity, state = _identity(path.stat())
                assert flushed.get(identity) == state, f"{path} is given the name {target} before it is flushed"
            renamed(source, target)
            move(source, target, **keywords)
            names.append(target.name)
            open_renames[_identity(target.parent.stat())[0]] = target

        return checked

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for name in ("rename", "replace"):
            patch.setattr(os, name, moves(real[name]))
        yield names
    assert not open_renames, f"these names are not flushed: {open_renames.values()}"
