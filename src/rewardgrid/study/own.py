"""Code of one's own in a configuration: rewards, detectors and metrics, named by file and function.

Nothing is imported here: a configuration is read without running anybody's code.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rewardgrid.study.errors import did_you_mean
from rewardgrid.study.files import sha256
from rewardgrid.study.problems import FUNCTION

GIVEN = ("prompts", "completions", "prompt_ids", "completion_ids")
"""What a function is called with, by name, as far as it takes them."""
Place = Annotated[str, Field(pattern=FUNCTION)]
Weight = Annotated[
    float,
    BeforeValidator(lambda value: float(value) if type(value) is int and abs(value) < 2**1000 else value),
    Field(strict=True, allow_inf_nan=False),
]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Sourced(_Record):
    """What may lie in a file; its hash is that of the moment at which the configuration was read."""

    sha256: str = Field(default="", description="of the file; filled in by rewardgrid, not by hand")

    @model_validator(mode="before")
    @classmethod
    def _hashed(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("sha256") and isinstance(values.get("python"), str):
            file, _, function = values["python"].rpartition(":")
            path = Path(file)
            if file.endswith(".py"):
                if fix := _missing(path, function):
                    raise PydanticCustomError("conflict", "no such function", {"conflicts": [("python", fix)]})
                return values | {"sha256": sha256(path)}
        return values


def _missing(path: Path, function: str) -> str | None:
    """What is wrong with a place, as far as can be told without running the file; None if nothing is."""
    try:
        if not path.is_file():
            return f"no such file ({path}); write FILE.py:FUNCTION, as seen from where rewardgrid is run"
        tree = ast.parse(path.read_bytes())
        made = set(_names(tree.body))
        called = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
        if {"*", "__getattr__"} & made or called & _MAKERS:
            return None  # what makes names while it runs may make this one
    except SyntaxError as error:
        return f"{path} is no Python: {error.msg} (line {error.lineno}); mend it there"
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        return f"{path} cannot be read ({str(error)[:100]}); mend it there"
    if function not in made:
        hint = did_you_mean(function, made) or (f" it defines: {', '.join(sorted(made))}" if made else "")
        return f"{path} has no function {function};{hint or ' write one of this name there'}"
    own = [each for each in tree.body if getattr(each, "name", None) == function]
    return _unfit(own[-1], function) if own else None


_MAKERS = {"globals", "locals", "vars", "exec", "eval", "setattr"}


def _names(body: Sequence[ast.stmt]) -> Iterator[str]:
    """The names that statements give to something, those of a function's inside excepted; ``*`` for any."""
    for each in body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield each.name
            continue
        if isinstance(each, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in each.names)
        for part in ast.iter_child_nodes(each):
            if isinstance(part, ast.stmt):
                yield from _names([part])
            elif isinstance(part, ast.ExceptHandler | ast.match_case):
                yield from _names(part.body)
            else:
                inside = (node for node in ast.walk(part) if isinstance(node, ast.Name))
                yield from (node.id for node in inside if isinstance(node.ctx, ast.Store))


def _unfit(own: ast.stmt, name: str) -> str | None:
    """Why a function cannot be called for a batch; None if it can, or is none that was written with def."""
    if isinstance(own, ast.AsyncFunctionDef):
        return f"{name} is async; write def, without async"
    if not isinstance(own, ast.FunctionDef) or own.decorator_list:
        return None
    taken = own.args
    in_order = [*taken.posonlyargs, *taken.args]
    wanted = in_order[: len(in_order) - len(taken.defaults)]
    wanted += [each for each, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if default is None]
    odd = [each.arg for each in wanted if each.arg not in GIVEN or each in taken.posonlyargs]
    if odd:
        return f"{name} takes {', '.join(odd)}, which nobody gives; write some of {', '.join(GIVEN)}, by name"
    inside = [node for node in ast.walk(own) if not isinstance(node, ast.Lambda)]
    nested = any(isinstance(node, ast.FunctionDef) for node in inside if node is not own)
    if not nested and any(isinstance(node, ast.Yield | ast.YieldFrom) for node in inside):
        return f"{name} is a generator; return a list"
    return None


class OwnFunction(_Sourced):
    """A function in a file on this machine."""

    python: Place = Field(description="FILE.py:FUNCTION, the file as seen from where rewardgrid is run")


class OwnReward(_Sourced):
    """A reward: a function, or a weighted sum of other rewards."""

    python: Place | None = Field(
        default=None, description="FILE.py:FUNCTION, the file as seen from where rewardgrid is run"
    )
    sum: tuple[str, ...] = Field(default=(), description="rewards that are added up, instead of a function")
    reward_weights: tuple[Weight, ...] = Field(
        default=(), description="what each of them is multiplied by (default: 1, as in TRL)"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        conflicts = []
        if (self.python is None) == (not self.sum):
            conflicts.append(("python", "write either python: FILE.py:FUNCTION or sum: [REWARD, REWARD]"))
        if self.reward_weights and len(self.reward_weights) != len(self.sum):
            conflicts.append(("reward_weights", f"write one number for each reward of sum ({len(self.sum)})"))
        if conflicts:
            raise PydanticCustomError("conflict", "no reward", {"conflicts": conflicts})
        return self


class Code(_Record):
    """What a cell holds of a reward or detector of one's own; all but ``file`` is part of the cell's identity.

    Attributes:
        name: in the configuration.
        file: where the source lay when the configuration was read.
        function, sha256: its name in there, and the hash of the whole file.
        parts: instead of a function, (reward, weight) of each term of a sum.
    """

    name: str
    file: str = ""
    function: str = ""
    sha256: str = ""
    parts: tuple[tuple[str, float], ...] = ()


def code_of(name: str, own: OwnFunction | OwnReward) -> Code:
    """A definition of the configuration as cells hold it."""
    if own.python is None:
        assert isinstance(own, OwnReward)
        weights = own.reward_weights or (1.0,) * len(own.sum)
        return Code(name=name, parts=tuple(zip(own.sum, weights, strict=True)))
    file, _, function = own.python.rpartition(":")
    return Code(name=name, file=file, function=function, sha256=own.sha256)
