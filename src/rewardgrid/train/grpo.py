"""The equations of GRPO: advantages, the k3 KL, the loss, the clipped AdamW update.

Shao et al. 2024 (DeepSeekMath), with the settings of the published study: group-standardised advantages, one update
per rollout, loss averaged over tokens within a sequence and then over sequences.
Shapes: C cells, B completions, G completions of one prompt, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ADVANTAGE_EPSILON = 1e-4
CLIP = 0.2
BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


def advantages(rewards: Tensor, group: int) -> Tensor:
    """(r - mean) / (std + 1e-4) within groups of G completions of one prompt: (C, B) -> (C, B).

    The standard deviation has Bessel's correction (n - 1). A group whose completions are all paid alike has advantages
    of exactly 0: rewards are counted from its first, because the rounded mean of equal numbers may be another number.
    """
    groups = rewards.unflatten(-1, (-1, group))
    groups = groups - groups[..., :1]
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True) + ADVANTAGE_EPSILON)).flatten(-2)


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Schulman's estimate of KL(policy || reference) per token: exp(d) - d - 1 with d = reference - logps."""
    difference = reference - logps
    return difference.exp() - difference - 1


def sequence_losses(logps: Tensor, reference: Tensor, advantage: Tensor, mask: Tensor, beta: Tensor) -> Tensor:
    """The loss of each completion; the step's loss is their mean.

    Args:
        logps: (C, B, L) log-probabilities under the policy, with gradient.
        reference: (C, B, L) the same under the frozen base.
        advantage: (C, B).
        mask: (C, B, L) True for the completion's tokens, the end-of-sequence token included.
        beta: (C,) weight of the KL.

    Returns:
        (C, B): mean over a completion's tokens of -min(ratio A, clip(ratio) A) + beta k3. On policy the ratio is 1
        and the clip of 0.2 inactive; both are kept because their gradient is the policy gradient.
    """
    ratio = (logps - logps.detach()).exp()
    paid = advantage.unsqueeze(-1)
    objective = torch.minimum(ratio * paid, ratio.clamp(1 - CLIP, 1 + CLIP) * paid)
    per_token = -objective + beta[:, None, None] * k3(logps, reference)
    return mean_over(per_token, mask)


def logp_grads(logps: Tensor, reference: Tensor, advantage: Tensor, share: Tensor, beta: Tensor) -> Tensor:
    """Derivative of the step's loss with respect to log-probabilities, at a ratio of 1 (see :func:`sequence_losses`).

    Args:
        logps, reference, advantage: (C, n), one for each token.
        share: (C, n) what the token's loss counts for in the step's.
        beta: (C,).
    """
    grads = share * (beta.unsqueeze(1) * (1 - (reference - logps).exp()) - advantage)
    return torch.where(share > 0, grads, 0)  # behind a completion's end the exponential may overflow


def token_shares(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What each token's loss counts for in the step's, the mean over tokens and then over completions: (C, B, L)."""
    return mask.to(dtype) / (mask.sum(-1, keepdim=True).clamp(min=1) * mask.shape[1])


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (..., L) over the True places of the mask; 0 where there are none."""
    return torch.where(mask, values, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def learning_rate(peak: Tensor, step: Tensor, decay_steps: Tensor) -> Tensor:
    """Linear decay from the peak to 0 over decay_steps, no warm-up; ``step`` counts from 0. All (C,)."""
    return peak * (1 - step / decay_steps).clamp(min=0)


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
