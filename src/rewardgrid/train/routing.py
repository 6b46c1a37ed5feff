"""Which completions are paid what, and whose parameters their gradient may reach (gradient routing).

Labels are pure functions of a cell's own draws; they are computed before the update and never read back from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardgrid.lm.adapters import Adapter
from rewardgrid.study.cell import SHARED_ALPHA, Cell

RETAIN, FORGET = "retain", "forget"


@dataclass(frozen=True)
class Labels:
    """Of each completion (C, B), booleans.

    Attributes:
        eligible: paid the full reward; the others are paid the base reward.
        routed: eligible and chosen for routing.
        noise: flagged by label noise alone.
        flagged: its gradient reaches the forget adapter's parameters only.
    """

    eligible: Tensor
    routed: Tensor
    noise: Tensor
    flagged: Tensor


def label(draws: Tensor, hacked: Tensor, eligible_frac: Tensor, routing_frac: Tensor, noise_frac: Tensor) -> Labels:
    """Draw the labels.

    Args:
        draws: (C, B, 3) uniforms: for eligibility, routing and label noise.
        hacked: (C, B) the detector's verdict.
        eligible_frac, routing_frac, noise_frac: (C,) probabilities.
    """
    eligible = draws[..., 0] < eligible_frac.unsqueeze(1)
    routed = eligible & (draws[..., 1] < routing_frac.unsqueeze(1))
    caught = routed & hacked
    noise = ~caught & (draws[..., 2] < noise_frac.unsqueeze(1))
    return Labels(eligible, routed, noise, caught | noise)


def adapters_of(cell: Cell) -> tuple[Adapter, ...]:
    """The adapters of a cell, in the order in which they lie side by side."""
    if cell.method == "full" or cell.rank is None:
        return ()
    if cell.forget_rank is None:
        # Of sqrt, alpha by rank is sqrt(SHARED_ALPHA / rank): rank-stabilised LoRA with an alpha of sqrt(SHARED_ALPHA).
        alphas = {None: cell.rank, "constant": SHARED_ALPHA, "sqrt": math.sqrt(SHARED_ALPHA * cell.rank)}
        return (Adapter("default", cell.rank, alphas[cell.adapter_alpha]),)
    own = cell.adapter_alpha == "own_rank"
    return (
        Adapter(RETAIN, cell.rank, cell.rank),
        Adapter(FORGET, cell.forget_rank, cell.forget_rank if own else cell.rank),
    )


def reach(flagged: Tensor, is_forget: Tensor, exclusive: bool) -> Tensor:
    """Whose parameters each completion's gradient reaches.

    Args:
        flagged: (C, B).
        is_forget: (C, R) True for channels of the forget adapter.
        exclusive: unflagged completions train retain only (routing_mode exclusive) instead of both (shared).

    Returns:
        (C, B, R) ones and zeros. A flagged completion reaches the forget channels only.
    """
    to_forget = flagged if exclusive else torch.ones_like(flagged)
    return torch.where(is_forget.unsqueeze(1), to_forget.unsqueeze(-1), ~flagged.unsqueeze(-1)).float()


def active_adapters(mode: str) -> tuple[str, ...]:
    """Names of the adapters that are switched on in an evaluation mode (both, retain_only, forget_only)."""
    return {"both": (RETAIN, FORGET), "retain_only": (RETAIN,), "forget_only": (FORGET,)}[mode]
