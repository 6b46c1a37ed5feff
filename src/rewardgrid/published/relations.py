"""Relations: claims that should hold on any base, judged on whatever cells their experiment has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rewardgrid.published.claims import Claim, judge_all
from rewardgrid.published.judging import Judgement, Ours
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Question
from rewardgrid.report.pace import paces
from rewardgrid.report.statistics import ALPHA, holm


def judge_relations(relations: Sequence[Claim], evidence: Evidence) -> dict[str, Judgement]:
    """What becomes of each relation, by its id; P is adjusted for having asked them all (Holm), so
    that none of many holds by luck.

    Cells that are only the beginning of a longer run are left out: what it would come to is not known.
    """
    whole = {name: [row for row in table if row["decay_steps"] is None] for name, table in evidence.tables.items()}
    judged = judge_all(relations, Ours(dataclasses.replace(evidence, tables=whole), paces=paces(evidence)))
    adjusted = holm([each.p for each in judged.values()])
    return {name: _adjusted(each, p) for (name, each), p in zip(judged.items(), adjusted, strict=True)}


def adjusted_p(relations: Sequence[Claim], evidence: Evidence) -> dict[str, dict[Question, float]]:
    """The adjusted P of those relations that a finding may ask too, by experiment and question."""
    judged = judge_relations(relations, evidence)
    found: dict[str, dict[Question, float]] = {}
    for claim in relations:
        p = judged[claim.id].p
        if p is not None and claim.question is not None and not claim.where:
            found.setdefault(claim.experiment, {})[claim.question] = p
    return found


def _adjusted(judged: Judgement, p: float | None) -> Judgement:
    unsure = judged.answer == "agrees" and p is not None and p >= ALPHA
    return judged._replace(answer="cannot be told" if unsure else judged.answer, p=p)
