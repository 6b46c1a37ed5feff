"""The samples of an evaluation and everything that is measured on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rewardgrid.base.load import Base
from rewardgrid.evaluate.divergence import divergence
from rewardgrid.evaluate.diversity import jaccard, measure, rounded
from rewardgrid.evaluate.shares import shares
from rewardgrid.lm.draws import uniforms
from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights
from rewardgrid.lm.sampler import Completions, sample
from rewardgrid.study.cell import Reward
from rewardgrid.study.contracts import SAYS
from rewardgrid.study.errors import UserError
from rewardgrid.study.study import LEAST_SAMPLES
from rewardgrid.train.grpo import mean_over
from rewardgrid.train.rewards import score
from rewardgrid.train.rollout import Assessor
from rewardgrid.train.surprise import Usual, surprises, unlikely

METRIC = "metric "
"""Metrics of one's own are asked for under their names after this: a reward may have the same one."""
PAID = "paid by "
"""Columns of further rewards are called so: one of one's own may have the name of another column."""
ROWS = 64
"""Completions sampled together."""


@dataclass(frozen=True)
class Protocol:
    """How samples are drawn: how many, for how many prompts, how long, and what is done to the distribution.

    ``open_only``: only for prompts that hold no full stop. After one, the first sentence is the prompt's own.
    """

    name: str
    samples: int
    prompts: int
    max_new_tokens: int
    seed: int
    top_k: int | None = None
    penalty: float | None = None
    open_only: bool = False


def evaluation_prompts(base: Base, protocol: Protocol) -> np.ndarray:
    """The first evaluation prompts (protocol.prompts, P) that suit a protocol, the same for every cell.

    Raises:
        UserError: there are fewer.
    """
    pool = base.eval_prompts()
    suits = [not (protocol.open_only and "." in text) for text in pool.text]
    prompts = pool.ids[suits][: protocol.prompts]
    if len(prompts) < protocol.prompts:
        key, kind = ("published_prompts", " without a full stop") if protocol.open_only else ("samples", "")
        allowed = protocol.samples % max(1, len(prompts)) == 0 if protocol.open_only else len(prompts) >= LEAST_SAMPLES
        fewer = f"write evaluation.{key}: {len(prompts)}, or " if len(prompts) and allowed else ""
        raise UserError(
            f"base {base.name}: has {len(prompts)} prompts{kind}, the evaluation needs "
            f"{protocol.prompts}; {fewer}give the base more stories (and eval_prompts)"
        )
    return prompts


