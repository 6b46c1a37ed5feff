"""Calling code of one's own: rewards, detectors and metrics on the texts of a batch.

A function is called as TRL calls a reward function, with those of ``prompts``, ``completions``, ``prompt_ids`` and
``completion_ids`` that it takes, each a list with an entry for each completion of one cell, and returns a number for
each of them, as a list or a tensor.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.sampler import Completions
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import sha256
from rewardgrid.study.own import Code

SHOWN = 60
"""Letters of a completion in an error message."""
LARGEST = 1e30
"""What a function may return, in either direction: its square is still a number in every mean and table."""


class OwnCodeError(UserError):
    """Code of one's own that raised or returned something else than a number for each completion."""


class Functions:
    """The functions of some code of one's own, loaded and ready to be called.

    Raises:
        UserError: a file is missing, has changed since the configuration was read, cannot be imported, or has no such
            function.
    """

    def __init__(self, codes: Sequence[Code], base: Base) -> None:
        self.base = base
        self.codes = [code for code in codes if not code.parts]
        self.functions = {code.name: load(code) for code in self.codes}

    def __bool__(self) -> bool:
        return bool(self.codes)

    def __call__(self, prompts: Tensor, completions: Completions, cell: int, when: str) -> dict[str, list[float]]:
        """What each function says of one cell's completions.

        Args:
            prompts: (C, B, P).
            cell: its place among the C.
            when: for error messages, such as ``step 12``.

        Raises:
            OwnCodeError: naming file, function, step and completion.
        """
        lengths = completions.lengths[cell].tolist()
        ids = [row[:length] for row, length in zip(completions.ids[cell].tolist(), lengths, strict=True)]
        starts = prompts[cell].tolist()
        batch: dict[str, list[Any]] = {
            "prompts": [self.base.decode(row) for row in starts],
            "completions": [self.base.decode(row) for row in ids],
            "prompt_ids": starts,
            "completion_ids": ids,
        }
        return {code.name: _call(code, self.functions[code.name], batch, when) for code in self.codes}


def load(code: Code) -> Callable[..., Any]:
    """Import the function of a definition.

    Raises:
        UserError: see :class:`Functions`.
    """
    path = Path(code.file)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, but {code.name} is defined by it; put it back, or change the configuration"
        )
    if sha256(path) != code.sha256:
        raise UserError(
            f"{path}: has changed since the configuration was read (SHA-256 {sha256(path)[:10]}, not "
            f"{code.sha256[:10]}); start the same command again: with another source, it is another cell"
        )
    spec = importlib.util.spec_from_file_location(f"own_{code.sha256[:10]}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise OwnCodeError(f"{path}: cannot be imported: {_told(error, path)}") from error
    function = getattr(module, code.function, None)
    if not callable(function):
        raise UserError(f"{path}: has no function {code.function}, which {code.name} names")
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        raise UserError(
            f"{path}: {code.function} does not say what it takes; write a function with def, which may call it"
        ) from None
    return function


def _call(code: Code, function: Callable[..., Any], batch: dict[str, list[Any]], when: str) -> list[float]:
    where = f"{code.file}:{code.function}: {when}"
    number = len(batch["completions"])
    taken = inspect.signature(function).parameters.values()
    if not any(each.kind is each.VAR_KEYWORD for each in taken):
        batch = {name: values for name, values in batch.items() if name in {each.name for each in taken}}
    try:
        with _unchanged():
            said = function(**_copied(batch))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise OwnCodeError(f"{where}{_culprit(function, batch)}: {_told(error, Path(code.file))}") from error
    values = said.tolist() if isinstance(said, Tensor | np.ndarray) else said
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != number:
        found = f"{len(values)} values" if isinstance(values, Sequence) and not isinstance(values, str) else repr(said)
        raise OwnCodeError(f"{where}: returned {found[:SHOWN]} for {number} completions; return one number for each")
    for place, value in enumerate(values):
        try:
            usable = abs(float(value)) <= LARGEST
        except (TypeError, ValueError, OverflowError):
            usable = False
        if not usable or isinstance(value, str):
            fix = f"return a finite number of at most {LARGEST:.0e}"
            raise OwnCodeError(f"{where}, {_shown(batch, place)}: returned {_brief(value)}; {fix}")
    return [float(value) for value in values]


@contextmanager
def _unchanged() -> Iterator[None]:
    """What belongs to the whole process stays as it was, whatever a function does to it."""
    place, kind, learns = Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        os.chdir(place)
        torch.set_default_dtype(kind)
        torch.set_grad_enabled(learns)


def _copied(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """A batch that a function may change: the next one gets its own."""
    return {name: [each[:] for each in values] for name, values in batch.items()}


def _culprit(function: Callable[..., Any], batch: dict[str, list[Any]]) -> str:
    """The first completion that the function fails on by itself, as far as one can be told."""
    for place in range(len(next(iter(batch.values()), []))):
        try:
            with _unchanged():
                function(**_copied({name: values[place : place + 1] for name, values in batch.items()}))
        except KeyboardInterrupt:
            raise
        except BaseException:
            return f", {_shown(batch, place)}"
    return ", all completions together"


def _shown(batch: dict[str, list[Any]], place: int) -> str:
    shown = str(batch.get("completions", batch.get("completion_ids", [""] * (place + 1)))[place])
    return f"completion {place} ({shown if len(shown) <= SHOWN else shown[:SHOWN] + '...'!r})"


def _brief(value: object) -> str:
    try:
        return repr(value)[:SHOWN]
    except Exception:  # of code of one's own, or of a number of thousands of digits
        return f"a {type(value).__name__}"


def _told(error: BaseException, path: Path) -> str:
    """An exception in one line, with the last line of the file that it passed through."""
    passed = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in passed if Path(frame.filename).absolute() == path.absolute()]
    at = f" (line {lines[-1]})" if lines else ""
    try:
        said = " ".join(str(error).split())
    except Exception:  # of an exception of one's own
        said = ""
    return f"{type(error).__name__}{f': {said}' if said else ''}{at}"
