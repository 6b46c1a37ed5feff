"""The rotary embedding (Su et al. 2021), and how its frequencies are scaled for a longer context."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rewardgrid.lm.shape import Scaling, Shape


def rotations(shape: Shape, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """The rotary embedding at these positions as complex numbers of one length: (T, head_dim/2).

    In float32 at least, whatever the model's own type.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, shape.head_dim, 2, device=positions.device, dtype=wide) / shape.head_dim
    frequencies, length = 1.0 / shape.rope_theta**exponents, 1.0
    if shape.rope_scaling is not None:
        frequencies, length = scaled(frequencies, shape.rope_scaling), shape.rope_scaling.attention
    angles = positions.to(wide).unsqueeze(-1) * frequencies
    return torch.polar(torch.full_like(angles, length), angles)


def scaled(frequencies: Tensor, scaling: Scaling) -> Tensor:
    """Frequencies (n,), in radians per token, for the longer context."""
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "llama3":
        place = scaling.context * frequencies / (2 * math.pi)  # turns in the first context
        stays = ((place - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    else:
        place = torch.arange(len(frequencies), device=frequencies.device, dtype=frequencies.dtype)
        stays = 1 - ((place - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return slow * (1 - stays) + frequencies * stays
