"""Code of one's own in a configuration: rewards, detectors and metrics, named by file and function.

Nothing is imported here: a configuration is read without running anybody's code.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rewardgrid.study.errors import did_you_mean
from rewardgrid.study.files import sha256

Place = Annotated[str, Field(pattern=r"^[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$")]
Weight = Annotated[
    float, BeforeValidator(lambda value: float(value) if type(value) is int else value), Field(strict=True)
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
            if path.suffix == ".py":
                if fix := _missing(path, function):
                    raise PydanticCustomError("conflict", "no such function", {"conflicts": [("python", fix)]})
                return values | {"sha256": sha256(path)}
        return values


def _missing(path: Path, function: str) -> str | None:
    """What is wrong with a place, as far as can be told without running the file; None if nothing is."""
    if not path.is_file():
        return f"no such file ({path}); write FILE.py:FUNCTION, as seen from where rewardgrid is run"
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except SyntaxError as error:
        return f"{path} is no Python: {error.msg} (line {error.lineno}); mend it there"
    except (OSError, ValueError, RecursionError) as error:
        return f"{path} cannot be read ({error}); mend it there"
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    named = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    named |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    named |= {str(node.value) for node in nodes if isinstance(node, ast.Constant)}  # of globals() and the like
    if function in defined | named or "*" in named:
        return None
    hint = did_you_mean(function, defined) or (f" it defines: {', '.join(sorted(defined))}" if defined else "")
    return f"{path} has no function {function};{hint or ' write one of this name there'}"


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
