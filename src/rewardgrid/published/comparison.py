"""Everything published beside ours: table rows, claims, relations, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from rewardgrid.published.claims import Claim, judge_all, load_claims
from rewardgrid.published.data import Tables, load_tables
from rewardgrid.published.judging import Answer, Judgement, Ours
from rewardgrid.published.relations import judge_relations
from rewardgrid.published.replica import is_published, replica
from rewardgrid.published.rows import ComparedRow, compare_rows, seed_spreads
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.pace import paces
from rewardgrid.study.errors import all_of


@dataclass(frozen=True)
class Published:
    """The published study: tables, claims, relations that should hold on any base, answers in short by experiment."""

    tables: Tables
    claims: tuple[Claim, ...]
    relations: tuple[Claim, ...]
    answers: Mapping[str, str] = field(default_factory=dict)


def load_published(directory: Path | str) -> Published:
    """Read and check the published study.

    Raises:
        ConfigError: every problem of the tables and the claims.
    """
    tables, stated = all_of(lambda: load_tables(directory), lambda: load_claims(directory))
    return Published(tables, stated.claims, stated.relations, stated.answers)


class ComparedClaim(TypedDict):
    """A claim or a relation; ``cells`` of ours stand behind its answer, ``p`` is that of chance."""

    id: str
    experiment: str
    published: str
    ours: str
    answer: Answer
    cells: int
    p: float | None


class Comparison(TypedDict):
    """Everything published, beside ours on one base; ``answers`` are those of experiments that have its settings."""

    base: str
    answers: dict[str, str]
    rows: list[ComparedRow]
    claims: list[ComparedClaim]
    relations: list[ComparedClaim]


def compare(published: Published, evidence: Evidence, base: str) -> Comparison:
    """Set the published study beside ours.

    Args:
        published: tables, claims, relations.
        evidence: ours.
        base: name of the base whose cells rows and claims are compared with; relations are judged on any.
    """
    ours = replica(evidence, base)
    rows = compare_rows(published.tables, ours, seed_spreads(published.tables, ours))
    answers: dict[str, list[Answer]] = {}
    for row in rows:
        answers.setdefault(row["table"], []).append(row["answer"])
    claims = judge_all(published.claims, Ours(ours, published.tables, answers, paces=paces(evidence)))
    return Comparison(
        base=base,
        answers={
            name: answer
            for name, answer in published.answers.items()
            if any(is_published(row, name) for row in evidence.tables.get(name, ()))
        },
        rows=rows,
        claims=_compared(published.claims, claims),
        relations=_compared(published.relations, judge_relations(published.relations, evidence)),
    )


def _compared(claims: Sequence[Claim], judged: Mapping[str, Judgement]) -> list[ComparedClaim]:
    return [
        ComparedClaim(
            id=claim.id,
            experiment=claim.experiment,
            published=claim.says(),
            ours=judged[claim.id].ours,
            answer=judged[claim.id].answer,
            cells=len({row["cell"] for row in judged[claim.id].cells}),
            p=judged[claim.id].p,
        )
        for claim in claims
    ]
