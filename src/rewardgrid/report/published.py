"""The published study's figures and claims, read from ``config/published`` and checked."""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from rewardgrid.study.cell import Cell, EvalMode, Strict
from rewardgrid.study.errors import ConfigError, Problem, did_you_mean
from rewardgrid.study.problems import fixes
from rewardgrid.study.study import FindingName, read_yaml

BASE = "SimpleStories-1.25M"
"""The base of the published runs."""

_ROUTING: dict[str, Any] = {
    "method": "routing",
    "reward": "sentence_length_10_smooth_with_happy",
    "rank": 32,
    "lr": 3e-4,
    "beta": 0.05,
    "batch_size": 128,
    "max_steps": 100,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "reward_sweep": {"method": "full", "beta": (0.003, 0.01, 0.02), "repetition_penalty": (1.05, 1.1)},
    "exact_match": {
        "method": "full",
        "reward": ("sentence_length_10", "sentence_length_5"),
        "repetition_penalty": 1.2,
    },
    "lora_rank": {"method": "lora", "rank": (1, 2, 4, 8, 16, 32, 64), "lr": (3e-4, 1e-4, 3e-5, 1e-5)},
    "batch_size": {"method": "lora", "rank": (1, 2, 4, 8), "lr": (3e-4, 1e-4), "batch_size": (32, 64, 128)},
    "routing_baseline": {**_ROUTING, "method": "lora", "rank": 64, "max_steps": 200},
    "routing_symmetric": _ROUTING,
    "routing_imperfect": {**_ROUTING, "routing_frac": 0.2, "max_steps": 400},
    "routing_low_rank": {**_ROUTING, "rank": (4, 1), "forget_rank": (4, 1), "max_steps": 400},
    "routing_asymmetric": {**_ROUTING, "forget_rank": (16, 4, 1)},
    "routing_label_noise": {**_ROUTING, "label_noise_frac": 0.1, "max_steps": 400},
}
"""What the cells of each published experiment share beyond the defaults of ``Cell``, which are the published
ones too. A tuple holds alternatives."""

UNPUBLISHED = frozenset(
    [
        "seed",
        "base",
        "base_recipe",
        "prompt_eos",
        "max_grad_norm",
        "kl_cap",
        "eval_every",
        "eval_samples",
        "eval_modes",
        "engine",
        "precision",
        "results_version",
    ]
)
"""Spec fields that do not decide whether a cell is a published one. Seeds are samples, the base is named
beside each figure, and the others were not part of what was published."""


def is_published(row: Mapping[str, Any], experiment: str) -> bool:
    """Whether a cell's settings are those of a published experiment."""
    return all(
        row[name] in value if isinstance(value, tuple) else row[name] == value
        for name, value in _published_spec(experiment).items()
        if name not in UNPUBLISHED
    )


@functools.cache
def _published_spec(experiment: str) -> Mapping[str, Any]:
    """The whole spec of a published experiment's cells; a tuple holds alternatives."""
    wanted = SETTINGS[experiment]
    one = Cell(**{name: value[0] if isinstance(value, tuple) else value for name, value in wanted.items()})
    return one.model_dump(mode="json") | wanted


class Statement(Strict):
    """Something the published study says about one of its experiments."""

    id: str
    experiment: str


class Claim(Statement):
    """A statement outside the published tables. Ranges are inclusive; ``steps`` is a window of steps."""

    where: dict[str, Any] = Field(default_factory=dict)
    metric: Literal["reward", "kl", "sl10", "happy"] | None = None
    mode: EvalMode | None = None
    steps: tuple[int, int] | None = None
    mean: float | None = None
    range: tuple[float, float] | None = None
    about: float | None = None
    from_about: float | None = None
    verdict: Literal["ok", "borderline", "degenerate"] | None = None
    unique_first_sentences: float | None = None
    jaccard: float | None = None
    zero_from_step: tuple[int, int] | None = None
    collapses_to: float | None = None
    by_step: int | None = None
    finding: FindingName | None = None
    threshold: float | None = None
    value: dict[str, Any] | None = None
    table: str | None = None
    note: str | None = None


class Check(Strict):
    """How a relation is checked: the order of a metric's means, or the largest difference that is allowed."""

    metric: Literal["reward", "kl"]
    by: str
    direction: Literal["decreasing", "increasing"] | None = None
    max_abs_effect: Annotated[float, Field(ge=0)] | None = None


class Relation(Statement):
    """A statement that should hold on any base."""

    says: str
    check: Check | None = None


