"""The weights of a LLaMA or Qwen2 under Hugging Face's names, in and out of our form.

There every projection is a matrix of its own; here those that read the same input are one, the rows of queries and keys
(and their biases) are in the order of :func:`pair`, and the MLP width is padded (:mod:`rewardgrid.lm.model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardgrid.lm.model import Weights
from rewardgrid.lm.shape import KINDS, Shape

MODULES: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Our fused projections and the Hugging Face modules that they hold, in order."""

WHOLE = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
"""Our weights that no layer owns, and their Hugging Face names."""

NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
"""Our norms of a layer, and the Hugging Face modules that they are."""

AFTER = {"norm1": "qkv", "norm2": "gate_up"}
"""The projection that reads each of them."""

ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
"""Modules whose outputs the rotary embedding turns."""


def tensor_name(layer: int | str, module: str, what: str = "weight") -> str:
    """``model.layers.0.mlp.up_proj.weight``."""
    return f"model.layers.{layer}.{module}.{what}"


def tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The size of every weight of a model by its Hugging Face name, in a fixed order."""
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, width = shape.hidden, shape.mlp_width
    rows = {"qkv": (q, k, k), "o": (hidden,), "gate_up": (width, width), "down": (hidden,)}
    columns = shape.inputs | {"down": width}
    sizes: dict[str, tuple[int, ...]] = {WHOLE["embed"]: (shape.vocabulary, hidden)}
    for layer in range(shape.layers):
        for kind in shape.biases:
            for module, size in zip(MODULES[kind], rows[kind], strict=True):
                sizes[tensor_name(layer, module, "bias")] = (size,)
        for norm, kinds in (("norm1", ("qkv", "o")), ("norm2", ("gate_up", "down"))):
            sizes[tensor_name(layer, NORMS[norm])] = (hidden,)
            for kind in kinds:
                for module, size in zip(MODULES[kind], rows[kind], strict=True):
                    sizes[tensor_name(layer, module)] = (size, columns[kind])
    sizes[WHOLE["norm"]] = (hidden,)
    if not shape.tied:
        sizes[WHOLE["head"]] = (shape.vocabulary, hidden)
    return sizes


def pair(shape: Shape, rows: Tensor) -> Tensor:
    """Rows (heads * head_dim, ...) of a rotated projection, from Hugging Face's order to ours.

    There the two components that are turned together lie half a head apart; here they are neighbours.
    """
    return rows.unflatten(0, (-1, 2, shape.head_dim // 2)).transpose(1, 2).reshape(rows.shape)


def unpair(shape: Shape, rows: Tensor) -> Tensor:
    """The inverse of :func:`pair`."""
    return rows.unflatten(0, (-1, shape.head_dim // 2, 2)).transpose(1, 2).reshape(rows.shape)


def from_hf(shape: Shape, tensors: Mapping[str, Tensor]) -> Weights:
    """Fuse and pad a Hugging Face state dict; each weight gets C = 1."""
    return {key: fused(shape, tensors, key) for key in shape.weight_keys()}


def fused(shape: Shape, tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """One weight in our form, with C = 1, of the Hugging Face tensors that it holds."""
    if key in WHOLE:
        return tensors[WHOLE[key]].unsqueeze(0)
    layer, name = key.split(".")
    if name in NORMS:
        return tensors[tensor_name(layer, NORMS[name])].unsqueeze(0)
    kind = name.removesuffix("_bias")
    what = "weight" if kind == name else "bias"
    parts = [tensors[tensor_name(layer, module, what)] for module in MODULES[kind]]
    return torch.cat(_padded(shape, kind, what, _paired(shape, kind, parts))).unsqueeze(0)


def _paired(shape: Shape, kind: str, parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a projection, weights or biases, with their rows in our order."""
    return [pair(shape, part) if module in ROTATED else part for module, part in zip(MODULES[kind], parts, strict=True)]


def _padded(shape: Shape, kind: str, what: str, parts: list[Tensor]) -> list[Tensor]:
    """The same with the MLP's width padded."""
    extra = shape.mlp_padded - shape.mlp_width
    if kind == "gate_up":
        return [F.pad(part, (0, 0, 0, extra) if what == "weight" else (0, extra)) for part in parts]
    if kind == "down" and what == "weight":
        return [F.pad(parts[0], (0, extra))]
    return parts


def to_hf(shape: Shape, weights: Weights, cell: int = 0) -> dict[str, Tensor]:
    """The inverse of :func:`from_hf` for one cell of the cell axis."""
    own = {key: weight[min(cell, weight.shape[0] - 1)] for key, weight in weights.items()}
    tensors = {name: own[key] for key, name in WHOLE.items() if key != "head" or not shape.tied}
    for layer in range(shape.layers):
        tensors |= {tensor_name(layer, module): own[f"{layer}.{norm}"] for norm, module in NORMS.items()}
        for kind in KINDS:
            tensors |= _apart(shape, kind, layer, "weight", own[f"{layer}.{kind}"])
            if kind in shape.biases:
                tensors |= _apart(shape, kind, layer, "bias", own[f"{layer}.{kind}_bias"])
    return {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}


def _apart(shape: Shape, kind: str, layer: int, what: str, whole: Tensor) -> dict[str, Tensor]:
    """The Hugging Face tensors that a projection's weight or bias holds."""
    found = {}
    for module, part in zip(MODULES[kind], whole.split(shape.segments[kind]), strict=True):
        if module in ROTATED:
            part = unpair(shape, part)
        if kind == "gate_up":
            part = part[: shape.mlp_width]
        if kind == "down" and what == "weight":
            part = part[:, : shape.mlp_width]
        found[tensor_name(layer, module, what)] = part
    return found
