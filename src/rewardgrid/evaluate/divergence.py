"""How far a policy has moved from its base, measured on the policy's own samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights, logits
from rewardgrid.train.grpo import k3

ROWS = 8
"""Sequences whose full distributions are in memory at once."""


@dataclass(frozen=True)
class Divergence:
    """Per token (B, L), in nats; meaningful where the completion's mask is True.

    Attributes:
        k3: Schulman's estimate of KL(policy || base), comparable with the logs.
        exact: the same divergence summed over the vocabulary.
        base_nll: negative log-likelihood of the token under the base.
    """

    k3: Tensor
    exact: Tensor
    base_nll: Tensor


@torch.no_grad()
def divergence(
    shape: Architecture, policy: Weights, base: Weights, sequences: Tensor, prompt_length: int
) -> Divergence:
    """Compare the next-token distributions of policy and base along sequences.

    Args:
        policy, base: merged weights with C = 1.
        sequences: (B, T) prompt and completion.
        prompt_length: tokens before the completion.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in sequences.split(ROWS):
        targets = rows[:, prompt_length:].unsqueeze(-1)
        own, other = (
            logits(shape, weights, rows[None])[0, :, prompt_length - 1 : -1].float().log_softmax(-1)
            for weights in (policy, base)
        )
        chosen, reference = own.gather(-1, targets).squeeze(-1), other.gather(-1, targets).squeeze(-1)
        parts.append((k3(chosen, reference), torch.linalg.vecdot(own.exp(), own - other), -reference))
    return Divergence(*(torch.cat(each) for each in zip(*parts, strict=True)))