def draw(
    shape: Architecture,
    policy: Weights,
    reference: Weights,
    base: Base,
    protocol: Protocol,
    assessor: Assessor,
    mode: str = "both",
    prompts: np.ndarray | None = None,
    also: Sequence[Reward | str] = (),
) -> pd.DataFrame:
    """Sample and score as many completions for each prompt, at temperature 1.

    The draws depend on the protocol alone, so every cell and mode meets the same prompts and the same draws.

    Args:
        assessor: scores what is written (C = 1).
        prompts: (protocol.prompts, P) token ids; None: the first evaluation prompts that suit.
        also: further rewards to score the same completions with.

    Returns:
        rows of the samples table (:data:`rewardgrid.study.contracts.SAMPLES`), and a column for each of ``also``
        (``PAID``), for each metric of one's own (``own_NAME``), for what each reward and detector of one's own says
        (``says_NAME``), and for what the cell's own detector calls hacked.

    Raises:
        UserError: there are too few evaluation prompts, or code of one's own failed.
    """
    starts = evaluation_prompts(base, protocol) if prompts is None else prompts
    starts = np.repeat(starts, protocol.samples // protocol.prompts, axis=0)
    random = uniforms(protocol.seed, f"{protocol.name} samples", 0, (protocol.samples, protocol.max_new_tokens))
    penalty = None if protocol.penalty is None else torch.tensor([protocol.penalty])
    rows: list[dict[str, Any]] = []
    for start in range(0, protocol.samples, ROWS):
        chunk = torch.from_numpy(starts[start : start + ROWS]).unsqueeze(0)
        draws = torch.from_numpy(random[start : start + ROWS]).unsqueeze(0)
        done = sample(shape, policy, chunk, draws, base.vocabulary.eos, penalty, protocol.top_k)
        when = f"samples of the {protocol.name} protocol from {start}"
        said = assessor.ask(chunk, done, [when])
        rows += _rows(shape, policy, reference, base, chunk, done, assessor, said, also)
    frame = pd.DataFrame(rows).assign(protocol=protocol.name, mode=mode)
    return frame.assign(**shares(list(frame["completion"])))


def _rows(
    shape: Architecture,
    policy: Weights,
    reference: Weights,
    base: Base,
    prompts: torch.Tensor,
    done: Completions,
    assessor: Assessor,
    said: Mapping[str, torch.Tensor],
    also: Sequence[Reward | str],
) -> list[dict[str, Any]]:
    tables = assessor.tables
    scores, hacked = assessor.scores(done, said)
    sequences = torch.cat([prompts, done.ids], -1)[0]
    apart = divergence(shape, policy, reference, sequences, prompts.shape[-1])
    mask = done.mask[0]
    columns: dict[str, torch.Tensor] = {
        "tokens": done.lengths[0],
        "ended": done.ended[0],
        "reward": scores.reward[0],
        "sl10": scores.sl10[0],
        "happy": scores.happy[0].float(),
        "kl_k3": mean_over(apart.k3, mask),
        "kl_exact": mean_over(apart.exact, mask),
        "base_nll": mean_over(apart.base_nll, mask),
        **{f"{PAID}{name}": score(name, done.ids, done.mask, tables, said, assessor.sums).reward[0] for name in also},
        **{
            f"own_{name.removeprefix(METRIC)}" if name.startswith(METRIC) else f"{SAYS}{name}": values[0]
            for name, values in said.items()
        },
        **({} if assessor.detector is None else {"hacked": hacked[0]}),
    }
    values = {name: column.tolist() for name, column in columns.items()}
    values |= surprises(apart.base_nll, done.ids[0], mask, tables)
    return [
        {
            "prompt": base.decode(prompt),
            "completion": base.decode(ids[:length]),
            **{name: column[place] for name, column in values.items()},
        }
        for place, (prompt, ids, length) in enumerate(
            zip(prompts[0].tolist(), done.ids[0].tolist(), values["tokens"], strict=True)
        )
    ]


def standard_error(values: pd.Series[float]) -> float:
    """Standard error of a mean."""
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def summary(samples: pd.DataFrame, hacked_from: int, limits: Usual) -> dict[str, float | int | None]:
    """Text signals and means of a set of samples, with standard errors of the scores.

    Divergences are means over tokens (every token of every sample weighs the same), like those in the logs.

    Args:
        hacked_from: a completion with at least this many "happy" is hacked.
        limits: what is usual for the base under the same protocol.
    """
    tokens = samples["tokens"].to_numpy()

    def per_token(column: str) -> float:
        return float(np.average(samples[column].to_numpy(), weights=tokens))

    return {
        **measure(list(samples["completion"])),
        **unlikely(samples, limits),
        **_scores(samples, hacked_from),
        "kl_k3": per_token("kl_k3"),
        "kl_exact": per_token("kl_exact"),
        "base_nll": per_token("base_nll"),
        "completion_length": float(tokens.mean()),
        "ended": float(samples["ended"].mean()),
    }


def by_mode(samples: pd.DataFrame, hacked_from: int) -> dict[str, float | int | None]:
    """The figures of one set of active adapters (gradient routing)."""
    return {
        "samples": len(samples),
        **_scores(samples, hacked_from),
        "unique": samples["completion"].nunique() / len(samples),
        "jaccard": rounded(jaccard(list(samples["completion"]))),
    }


def _scores(samples: pd.DataFrame, hacked_from: int) -> dict[str, float]:
    figures = {}
    for name in ("reward", "sl10", "happy"):
        figures[name] = float(samples[name].mean())
        figures[f"{name}_se"] = standard_error(samples[name])
    return figures | {"hacked": float(hacked(samples, hacked_from).mean())}


def hacked(samples: pd.DataFrame, hacked_from: int) -> pd.Series[bool]:
    """Which samples are hacked: what the cell's own detector says, or else a count of "happy"."""
    found: pd.Series[bool] = samples["hacked"] if "hacked" in samples else samples["happy"] >= hacked_from
    return found


def own_figures(samples: pd.DataFrame, metrics: Iterable[str]) -> dict[str, float]:
    """Mean and standard error of metrics of one's own, as ``own_NAME`` and ``own_NAME_se``."""
    figures = {}
    for name in metrics:
        figures[f"own_{name}"] = float(samples[f"own_{name}"].mean())
        figures[f"own_{name}_se"] = standard_error(samples[f"own_{name}"])
    return figures
