"""The equations of GRPO: advantages, the KL, the loss, the clipped AdamW update.

Shao et al. 2024 (DeepSeekMath). What stands first everywhere is the published study's: group-standardised advantages,
one update per rollout, k3, loss averaged over tokens within a sequence and then over sequences. The variants are
those of Dr. GRPO (Liu et al. 2025) and DAPO (Yu et al. 2025), under TRL's names.
Shapes: C cells, B completions, G completions of one prompt, L tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardgrid.study.cell import Cell, KlEstimator, LossType, ScaleRewards, Schedule

ADVANTAGE_EPSILON = 1e-4
BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Variant:
    """Which of the objectives a cell is trained with; see the fields of a cell of the same names."""

    loss_type: LossType = "grpo"
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    kl_estimator: KlEstimator = "k3"

    @classmethod
    def of(cls, cell: Cell) -> Variant:
        """That of a cell."""
        high = cell.epsilon if cell.epsilon_high is None else cell.epsilon_high
        return cls(cell.loss_type, cell.epsilon, high, cell.kl_estimator)


PUBLISHED = Variant()


def advantages(rewards: Tensor, group: int, scale: ScaleRewards = "group") -> Tensor:
    """(r - mean) / (std + 1e-4) within groups of G completions of one prompt: (C, B) -> (C, B).

    The standard deviation has Bessel's correction (n - 1); it is that of the group, of the whole batch, or there is
    none (Dr. GRPO). A group whose completions are all paid alike has advantages of exactly 0: rewards are counted from
    its first, because the rounded mean of equal numbers may be another number.
    """
    groups = rewards.unflatten(-1, (-1, group))
    groups = groups - groups[..., :1]
    centred = groups - groups.mean(-1, keepdim=True)
    if scale == "none":
        return centred.flatten(-2)
    deviation = groups.std(-1, keepdim=True) if scale == "group" else rewards.std(-1)[..., None, None]
    return (centred / (deviation + ADVANTAGE_EPSILON)).flatten(-2)


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Schulman's estimate of KL(policy || reference) per token: exp(d) - d - 1 with d = reference - logps."""
    difference = reference - logps
    return difference.exp() - difference - 1


