"""A LLaMA in plain tensor operations, for one cell or many at once.

Every tensor has a leading cell axis C. Weights that all cells share (a frozen base) have C = 1 there and broadcast.
Sizes: B sequences, T positions, N = B*T, H hidden, Q = heads*head_dim, K = kv_heads*head_dim, M MLP width, V words.

The projections that read the same input are stored as one matrix: ``qkv`` (Q+2K, H) and ``gate_up`` (2M, H).
The MLP width is padded with zeros to a multiple of 8, which changes no result (the padded units output zero and
receive zero gradient) and makes the matrix products faster.

Architecture: Touvron et al. 2023 (LLaMA) with grouped-query attention, as in Hugging Face's ``LlamaForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardgrid.study.errors import UserError

Weights = dict[str, Tensor]
Project = Callable[[str, Tensor], Tensor]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

PROJECTIONS: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Our fused projections and the Hugging Face modules that they hold, in order."""


@dataclass(frozen=True)
class Shape:
    """The architecture's sizes."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int
    context: int
    rope_theta: float
    norm_eps: float
    tied: bool

    @property
    def mlp_padded(self) -> int:
        """MLP width rounded up to a multiple of 8."""
        return -(-self.mlp_width // 8) * 8

    @property
    def segments(self) -> dict[str, tuple[int, ...]]:
        """Output sizes of the parts of each fused projection."""
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (q, k, k),
            "o": (self.hidden,),
            "gate_up": (self.mlp_padded,) * 2,
            "down": (self.hidden,),
        }

    @property
    def inputs(self) -> dict[str, int]:
        """Input size of each fused projection."""
        return {
            "qkv": self.hidden,
            "o": self.heads * self.head_dim,
            "gate_up": self.hidden,
            "down": self.mlp_padded,
        }

    def projections(self) -> Iterator[tuple[str, str]]:
        """Every fused projection as (its key in the weights, its kind)."""
        for layer in range(self.layers):
            for kind in PROJECTIONS:
                yield f"{layer}.{kind}", kind

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> Shape:
        """Read the sizes from a Hugging Face ``config.json``.

        Raises:
            UserError: the model is no plain LLaMA (other architecture, biases, scaled RoPE, other activation).
        """
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        odd = {
            "model_type": config.get("model_type") != "llama",
            "attention_bias": bool(config.get("attention_bias", False)),
            "mlp_bias": bool(config.get("mlp_bias", False)),
            "hidden_act": config.get("hidden_act", "silu") != "silu",
            "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        }
        for key, is_odd in odd.items():
            if is_odd:
                raise UserError(
                    f"{source}: {key}: read {config.get(key)!r}; rewardgrid trains plain LLaMA models only: "
                    "choose a base with model_type llama, no biases, silu and unscaled RoPE"
                )
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            mlp_width=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            norm_eps=float(config["rms_norm_eps"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )


# --- weights -------------------------------------------------------------------------------------------


def from_hf(shape: Shape, tensors: Mapping[str, Tensor]) -> Weights:
    """Fuse and pad a Hugging Face state dict (``model.layers.0.self_attn.q_proj.weight`` ...); each gets C = 1."""
    weights = {"embed": tensors["model.embed_tokens.weight"], "norm": tensors["model.norm.weight"]}
    if not shape.tied:
        weights["head"] = tensors["lm_head.weight"]
    extra = shape.mlp_padded - shape.mlp_width
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        weights[f"{layer}.norm1"] = tensors[prefix + "input_layernorm.weight"]
        weights[f"{layer}.norm2"] = tensors[prefix + "post_attention_layernorm.weight"]
        for kind, modules in PROJECTIONS.items():
            parts = [tensors[f"{prefix}{module}.weight"] for module in modules]
            if kind == "gate_up":
                parts = [F.pad(part, (0, 0, 0, extra)) for part in parts]
            if kind == "down":
                parts = [F.pad(parts[0], (0, extra))]
            weights[f"{layer}.{kind}"] = torch.cat(parts)
    return {key: weight.unsqueeze(0) for key, weight in weights.items()}


def to_hf(shape: Shape, weights: Weights, cell: int = 0) -> dict[str, Tensor]:
    """The inverse of :func:`from_hf` for one cell of the cell axis."""
    own = {key: weight[min(cell, weight.shape[0] - 1)] for key, weight in weights.items()}
    tensors = {"model.embed_tokens.weight": own["embed"], "model.norm.weight": own["norm"]}
    if not shape.tied:
        tensors["lm_head.weight"] = own["head"]
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = own[f"{layer}.norm1"]
        tensors[prefix + "post_attention_layernorm.weight"] = own[f"{layer}.norm2"]
        for kind, modules in PROJECTIONS.items():
            parts = own[f"{layer}.{kind}"].split(shape.segments[kind])
            for module, part in zip(modules, parts, strict=True):
                if kind == "gate_up":
                    part = part[: shape.mlp_width]
                if kind == "down":
                    part = part[:, : shape.mlp_width]
                tensors[f"{prefix}{module}.weight"] = part
    return {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}


# --- forward -------------------------------------------------------------------------------------------


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` with a cell axis: x (C, N, in), weight (C or 1, out, in) -> (C, N, out)."""
    if weight.shape[0] == 1:
        return F.linear(x, weight[0])
    return torch.bmm(x, weight.mT)