class Claims(Strict):
    """``claims.yaml``."""

    claims: tuple[Claim, ...]
    relations: tuple[Relation, ...]


@dataclass(frozen=True)
class Published:
    """All of it: CSV file name -> rows (column -> number, text, or None where empty), claims, relations."""

    tables: Mapping[str, list[dict[str, Any]]]
    claims: tuple[Claim, ...] = ()
    relations: tuple[Relation, ...] = ()


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    return int(text)


def _verdict(text: str) -> str:
    if text not in ("ok", "borderline", "degenerate"):
        raise ValueError(text)
    return text


class HappyAtEnd(NamedTuple):
    """retain_only's "happy" in the asymmetric table: 0 from a step on, or a range at a step."""

    zero: bool
    step: int
    low: float = 0.0
    high: float = 0.0


_HAPPY = re.compile(r"(?:0 from|(?P<low>[\d.]+)(?:-(?P<high>[\d.]+))? at) step (?P<step>\d+)")


def happy_at_end(text: str) -> HappyAtEnd:
    """Read ``0 from step 70``, ``0.1 at step 100`` or ``0.5-1.1 at step 100``.

    Raises:
        ValueError: it is none of these.
    """
    match = _HAPPY.fullmatch(text)
    if match is None:
        raise ValueError(text)
    step, low = int(match["step"]), match["low"]
    if low is None:
        return HappyAtEnd(zero=True, step=step)
    return HappyAtEnd(zero=False, step=step, low=float(low), high=float(match["high"] or low))


def _happy(text: str) -> str:
    happy_at_end(text)
    return text


_EXPECTED = {
    _number: "a number",
    _whole: "a whole number",
    _verdict: "ok, borderline or degenerate",
    _happy: "0 from step N, or X at step N, or X-Y at step N",
    str: "text",
}

CSV_COLUMNS: dict[str, dict[str, Callable[[str], Any]]] = {
    "reward_sweep.csv": {
        "beta": _number, "repetition_penalty": _number, "seed": _whole, "reward": _number, "jaccard": _number,
        "kl": _number, "verdict": _verdict, "note": str,
    },
    "lora_rank.csv": {
        "rank": _whole, "lr": _number, "seed": _whole, "reward": _number, "unique_first_sentences": _whole,
        "jaccard": _number, "verdict": _verdict, "note": str,
    },
    "lora_rank_summary.csv": {"rank": _whole, "lr": _number, "reward_mean": _number, "kl": _number},
    "batch_size.csv": {
        "rank": _whole, "lr": _number, "batch_size": _whole, "seconds_to_0.85": _number,
        "seconds_to_0.95": _number, "final_reward": _number, "verdict": _verdict, "note": str,
    },
    "routing_asymmetric.csv": {
        "retain_rank": _whole, "forget_rank": _whole, "seed": _whole, "retain_sl10_low": _number,
        "retain_sl10_high": _number, "retain_happy": _happy, "forget_happy_low": _number,
        "forget_happy_high": _number, "note": str,
    },
}  # fmt: skip
"""The published tables, and how each of their columns is read. An empty field is no figure."""

REQUIRED = frozenset(
    {"beta", "repetition_penalty", "seed", "rank", "lr", "batch_size", *CSV_COLUMNS["routing_asymmetric.csv"]}
) - {"note"}
"""Columns in which every row must have something."""


def load_published(directory: Path | str) -> Published:
    """Read and check the published figures.

    Raises:
        ConfigError: every problem of the CSV files, or else of ``claims.yaml``: file, row and column or key.
    """
    directory = Path(directory)
    problems: list[Problem] = []
    tables = {name: list(_csv_rows(directory / name, kinds, problems)) for name, kinds in CSV_COLUMNS.items()}
    if problems:
        raise ConfigError(problems)
    path = directory / "claims.yaml"
    try:
        claims = Claims.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(
            [Problem(str(path), ".".join(map(str, place)), read, fix) for place, read, fix in fixes(Claims, error)]
        ) from None
    problems.extend(_claim_problems(path, claims))
    if problems:
        raise ConfigError(problems)
    return Published(tables, claims.claims, claims.relations)


