"""The output layer: from hidden states to log-probabilities, entropies and gradients, a few rows at a time.

The logits of a token are as many numbers as there are words, and everything else about a token is a few hundred. So
they are made for as many rows as fit into a core's own cache, used up there, and never kept, as in fused linear
cross-entropies (Hsu et al. 2024, Liger Kernel). The gradient needs them too: where it is wanted it is taken in the same
pass, from what the loss makes of each log-probability.

Sizes: C cells, N rows (tokens), H hidden, V words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

CPU_LOGITS, GPU_LOGITS = 1 << 18, 1 << 28
"""Logits that exist at a time: 1 MiB in float32 on a CPU, 1 GiB on a GPU."""

LOG2_E = 1 / math.log(2)

LogpGrads = Callable[[Tensor, slice], Tensor]
"""Gradient of the loss with respect to log-probabilities (C, n), which are those of a slice of the rows."""


class OutputLayer:
    """softmax(h W^T) of C cells, each with its own W."""

    def __init__(self, weight: Tensor) -> None:
        """Take W (C, V, H), whose type is that of the products, and lay out a copy for the one that makes logits."""
        self.weight = weight.detach()
        self.columns = self.weight.mT.contiguous()

    @torch.no_grad()
    def logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities (C, N), in nats, of the targets (C, N) after hidden states (C, N, H)."""
        return torch.cat([logps for _, _, _, logps in self._pieces(hidden, targets)], 1)

    @torch.no_grad()
    def backward(
        self, hidden: Tensor, targets: Tensor, logp_grads: LogpGrads, weight_grad: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The log-probabilities again, bit for bit, and the gradient of a loss that is a function of them.

        Args:
            hidden: (C, N, H).
            targets: (C, N).
            logp_grads: gradient of the loss with respect to each log-probability.
            weight_grad: (C, V, H), to which the gradient of W is added; None: it is not wanted.

        Returns:
            Log-probabilities (C, N) and entropies (C, N), in nats, and the gradient of the hidden states (C, N, H).
        """
        logps, entropies, hidden_grads = [], [], []
        for rows, exps, total, logp in self._pieces(hidden, targets):
            h, grad = hidden[:, rows].to(self.weight.dtype), logp_grads(logp, rows).unsqueeze(-1)
            # d logp / d logits = onehot - p; here with the other sign, and times the total.
            exps.scatter_add_(-1, targets[:, rows, None], -total)
            slopes = exps.to(h.dtype)
            away = torch.bmm(slopes, self.weight).to(exps.dtype).div_(total)  # - d logp / d h
            # -sum p log p = -logp - sum (p - onehot) logits, and logits = h W^T.
            entropies.append(-logp - torch.linalg.vecdot(h.to(away.dtype), away))
            if weight_grad is not None:
                _add_product(weight_grad, slopes.mT, h * (-grad / total).to(h.dtype))
            hidden_grads.append(away.mul_(-grad).to(hidden.dtype))
            logps.append(logp)
        return torch.cat(logps, 1), torch.cat(entropies, 1), torch.cat(hidden_grads, 1)

    def _pieces(self, hidden: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Of each piece: its rows, exp(logits - largest) (C, n, V), its sum (C, n, 1), log-probabilities (C, n)."""
        cells, rows, _ = hidden.shape
        limit = CPU_LOGITS if hidden.device.type == "cpu" else GPU_LOGITS
        size = max(1, limit // (cells * self.columns.shape[-1]))
        for start in range(0, rows, size):
            piece = slice(start, min(start + size, rows))
            logits = torch.bmm(hidden[:, piece].to(self.columns.dtype), self.columns)
            logits = logits.float() if logits.dtype == torch.bfloat16 else logits
            largest = logits.amax(-1, keepdim=True)
            chosen = logits.gather(-1, targets[:, piece, None]) - largest
            exps = exp_(logits.sub_(largest))
            total = exps.sum(-1, keepdim=True)
            yield piece, exps, total, (chosen - total.log()).squeeze(-1)


def exp_(x: Tensor) -> Tensor:
    """e^x, in place. On a CPU as a power of 2, of which torch makes four in the time of one of e's.

    x log2(e) is rounded before it is raised, so the relative error in float32 is about |x| 6e-8: largest where the
    result is next to nothing.
    """
    return x.mul_(LOG2_E).exp2_() if x.device.type == "cpu" else x.exp_()


def target_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities (C, N), for autograd: the logits are made again on the way back.

    Args:
        hidden, weight, targets: (C, N, H), (C, V, H) and (C, N).
    """
    logps: Tensor = _TargetLogps.apply(hidden, weight, targets)
    return logps


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, targets)
        ctx.layer = OutputLayer(weight)
        logps: Tensor = ctx.layer.logps(hidden, targets)
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, targets = ctx.saved_tensors
        weight_grad = torch.zeros_like(ctx.layer.weight) if ctx.needs_input_grad[1] else None
        _, _, hidden_grad = ctx.layer.backward(hidden, targets, lambda _, rows: grad[:, rows], weight_grad)
        return hidden_grad, weight_grad, None


def _add_product(into: Tensor, x: Tensor, y: Tensor) -> None:
    """Add x @ y to an array, which is in float32 also where x and y are not."""
    if into.dtype == x.dtype:
        into.baddbmm_(x, y)
    else:
        into += torch.bmm(x, y)