def kl_estimate(logps: Tensor, reference: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """Schulman's estimates of KL(policy || reference) per token, with d = reference - logps: k1 -d, k2 d^2 / 2, k3."""
    match estimator:
        case "k1":
            return logps - reference
        case "k2":
            return (logps - reference).square() / 2
        case _:
            return k3(logps, reference)


def kl_slope(logps: Tensor, reference: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """Derivative of :func:`kl_estimate` with respect to logps."""
    match estimator:
        case "k1":
            return torch.ones_like(logps)
        case "k2":
            return logps - reference
        case _:
            return 1 - (reference - logps).exp()


def loss_tokens(mask: Tensor, loss_type: LossType = "grpo", length: int = 0) -> Tensor:
    """What the sum over a completion's tokens is divided by, before the mean over completions: (C, B).

    grpo: its own tokens; dr_grpo: the longest completion that there may be (``length``), so that no length is favoured;
    dapo and bnpo, which are one where a batch is not accumulated: the mean tokens of the batch's completions, so that
    every token weighs the same.
    """
    own = mask.sum(-1)
    match loss_type:
        case "grpo":
            return own.clamp(min=1)
        case "dr_grpo":
            return torch.full_like(own, length)
        case _:
            return (own.sum(-1, keepdim=True).clamp(min=1).double() / mask.shape[1]).expand_as(own)


def sequence_losses(
    logps: Tensor,
    reference: Tensor,
    advantage: Tensor,
    mask: Tensor,
    beta: Tensor,
    old: Tensor | None = None,
    tokens: Tensor | None = None,
    variant: Variant = PUBLISHED,
) -> Tensor:
    """The loss of each completion; the step's loss is their mean.

    Args:
        logps: (C, B, L) log-probabilities under the policy, with gradient.
        reference: (C, B, L) the same under the frozen base.
        advantage: (C, B).
        mask: (C, B, L) True for the completion's tokens, the end-of-sequence token included.
        beta: (C,) weight of the KL.
        old: (C, B, L) logps under the policy that wrote the completions; None: it is this one.
        tokens: (C, B) see :func:`loss_tokens`; None: those of grpo.

    Returns:
        (C, B): sum over a completion's tokens of -min(ratio A, clip(ratio) A) + beta KL, divided by ``tokens``. On
        policy the ratio is 1 and the clip inactive; both are kept because their gradient is the policy gradient.
    """
    ratio = (logps - (logps.detach() if old is None else old)).exp()
    paid = advantage.unsqueeze(-1)
    objective = torch.minimum(ratio * paid, ratio.clamp(1 - variant.epsilon, 1 + variant.epsilon_high) * paid)
    per_token = -objective + beta[:, None, None] * kl_estimate(logps, reference, variant.kl_estimator)
    return torch.where(mask, per_token, 0).sum(-1) / (loss_tokens(mask) if tokens is None else tokens).to(logps.dtype)


def logp_grads(
    logps: Tensor,
    reference: Tensor,
    advantage: Tensor,
    share: Tensor,
    beta: Tensor,
    old: Tensor | None = None,
    variant: Variant = PUBLISHED,
) -> Tensor:
    """Derivative of the step's loss with respect to log-probabilities (see :func:`sequence_losses`).

    Args:
        logps, reference, advantage, old: (C, n), one for each token.
        share: (C, n) what the token's loss counts for in the step's.
        beta: (C,).
    """
    pull = advantage
    if old is not None:
        ratio = (logps - old).exp()
        clipped = torch.where(advantage > 0, ratio > 1 + variant.epsilon_high, ratio < 1 - variant.epsilon)
        pull = (ratio * advantage).masked_fill(clipped, 0)
    grads = share * (beta.unsqueeze(1) * kl_slope(logps, reference, variant.kl_estimator) - pull)
    return torch.where(share > 0, grads, 0)  # behind a completion's end an exponential may overflow


def token_shares(mask: Tensor, dtype: torch.dtype, tokens: Tensor | None = None) -> Tensor:
    """What each token's loss counts for in the step's, the mean over completions of sums / ``tokens``: (C, B, L)."""
    divisor = (loss_tokens(mask) if tokens is None else tokens).unsqueeze(-1) * mask.shape[1]
    return mask.to(dtype) / divisor.to(dtype)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (..., L) over the True places of the mask; 0 where there are none."""
    return torch.where(mask, values, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def learning_rate(
    peak: Tensor, step: Tensor, decay_steps: Tensor, kind: Schedule = "linear", warmup: int = 0
) -> Tensor:
    """The rate of a step, which counts from 0: linear decay from the peak to 0 over decay_steps, all (C,).

    Other kinds are transformers'. With a warm-up the rate first rises linearly from 0 to the peak, and what follows
    takes the remaining steps.
    """
    done = (step - warmup) / (decay_steps - warmup)
    match kind:
        case "linear":
            share = (1 - done).clamp(min=0)
        case "cosine":
            share = (1 + (math.pi * done.clamp(max=1)).cos()) / 2
        case _:
            share = torch.ones_like(done)
    return peak * (torch.where(step < warmup, step / warmup, share) if warmup else share)


def clip_factor(norm: Tensor, largest: Tensor) -> Tensor:
    """What gradients (C, ...) are multiplied by so that their norm (C,) does not exceed the largest (C,)."""
    return (largest / (norm + 1e-6)).clamp(max=1)


@dataclass
class AdamW:
    """AdamW without weight decay (Loshchilov and Hutter 2019) on one flat vector per cell.

    Attributes:
        mean, square: (C, P) moments of the gradient.
        count: (C,) updates done, in float64: in float32, the first 1 - 0.999^count would have four digits.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    @classmethod
    def fresh(cls, parameters: Tensor) -> AdamW:
        """The state before the first update of parameters (C, P)."""
        count = torch.zeros(parameters.shape[0], dtype=torch.float64, device=parameters.device)
        return cls(torch.zeros_like(parameters), torch.zeros_like(parameters), count)

    @torch.no_grad()
    def update(self, parameters: Tensor, gradient: Tensor, lr: Tensor, active: Tensor) -> None:
        """One update in place. Cells that are not ``active`` (C,) keep parameters and moments."""
        idle = ~active
        self.count += active
        # lerp and addcmul in the reference implementation's order, so that results agree to the last bit or two.
        # Where a cell is not active, gradient and factors are those that change nothing.
        gradient = gradient.masked_fill(idle.unsqueeze(1), 0)
        rate = torch.full_like(lr, 1 - BETAS[0]).masked_fill(idle, 0).unsqueeze(1)
        decay = torch.full_like(lr, BETAS[1]).masked_fill(idle, 1).unsqueeze(1)
        self.mean.lerp_(gradient, rate)
        self.square.mul_(decay).addcmul_(gradient, gradient, value=1 - BETAS[1])
        first, second = (1 - beta ** self.count.clamp(min=1) for beta in BETAS)
        root = (self.square.sqrt() / second.sqrt().to(parameters.dtype).unsqueeze(1)).add_(ADAM_EPSILON)
        step = (lr / first).masked_fill(idle, 0).to(parameters.dtype).unsqueeze(1) * self.mean
        parameters -= step.div_(root)
