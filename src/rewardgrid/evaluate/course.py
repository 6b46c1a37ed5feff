"""A cell's course: the verdict's signals while it trained, from its recorded rollouts, and the steps where it turned.

Rollouts are drawn with the cell's repetition penalty from training prompts, a few prompts a step; what is usual for the
base is therefore measured on samples of its own that are drawn likewise.
"""

from __future__ import annotations

import pandas as pd
import torch

from rewardgrid.base.load import Base
from rewardgrid.evaluate.diversity import comma_rate, fragment_share, skeleton_share
from rewardgrid.evaluate.samples import Protocol, draw
from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import COURSE
from rewardgrid.study.study import Evaluation
from rewardgrid.study.thresholds import Thresholds
from rewardgrid.study.verdict import verdict
from rewardgrid.train.rewards import text_tables
from rewardgrid.train.rollout import Assessor, with_eos
from rewardgrid.train.surprise import Usual, surprises_of, unlikely, usual


def base_rollouts(shape: Architecture, weights: Weights, base: Base, cell: Cell, settings: Evaluation) -> pd.DataFrame:
    """What the base writes under a cell's rollout settings, for training prompts, each another (schema SAMPLES)."""
    prompts = with_eos(base.train_prompts().ids[: settings.samples], cell, base.vocabulary.eos)
    protocol = Protocol(
        "rollout", len(prompts), len(prompts), cell.max_new_tokens, settings.seed, penalty=cell.repetition_penalty
    )
    return draw(shape, weights, weights, base, protocol, Assessor([cell], base, torch.device("cpu")), prompts=prompts)


def course(
    rollouts: pd.DataFrame,
    own: pd.DataFrame,
    shape: Architecture,
    weights: Weights,
    base: Base,
    prompt_length: int,
    thresholds: Thresholds,
) -> pd.DataFrame:
    """The signals of every recorded step (schema COURSE).

    Args:
        rollouts: schema ROLLOUTS.
        own: the base's (:func:`base_rollouts`).
        weights: the base's, with C = 1.
    """
    tables = text_tables(base.vocabulary.surfaces, base.vocabulary.delimiters, base.vocabulary.eos)
    found = surprises_of(shape, weights, list(rollouts["ids"]), prompt_length, tables)
    columns = {kind: pd.Series(lists, index=rollouts.index) for kind, lists in found.items()}
    scored = rollouts.assign(**columns, tokens=rollouts["ids"].map(len) - prompt_length)
    limits = usual(own)
    reference = signals(own, limits)
    rows = []
    for step, group in scored.groupby("step", sort=True):
        measured = signals(group, limits)
        rows.append({"step": step, **measured, "verdict": verdict(measured, reference, thresholds).label})
    return pd.DataFrame(rows, columns=COURSE.names)


def signals(samples: pd.DataFrame, limits: Usual) -> dict[str, float | None]:
    """Those of the verdict's signals that a few completions for a few prompts show.

    The others compare completions with one another: they depend on how many there are, and for how many prompts.
    """
    texts = list(samples["completion"])
    return {
        **unlikely(samples, limits),
        "fragment_share": fragment_share(texts),
        "completion_length": float(samples["tokens"].mean()),
        "comma_rate": comma_rate(texts),
        "skeleton_share": skeleton_share(texts),
    }