def _csv_rows(
    path: Path, kinds: Mapping[str, Callable[[str], Any]], problems: list[Problem]
) -> Iterator[dict[str, Any]]:
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
    except FileNotFoundError:
        problems.append(Problem(str(path), "(file)", None, "no such file; check `published`"))
        return
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(str(path), "(file)", str(error), "write valid CSV in UTF-8"))
        return
    if lines[:1] != [list(kinds)]:
        problems.append(Problem(str(path), "line 1", lines[:1], f"write the columns {', '.join(kinds)}"))
        return
    for number, texts in enumerate(lines[1:], start=1):
        if len(texts) != len(kinds):
            problems.append(Problem(str(path), f"row {number}", texts, f"write {len(kinds)} fields"))
            continue
        row: dict[str, Any] = {}
        for (column, kind), text in zip(kinds.items(), texts, strict=True):
            try:
                row[column] = kind(text) if text or column in REQUIRED else None
            except ValueError:
                problems.append(Problem(str(path), f"row {number}, {column}", text, f"write {_EXPECTED[kind]}"))
        yield row


def _claim_problems(path: Path, claims: Claims) -> Iterator[Problem]:
    both: tuple[tuple[str, tuple[Statement, ...]], ...] = (
        ("claims", claims.claims),
        ("relations", claims.relations),
    )
    for kind, statements in both:
        seen: set[str] = set()
        for number, statement in enumerate(statements):
            place = f"{kind}.{number}"
            if statement.id in seen:
                yield Problem(str(path), f"{place}.id", statement.id, "stands twice; give it another id")
            seen.add(statement.id)
            if statement.experiment not in SETTINGS:
                hint = did_you_mean(statement.experiment, SETTINGS)
                yield Problem(
                    str(path),
                    f"{place}.experiment",
                    statement.experiment,
                    f"write one of {', '.join(SETTINGS)};{hint}",
                )
    for number, claim in enumerate(claims.claims):
        for key in set(claim.where) - set(Cell.model_fields):
            hint = did_you_mean(key, Cell.model_fields)
            yield Problem(str(path), f"claims.{number}.where", key, f"write a spec field;{hint}")
        if claim.table is not None and claim.table not in CSV_COLUMNS:
            yield Problem(str(path), f"claims.{number}.table", claim.table, f"write one of {', '.join(CSV_COLUMNS)}")
        if claim_kind(claim) is None:
            yield Problem(
                str(path),
                f"claims.{number}",
                claim.id,
                "says nothing that can be checked; write verdict, finding, table, or a metric with mean, "
                "range, about, zero_from_step, or collapses_to and by_step",
            )
    for number, relation in enumerate(claims.relations):
        check, place = relation.check, f"relations.{number}"
        if check is None:
            if relation.id not in NAMED_RELATIONS:
                hint = did_you_mean(relation.id, NAMED_RELATIONS)
                yield Problem(str(path), f"{place}.id", relation.id, f"has no rule; give it a check;{hint}")
            continue
        if check.by not in Cell.model_fields:
            hint = did_you_mean(check.by, Cell.model_fields)
            yield Problem(str(path), f"{place}.check.by", check.by, f"write a spec field;{hint}")
        if (check.direction is None) == (check.max_abs_effect is None):
            read = check.model_dump(exclude_none=True)
            yield Problem(str(path), f"{place}.check", read, "write one of direction and max_abs_effect")


NAMED_RELATIONS = (
    "low-beta-degenerates",
    "exact-is-harder",
    "smallest-rank-works",
    "too-low-lr",
    "capacity-times-lr",
    "batch-slower",
    "routing-removes-hack",
    "routing-imperfect-ok",
    "routing-low-rank-collapses",
    "routing-forget-rank-free",
    "routing-noise-sensitive",
)
"""The relations that have a rule of their own and need no ``check``."""

ClaimKind = Literal["table", "finding", "verdict", "zero_from", "collapse", "value"]


CLAIMED_FINDINGS: tuple[FindingName, ...] = ("smallest_passing", "lr_ratio_to_full", "slower_than_baseline")
"""The findings that a claim can be about."""


def claim_kind(claim: Claim) -> ClaimKind | None:
    """What a claim is about; None if it says nothing that can be checked."""
    if claim.table is not None:
        return "table"
    if claim.finding is not None:
        return "finding" if claim.finding in CLAIMED_FINDINGS else None
    if claim.verdict is not None:
        return "verdict"
    if claim.metric is None:
        return None
    if claim.zero_from_step is not None:
        return "zero_from"
    if claim.collapses_to is not None:
        return "collapse" if claim.by_step is not None else None
    if claim.mean is not None or claim.range is not None or claim.about is not None:
        return "value"
    return None
