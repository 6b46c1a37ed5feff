"""Claims as ``claims.yaml`` states them: one of many kinds, each of which judges itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from rewardgrid.published.data import CSV_COLUMNS
from rewardgrid.published.figure_claims import Level, Note, Outlier, Reason, Rows, Seeds, Throughout, Together, Verdicts
from rewardgrid.published.judging import Judgement, Ours
from rewardgrid.published.replica import SETTINGS
from rewardgrid.published.reward_claims import (
    Beside,
    Boundary,
    Climb,
    Contrast,
    Ends,
    Grows,
    LrRatio,
    Members,
    Negligible,
    NeverSooner,
    Order,
    Passes,
    SmallestRank,
    TooLow,
)
from rewardgrid.published.routing_claims import Collapse, Gone, Lost, Works
from rewardgrid.report.finding import Window
from rewardgrid.study.cell import Cell, Strict
from rewardgrid.study.errors import ConfigError, Problem, did_you_mean
from rewardgrid.study.layers import read_yaml
from rewardgrid.study.problems import fixes
from rewardgrid.study.shipped import shipped

Claim = Annotated[
    Level
    | Throughout
    | Verdicts
    | Reason
    | Seeds
    | Outlier
    | Rows
    | Together
    | Note
    | Order
    | Negligible
    | Contrast
    | Beside
    | Ends
    | Grows
    | Boundary
    | Members
    | SmallestRank
    | Passes
    | TooLow
    | LrRatio
    | NeverSooner
    | Climb
    | Gone
    | Collapse
    | Works
    | Lost,
    Field(discriminator="kind"),
]
"""Every kind of claim."""


class Claims(Strict):
    """``claims.yaml``; its answers are to the questions of experiments."""

    answers: dict[str, str] = Field(default_factory=dict)
    claims: tuple[Claim, ...]
    relations: tuple[Claim, ...]


def load_claims(directory: Path | str) -> Claims:
    """Read and check ``claims.yaml``.

    Raises:
        ConfigError: every problem: key, what was read and what to write.
    """
    path = shipped(directory) / "claims.yaml"
    try:
        found = Claims.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(
            [Problem(str(path), _place(place), read, fix) for place, read, fix in fixes(Claims, error)]
        ) from None
    problems = [
        Problem(str(path), f"{part}.{place}", read, fix)
        for part in ("claims", "relations")
        for place, read, fix in _problems(getattr(found, part))
    ]
    problems += [
        Problem(
            str(path), f"answers.{name}", name, f"write one of {', '.join(SETTINGS)};{did_you_mean(name, SETTINGS)}"
        )
        for name in found.answers
        if name not in SETTINGS
    ]
    if problems:
        raise ConfigError(problems)
    return found


def _place(location: tuple[str | int, ...]) -> str:
    """A location without the kind of the claim, which pydantic adds to it."""
    return ".".join(map(str, location[:2] + location[3:] if len(location) > 3 else location))


def _problems(claims: Sequence[Claim]) -> Iterator[tuple[str, object, str]]:
    """(place, what was read, what to write) of what no single claim can tell of itself."""
    seen: set[str] = set()
    for number, claim in enumerate(claims):
        if claim.id in seen:
            yield f"{number}.id", claim.id, "stands twice; give it another id"
        seen.add(claim.id)
        for key in ("experiment", "other"):
            name = getattr(claim, key, None)
            if name is not None and name not in SETTINGS:
                yield f"{number}.{key}", name, f"write one of {', '.join(SETTINGS)};{did_you_mean(name, SETTINGS)}"
        fields = [*claim.where, *getattr(claim, "other_where", ()), *([claim.by] if hasattr(claim, "by") else [])]
        for field in fields:
            if field not in Cell.model_fields:
                yield f"{number}", field, f"write a spec field;{did_you_mean(field, Cell.model_fields)}"
        if isinstance(claim, Rows) and claim.table not in CSV_COLUMNS:
            yield f"{number}.table", claim.table, f"write one of {', '.join(CSV_COLUMNS)}"
        if isinstance(claim, Together):
            for part in claim.of:
                if part not in seen - {claim.id}:
                    yield f"{number}.of", part, "name claims that stand before this one"


def windows(claims: Sequence[Claim], experiment: str) -> tuple[Window, ...]:
    """The stretches of steps that claims about an experiment speak of."""
    found = [
        Window(claim.metric, *claim.steps, claim.mode)
        for claim in claims
        if isinstance(claim, (Level, Throughout)) and claim.experiment == experiment and claim.steps is not None
    ]
    return tuple(dict.fromkeys(found))


def judge_all(claims: Sequence[Claim], ours: Ours) -> dict[str, Judgement]:
    """What becomes of each claim, by its id."""
    judged: dict[str, Judgement] = {}
    for claim in claims:
        judged[claim.id] = claim.judge(dataclasses.replace(ours, judged=judged))
    return judged
