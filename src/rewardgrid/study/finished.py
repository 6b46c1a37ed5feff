"""What training and evaluation say of a cell that has run: status.json and metrics.json, checked before either counts.

They may come from elsewhere: copied, restored, or edited by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewardgrid.study.cell import METRICS_VERSION
from rewardgrid.study.errors import AGAIN, UserError, quoted
from rewardgrid.study.files import read_json
from rewardgrid.study.text import count
from rewardgrid.study.verdict import Label

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Figures = dict[str, _Number | None]
_Steps = Annotated[int, Field(ge=0)]


class _Said(BaseModel):
    model_config = ConfigDict(strict=True)

    cell: str


class Status(_Said):
    """What must stand in ``train/status.json``; it may hold more."""

    state: Literal["done", "stopped", "diverged"]
    reason: str | None = None
    steps_done: _Steps
    stopped_at: _Steps | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    hardware: str
    versions: dict[str, str]


class Metrics(_Said):
    """What must stand in the ``evaluation/metrics.json`` of a cell or a base; it may hold more."""

    state: Literal["done", "stopped", "diverged", "base"]
    verdict: Label | None
    reasons: list[str]
    evidence: list[dict[str, Any]]
    published: _Figures
    full: _Figures
    top_k: _Figures
    own: _Figures = {}
    onset: dict[str, _Steps | None]
    modes: dict[str, dict[str, Any] | None]

    @model_validator(mode="after")
    def _has_figures(self) -> Self:
        if self.state != "diverged" and not self.full:
            raise ValueError("a run that did not diverge has figures under full")
        if self.state in ("done", "stopped") and self.verdict is None:
            raise ValueError("a run that did not diverge has a verdict")
        return self


def checked(model: type[_Said], found: object, source: str, name: str, remedy: str = AGAIN) -> dict[str, Any]:
    """What was read, if it is of the cell or base ``name`` and of this model.

    Args:
        source: its file, for messages.
        remedy: what helps against one that is something else.

    Raises:
        UserError: it is something else; names the file, the key and what was read.
    """
    if not isinstance(found, dict):
        raise UserError(f"{source}: read {quoted(found)}, which is no JSON object; {remedy}")
    if found.get("cell") != name:
        raise UserError(f"{source}: belongs to cell {found.get('cell')}; {remedy}")
    try:
        model.model_validate(found)
    except ValidationError as error:
        first, *_ = error.errors(include_url=False)
        key = ".".join(map(str, first["loc"])) or "(whole text)"
        read = "nothing" if first["type"] == "missing" else quoted(first["input"]) if first["loc"] else "other keys"
        wrong = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise UserError(f"{source}: {key}: read {read}; {wrong}; {remedy}") from None
    return found


def check_steps(steps: int, history: str, status: Mapping[str, Any], source: str, remedy: str = AGAIN) -> None:
    """Refuse a history of other steps than its run says that it took.

    Args:
        steps: how many rows the history has.
        history: its file, for messages.
        status: what the run says.
        source: the file of that, likewise.
        remedy: as of :func:`checked`.

    Raises:
        UserError: they differ.
    """
    if steps != status["steps_done"]:
        raise UserError(
            f"{history}: holds {count(steps, 'step')}, but {source} says steps_done: {status['steps_done']}; {remedy}"
        )


def read_status(path: Path, name: str) -> dict[str, Any]:
    """What training says of its run of a cell.

    Raises:
        UserError: the file is missing, torn, of another cell, or says something else than a run does.
    """
    return checked(Status, read_json(path, AGAIN), str(path), name)


def read_metrics(path: Path, name: str) -> dict[str, Any]:
    """What evaluation has measured of a cell or a base.

    Raises:
        UserError: as :func:`read_status`; or another version of rewardgrid has measured it.
    """
    found = read_json(path, AGAIN)
    if isinstance(found, dict) and found.get("cell") == name and found.get("version") != METRICS_VERSION:
        raise UserError(
            f"{path}: version: read {found.get('version')!r}, but this rewardgrid measures version "
            f"{METRICS_VERSION}; delete the file and run again: the cell is measured anew, not trained"
        )
    return checked(Metrics, found, str(path), name)
