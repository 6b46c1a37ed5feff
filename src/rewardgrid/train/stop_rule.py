"""``stop_when``: a cell ends before its last step once what it writes has been degenerate for so many steps in a row.

What is asked is what the verdict asks of unlikely text (``docs/verdict.md``), of the completions of each training step:
the shares of windows and of sentence ends that the base finds less likely than 95 % of its own. Its own are drawn once,
when training starts, with the cell's repetition penalty, prompt and length. The likelihoods of a step's completions
under the base are those of the KL, so hardly anything is computed anew; on a GPU all of it is part of the step's graph.

Everything that decides is part of what a cell is, or frozen here: the limits are rewardgrid's own, whatever
``evaluation.thresholds`` of a study are, for these measure cells anew and train none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.draws import uniforms
from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights, token_logps
from rewardgrid.lm.sampler import Completions, sample
from rewardgrid.study.cell import Cell
from rewardgrid.study.thresholds import Thresholds
from rewardgrid.study.verdict import LABELS
from rewardgrid.train.rewards import TextTables, text_tables
from rewardgrid.train.rollout import with_eos
from rewardgrid.train.surprise import KINDS, QUANTILE, places

SAMPLES, SEED = 256, 99
"""Of the base's own completions, each for another training prompt."""
ROWS = 64
"""Of them that are sampled together."""
LIMITS = {"windows": Thresholds().unlikely_windows, "ends": Thresholds().unlikely_ends}


@dataclass(frozen=True)
class Watch:
    """What the base finds unlikely of what each of C cells writes.

    Attributes:
        limits: by kind, (C,) in nats: what 95 % of the base's own windows and ends do not exceed; NaN where it has
            none.
    """

    limits: dict[str, Tensor]
    tables: TextTables

    @classmethod
    def of(cls, cells: Sequence[Cell], base: Base, shape: Architecture, frozen: Weights) -> Watch:
        """Measure the base, once for every penalty among the cells (which agree in all else that matters here).

        Args:
            frozen: the base's weights, with C = 1.
        """
        vocabulary, embed = base.vocabulary, frozen["embed"]
        tables = text_tables(vocabulary.surfaces, vocabulary.delimiters, vocabulary.eos).to(embed.device)
        by_penalty = {cell.repetition_penalty: cell for cell in cells}
        usual = {penalty: _usual(cell, base, shape, frozen, tables) for penalty, cell in by_penalty.items()}
        rows = {kind: [usual[cell.repetition_penalty][kind] for cell in cells] for kind in KINDS}
        return cls(
            {kind: torch.tensor(row, dtype=embed.dtype, device=embed.device) for kind, row in rows.items()}, tables
        )

    def shares(self, reference: Tensor, completions: Completions) -> dict[str, Tensor]:
        """``unlikely_windows`` and ``unlikely_ends`` of each cell, (C,); NaN where there is nothing to count.

        Args:
            reference: (C, B, L) log-probabilities of the completions under the base.
        """
        found = places(-reference, completions.ids, completions.mask, self.tables)
        return {
            f"unlikely_{kind}": ((values > self.limits[kind][:, None, None]) & present).sum((1, 2))
            / present.sum((1, 2))
            for kind, (values, present) in found.items()
        }


@torch.no_grad()
def _usual(cell: Cell, base: Base, shape: Architecture, frozen: Weights, tables: TextTables) -> dict[str, float]:
    """The 95 % quantiles of what the base writes under a cell's rollout settings."""
    prompts = with_eos(base.train_prompts().ids[:SAMPLES], cell, base.vocabulary.eos)
    random = uniforms(SEED, "rollout samples", 0, (len(prompts), cell.max_new_tokens))
    device = frozen["embed"].device
    penalty = torch.tensor([cell.repetition_penalty], device=device)
    seen: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for start in range(0, len(prompts), ROWS):
        starts, draws = (torch.from_numpy(each[start : start + ROWS])[None].to(device) for each in (prompts, random))
        done = sample(shape, frozen, starts, draws, base.vocabulary.eos, penalty)
        nll = -token_logps(shape, frozen, torch.cat([starts, done.ids], -1), prompts.shape[1])
        for kind, (values, present) in places(nll, done.ids, done.mask, tables).items():
            seen[kind].append(values[present].double().cpu())
    every = {kind: torch.cat(parts).numpy() for kind, parts in seen.items()}
    return {kind: float(np.quantile(found, QUANTILE)) if len(found) else math.nan for kind, found in every.items()}


class StopRule:
    """Counts the steps in a row of which a cell's ``stop_when`` holds.

    Attributes:
        held: so many by now. It is all that a resumed run needs to know of them.
    """

    def __init__(self, cell: Cell, held: int = 0) -> None:
        self.when, self.held = cell.stop_when, held

    def after(self, shares: Mapping[str, float]) -> str | None:
        """Why the cell ends with this step, of which ``shares`` are :meth:`Watch.shares`; None: it goes on."""
        if self.when is None:
            return None
        known = {kind: share for kind in KINDS if not math.isnan(share := shares[f"unlikely_{kind}"])}
        worst = max((LIMITS[kind].score(share) for kind, share in known.items()), default=0)
        self.held = self.held + 1 if worst >= LABELS.index(self.when.verdict) else 0
        if self.held < self.when.steps:
            return None
        seen = ", ".join(f"unlikely {kind} {share:.2f}" for kind, share in known.items())
        return f"{self.when} (at the last {seen})"