def normalize(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm: x (C, N, H), gain (C or 1, H)."""
    wide = x.float() if x.dtype == torch.bfloat16 else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * gain.unsqueeze(1)


def rotations(shape: Shape, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, head_dim) of the rotary embedding at these positions; computed in float32 at least."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, shape.head_dim, 2, device=positions.device, dtype=wide) / shape.head_dim
    angles = positions.to(wide).unsqueeze(-1) * (1.0 / shape.rope_theta**exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (..., T, head_dim), halves paired as (i, i + head_dim/2)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def blocks(shape: Shape, weights: Weights, x: Tensor, project: Project, attend: Attend) -> Tensor:
    """All decoder layers and the final norm: x (C, N, H) -> (C, N, H).

    Args:
        project: applies the projection of that key, with its adapter if it has one.
        attend: (layer, q (C, N, Q), k (C, N, K), v (C, N, K)) -> (C, N, Q).
    """
    for layer in range(shape.layers):
        h = normalize(x, weights[f"{layer}.norm1"], shape.norm_eps)
        q, k, v = project(f"{layer}.qkv", h).split(shape.segments["qkv"], dim=-1)
        x = x + project(f"{layer}.o", attend(layer, q, k, v))
        h = normalize(x, weights[f"{layer}.norm2"], shape.norm_eps)
        gate, up = project(f"{layer}.gate_up", h).split(shape.segments["gate_up"], dim=-1)
        x = x + project(f"{layer}.down", F.silu(gate) * up)
    return normalize(x, weights["norm"], shape.norm_eps)


def embed(weights: Weights, ids: Tensor) -> Tensor:
    """Token embeddings: ids (C, B, T) -> (C, B*T, H)."""
    table, flat = weights["embed"], ids.flatten(1)
    if table.shape[0] == 1:
        return F.embedding(flat, table[0])
    cells, vocabulary, hidden = table.shape
    offset = torch.arange(cells, device=ids.device).unsqueeze(1) * vocabulary
    return F.embedding(flat + offset, table.reshape(cells * vocabulary, hidden))


def head(weights: Weights) -> Tensor:
    """The output matrix (C or 1, V, H): its own, or the embeddings where they are tied."""
    return weights.get("head", weights["embed"])


def causal(shape: Shape, cells: int, sequences: int, length: int, like: Tensor) -> Attend:
    """Causal self-attention within sequences of one length, without a cache."""
    cos, sin = rotations(shape, torch.arange(length, device=like.device), like.dtype)

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.reshape(cells * sequences, length, -1, shape.head_dim).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            rotate(split(q), cos, sin), rotate(split(k), cos, sin), split(v), is_causal=True, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(cells, sequences * length, -1)

    return attend


def hidden_states(shape: Shape, weights: Weights, ids: Tensor, project: Project | None = None) -> Tensor:
    """Final hidden states of whole sequences: ids (C, B, T) -> (C, B, T, H).

    Right padding needs no mask: attention is causal, and what follows a completion's end is not read.
    """
    cells, sequences, length = ids.shape
    x = embed(weights, ids)
    attend = causal(shape, cells, sequences, length, x)
    out = blocks(shape, weights, x, project or (lambda key, h: multiply(h, weights[key])), attend)
    return out.reshape(cells, sequences, length, shape.hidden)


def logits(shape: Shape, weights: Weights, ids: Tensor) -> Tensor:
    """Next-token logits of whole sequences: ids (C, B, T) -> (C, B, T, V)."""
    h = hidden_states(shape, weights, ids)
    return multiply(h.flatten(1, 2), head(weights)).reshape(*ids.shape, -1)


# --- log-probabilities ---------------------------------------------------------------------------------


class _TokenLogProbabilities(torch.autograd.Function):
    """log softmax(h W^T)[target] and the entropy, keeping one (N, V) array instead of autograd's several."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores = multiply(h, weight)
        scores = scores.float() if scores.dtype == torch.bfloat16 else scores
        scores -= scores.amax(-1, keepdim=True)
        chosen = scores.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        odds = scores.exp()  # probabilities, up to their total
        total = odds.sum(-1)
        log_total = total.log()
        entropy = log_total - torch.linalg.vecdot(odds, scores) / total
        ctx.save_for_backward(h, weight, targets, odds, total)
        ctx.mark_non_differentiable(entropy)
        return chosen - log_total, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        h, weight, targets, odds, total = ctx.saved_tensors
        # d logp / d scores = onehot(target) - p; in place, because the odds are large and not needed again.
        slope = odds.mul_((-gradient / total).unsqueeze(-1))
        slope.scatter_add_(-1, targets.unsqueeze(-1), gradient.unsqueeze(-1))
        slope = slope.to(h.dtype)
        to_h = multiply(slope, weight.mT) if ctx.needs_input_grad[0] else None
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = torch.bmm(slope.mT, h)
            if weight.shape[0] == 1 and to_weight.shape[0] > 1:
                to_weight = to_weight.sum(0, keepdim=True)
        return to_h, to_weight, None


def token_logps(
    shape: Shape, weights: Weights, ids: Tensor, prompt_length: int, project: Project | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each completion token under the unpenalised distribution.

    Args:
        ids: (C, B, T) prompt and completion.
        prompt_length: tokens before the completion.

    Returns:
        Two arrays (C, B, T - prompt_length), in nats. The entropy carries no gradient.
    """
    h = hidden_states(shape, weights, ids, project)[:, :, prompt_length - 1 : -1]
    targets = ids[:, :, prompt_length:]
    logps, entropy = _TokenLogProbabilities.apply(h.flatten(1, 2), head(weights), targets.flatten(1))
    return logps.reshape(targets.shape), entropy.reshape(targets.shape)
