"""LoRA adapters on every projection: one, or several side by side, with parameter gradients masked per sequence.

All adapters of a cell are stored side by side along the rank axis: for a fused projection of S segments,
``A`` (C, S*R, in) and ``B`` (C, out, R) with R the sum of the adapters' ranks. A channel j of R belongs to one
adapter; ``scale[j]`` is that adapter's alpha/rank, or 0 where it is switched off. The output of segment s is

    y_s = x W_s^T + (scale * (x A_s^T)) B_s^T.

Source of the update rule: Hu et al. 2021 (LoRA); gradient routing as in Cloud et al. 2024, with the mask on parameter
gradients only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardgrid.lm.draws import generator
from rewardgrid.lm.hf.layout import MODULES
from rewardgrid.lm.model import Weights, multiply, product
from rewardgrid.lm.shape import Shape


@dataclass(frozen=True)
class Adapter:
    """One adapter of a cell: its name, rank and the alpha that scales it (scale = alpha / rank)."""

    name: str
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Factor on its output."""
        return self.alpha / self.rank


def total_rank(adapters: Sequence[Adapter]) -> int:
    """Channels that adapters take side by side."""
    return sum(adapter.rank for adapter in adapters)


def channel_scale(adapters: Sequence[Adapter], active: Sequence[str] | None = None, width: int | None = None) -> Tensor:
    """The factor of every channel (R,): alpha/rank, and 0 for adapters that are not ``active`` (None: all are).

    ``width`` pads with zeros, for a cell beside others of larger rank.
    """
    values = [
        adapter.scale if active is None or adapter.name in active else 0.0
        for adapter in adapters
        for _ in range(adapter.rank)
    ]
    return torch.tensor(values + [0.0] * ((width or len(values)) - len(values)))


def initial(shape: Shape, adapters: Sequence[Adapter], seed: int) -> Weights:
    """Fresh adapter weights with C = 1: A Kaiming-uniform with a = sqrt 5, that is U(-1/sqrt(in), 1/sqrt(in)); B zero.

    Each matrix has its own draw, so that neither the other adapters nor their ranks change it.
    """
    rank = total_rank(adapters)
    weights: Weights = {}
    for key, kind in shape.projections():
        layer = key.split(".")[0]
        # The MLP's padding units are no inputs of the real projection.
        width = shape.mlp_width if kind == "down" else shape.inputs[kind]
        rows = []
        for module in MODULES[kind]:
            for adapter in adapters:
                draws = generator(seed, f"adapter {adapter.name} {layer}.{module}").random((adapter.rank, width))
                matrix = np.zeros((adapter.rank, shape.inputs[kind]), dtype=np.float32)
                matrix[:, :width] = (2 * draws - 1) / np.sqrt(width)
                rows.append(matrix)
        weights[f"{key}.A"] = torch.from_numpy(np.concatenate(rows)).unsqueeze(0)
        weights[f"{key}.B"] = torch.zeros(1, sum(shape.segments[kind]), rank)
    return weights


def merge(shape: Shape, base: Weights, adapters: Weights, scale: Tensor) -> Weights:
    """Weights with the adapters added in: base (C or 1), adapters (C), scale (C, R) -> (C)."""
    merged = dict(base)
    for key, kind in shape.projections():
        merged[key] = _merge(base[key], adapters[f"{key}.A"], adapters[f"{key}.B"], scale, shape.segments[kind])
    return merged


def _merge(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor, segments: tuple[int, ...]) -> Tensor:
    """One projection with its adapters added in: W_s + (B_s scale) A_s of every segment, (C, out, in)."""
    merged = weight.repeat(len(a) // len(weight), 1, 1)
    parts = (merged.split(segments, 1), (b * scale.unsqueeze(1)).split(segments, 1), a.split(b.shape[-1], 1))
    for merged_s, b_s, a_s in zip(*parts, strict=True):
        merged_s += product(b_s, a_s)
    return merged


class _Adapted(torch.autograd.Function):
    """Projection plus adapters; ``reach`` decides which sequences' gradient reaches which channels' parameters.

    Values and activation gradients go through the merged matrix, which takes fewer products than W and adapters apart.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        reach: Tensor | None,
        segments: tuple[int, ...],
        compute: torch.dtype | None,
    ) -> Tensor:
        merged = _merge(weight, a, b, scale, segments).to(compute or weight.dtype)
        ctx.save_for_backward(x, merged, a, b, scale, reach)
        ctx.segments = segments
        return multiply(x, merged)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, merged, a, b, scale, reach = ctx.saved_tensors
        segments, rank = ctx.segments, b.shape[-1]
        # Activations: unmasked. A flagged sequence's gradient still flows through every adapter.
        to_x = multiply(gradient, merged.mT) if ctx.needs_input_grad[0] else None
        # Parameters: each channel gets the gradient of only the sequences that may reach it.
        factors = scale.unsqueeze(1) if reach is None else scale.unsqueeze(1) * reach
        parts = gradient.split(segments, -1)
        z = _mask_channels(product(x, a.mT), factors, rank)
        to_z = torch.cat([product(g_s, b_s) for g_s, b_s in zip(parts, b.split(segments, 1), strict=True)], -1)
        to_a = product(_mask_channels(to_z, factors, rank).mT, x)
        to_b = torch.cat([product(g_s.mT, z_s) for g_s, z_s in zip(parts, z.split(rank, -1), strict=True)], 1)
        return to_x, None, to_a, to_b, None, None, None, None


def _mask_channels(channels: Tensor, factors: Tensor, rank: int) -> Tensor:
    """Multiply, in place, the channels (C, B*T, S*R) by the factors (C, B or 1, R) of their sequences."""
    channels.view(len(channels), factors.shape[1], -1, channels.shape[-1] // rank, rank).mul_(factors[:, :, None, None])
    return channels


def adapted(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    segments: tuple[int, ...],
    reach: Tensor | None = None,
    compute: torch.dtype | None = None,
) -> Tensor:
    """A frozen projection with its adapters.

    Args:
        x: (C, B*T, in) activations.
        weight: (C or 1, out, in), gets no gradient.
        a, b: (C, S*R, in) and (C, out, R).
        scale: (C, R) factor of each channel.
        segments: output sizes of the S fused parts.
        reach: (C, B, R) one where sequence b's gradient reaches channel r's *parameters*, zero where not; None: it
            always does. Activation gradients are never masked.
        compute: arithmetic of the products with the merged matrix, if it is not that of ``weight``.

    Returns:
        (C, B*T, out)
    """
    y: Tensor = _Adapted.apply(x, weight, a, b, scale, reach, segments, compute)
    return y
