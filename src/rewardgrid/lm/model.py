"""A LLaMA or Qwen2 in plain tensor operations, for one cell or many at once.

Every tensor has a leading cell axis C. Weights that all cells share (a frozen base) have C = 1 there and broadcast.
Sizes: B sequences, T positions, N = B*T, H hidden, Q = heads*head_dim, K = kv_heads*head_dim, M MLP width, V words.

The projections that read the same input are stored as one matrix: ``qkv`` (Q+2K, H) and ``gate_up`` (2M, H).
The rows of queries and keys are in the order of :func:`pair`, and so are their biases in ``qkv_bias`` (Q+2K), which a
Qwen2 has beside them. The MLP width is padded with zeros to a multiple of 8, which changes no result (the padded units
output zero and receive zero gradient) and makes the matrix products faster.

Architecture: Touvron et al. 2023 (LLaMA) with grouped-query attention, as in Hugging Face's ``LlamaForCausalLM``; Yang
et al. 2024 (Qwen2) is the same with biases on queries, keys and values, as in ``Qwen2ForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardgrid.lm.output import target_logps
from rewardgrid.study.errors import UserError

Weights = dict[str, Tensor]
Project = Callable[[str, Tensor], Tensor]

PROJECTIONS: dict[str, tuple[str, ...]] = {
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

ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
"""Modules whose outputs the rotary embedding turns."""


@dataclass(frozen=True)
class Shape:
    """The architecture: its sizes, and whether queries, keys and values have biases (Qwen2)."""

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
    qkv_bias: bool = False

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
            UserError: the model is neither a plain LLaMA nor a plain Qwen2 (other architecture, biases of a LLaMA,
                sliding window, scaled RoPE, other activation).
        """
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers' order
        qwen2 = config.get("model_type") == "qwen2"
        odd = {
            "model_type": not qwen2 and config.get("model_type") != "llama",
            "attention_bias": not qwen2 and bool(config.get("attention_bias", False)),
            "mlp_bias": not qwen2 and bool(config.get("mlp_bias", False)),
            "use_sliding_window": qwen2 and _slides(config),
            "hidden_act": config.get("hidden_act", "silu") != "silu",
            "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default"
            or any(isinstance(value, dict) for value in rope.values()),  # of each kind of layer
        }
        for key, is_odd in odd.items():
            if is_odd:
                read = rope if key == "rope_scaling" else config.get(key)
                raise UserError(
                    f"{source}: {key}: read {read!r}; rewardgrid trains plain LLaMA and Qwen2 models only: "
                    "choose a model with model_type llama (without biases) or qwen2 (without a sliding window), silu "
                    "and unscaled RoPE"
                )
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            # Where the key is missing, Hugging Face has 32 in a Qwen2, and as many as queries in a LLaMA.
            kv_heads=int(config.get("num_key_value_heads", 32 if qwen2 else heads) or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            mlp_width=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=qwen2,
        )


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether a Qwen2 has layers that see the last tokens only, as Hugging Face reads its configuration."""
    if not config.get("use_sliding_window", False) or config.get("sliding_window", 4096) is None:
        return False
    kinds = config.get("layer_types")
    if kinds is None:  # the layers from this one on
        return bool(config["num_hidden_layers"] > config.get("max_window_layers", 28))
    return "sliding_attention" in kinds


# --- weights -------------------------------------------------------------------------------------------


def pair(shape: Shape, rows: Tensor) -> Tensor:
    """Rows (heads * head_dim, ...) of a rotated projection, from Hugging Face's order to ours.

    There the two components that are turned together lie half a head apart; here they are neighbours.
    """
    return rows.unflatten(0, (-1, 2, shape.head_dim // 2)).transpose(1, 2).reshape(rows.shape)


def unpair(shape: Shape, rows: Tensor) -> Tensor:
    """The inverse of :func:`pair`."""
    return rows.unflatten(0, (-1, shape.head_dim // 2, 2)).transpose(1, 2).reshape(rows.shape)


def from_hf(shape: Shape, tensors: Mapping[str, Tensor]) -> Weights:
    """Fuse and pad a Hugging Face state dict (``model.layers.0.self_attn.q_proj.weight`` ...); each gets C = 1."""
    return {key: fused(shape, tensors, key) for key in weight_keys(shape)}


def weight_keys(shape: Shape) -> Iterator[str]:
    """The name of every weight in our form."""
    yield from ("embed", "norm", *([] if shape.tied else ["head"]))
    for layer in range(shape.layers):
        kinds = ("norm1", "norm2", *(["qkv_bias"] if shape.qkv_bias else []), *PROJECTIONS)
        yield from (f"{layer}.{kind}" for kind in kinds)


def fused(shape: Shape, tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """One weight in our form, with C = 1, of the Hugging Face tensors that it holds."""
    if key in WHOLE:
        return tensors[WHOLE[key]].unsqueeze(0)
    layer, kind = key.split(".")
    prefix = f"model.layers.{layer}."
    if kind in NORMS:
        return tensors[f"{prefix}{NORMS[kind]}.weight"].unsqueeze(0)
    if kind == "qkv_bias":
        parts = [tensors[f"{prefix}{module}.bias"] for module in PROJECTIONS["qkv"]]
    else:
        parts = [tensors[f"{prefix}{module}.weight"] for module in PROJECTIONS[kind]]
    extra = shape.mlp_padded - shape.mlp_width
    if kind in ("qkv", "qkv_bias"):
        parts = _paired(shape, parts)
    if kind == "gate_up":
        parts = [F.pad(part, (0, 0, 0, extra)) for part in parts]
    if kind == "down":
        parts = [F.pad(parts[0], (0, extra))]
    return torch.cat(parts).unsqueeze(0)


def _paired(shape: Shape, qkv: Sequence[Tensor]) -> list[Tensor]:
    """The parts of ``qkv``, weights or biases, with their rows in our order."""
    return [
        pair(shape, part) if module in ROTATED else part for module, part in zip(PROJECTIONS["qkv"], qkv, strict=True)
    ]


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
        if shape.qkv_bias:
            parts = own[f"{layer}.qkv_bias"].split(shape.segments["qkv"])
            for module, part in zip(PROJECTIONS["qkv"], parts, strict=True):
                tensors[f"{prefix}{module}.bias"] = unpair(shape, part) if module in ROTATED else part
        for kind, modules in PROJECTIONS.items():
            parts = own[f"{layer}.{kind}"].split(shape.segments[kind])
            for module, part in zip(modules, parts, strict=True):
                if module in ROTATED:
                    part = unpair(shape, part)
                if kind == "gate_up":
                    part = part[: shape.mlp_width]
                if kind == "down":
                    part = part[:, : shape.mlp_width]
                tensors[f"{prefix}{module}.weight"] = part
    return {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}


# --- forward -------------------------------------------------------------------------------------------


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` with a cell axis: x (C, N, in), weight (C or 1, out, in) -> (C, N, out).

    The product is in the weight's type, its sums in float32; the result is of x's type.
    """
    if weight.dtype != x.dtype:
        return multiply(x.to(weight.dtype), weight).to(x.dtype)
    if weight.shape[0] == 1:
        return F.linear(x, weight.squeeze(0))
    return torch.bmm(x, weight.mT)


def product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` with a cell axis: (C, n, k) and (C, k, m) -> (C, n, m); of one cell, the faster product of matrices."""
    return torch.mm(x[0], y[0]).unsqueeze(0) if len(x) == 1 else torch.bmm(x, y)


def widen(x: Tensor) -> Tensor:
    """The same numbers in float32, if they are in bfloat16."""
    return x.float() if x.dtype == torch.bfloat16 else x


def normalize(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm: x (C, N, H), gain (C or 1, H)."""
    normal: Tensor = _Normalize.apply(x, gain.unsqueeze(1), eps)
    return normal


class _Normalize(torch.autograd.Function):
    """Root-mean-square norm with half the passes over its arrays that autograd would make."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = widen(x)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        factor = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = wide * factor
        ctx.save_for_backward(unit, gain, factor)
        return unit.to(x.dtype) * gain

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        unit, gain, factor = ctx.saved_tensors
        product = gradient * unit
        to_gain = None
        if ctx.needs_input_grad[1]:
            to_gain = product.sum(1, keepdim=True)
            to_gain = to_gain if gain.shape[0] > 1 else to_gain.sum(0, keepdim=True)
        along = torch.matmul(product, gain.mT.to(product.dtype)) / unit.shape[-1]
        to_x = torch.addcmul(gradient * gain, unit, along, value=-1) * factor
        return to_x.to(gradient.dtype), None if to_gain is None else to_gain.to(gain.dtype), None


class _GatedSilu(torch.autograd.Function):
    """silu(gate) * up of both halves of one array; backward fills both halves of one array."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        sigmoid = gate.sigmoid()
        ctx.save_for_backward(gate_up, sigmoid)
        return (gate * sigmoid).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gate_up, sigmoid = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        slope = torch.empty_like(gate_up)
        to_gate, to_up = slope.chunk(2, -1)
        silu = gate * sigmoid
        torch.mul(gradient, silu, out=to_up)
        bend = torch.addcmul(sigmoid + silu, silu, sigmoid, value=-1)  # d silu / d gate
        torch.mul(bend.mul_(gradient), up, out=to_gate)
        return slope


def rotations(shape: Shape, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """The rotary embedding at these positions as complex numbers of length one: (T, head_dim/2).

    In float32 at least, whatever the model's own type.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, shape.head_dim, 2, device=positions.device, dtype=wide) / shape.head_dim
    angles = positions.to(wide).unsqueeze(-1) * (1.0 / shape.rope_theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn neighbouring pairs of numbers of x (..., T, n), as complex numbers, by rope (T, n/2)."""
    wide = widen(x)
    return (wide.view(rope.dtype) * rope).view(wide.dtype).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """:func:`rotate` for autograd, which cannot follow another view of the same bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rope: Tensor) -> Tensor:
        ctx.save_for_backward(rope)
        return rotate(x, rope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rope,) = ctx.saved_tensors
        return rotate(grad.contiguous(), rope.conj()), None


def blocks(shape: Shape, weights: Weights, x: Tensor, project: Project, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """All decoder layers and the final norm: x (C, N, H) -> (C, N, H).

    Args:
        project: applies the projection of that key, with its adapter if it has one.
        attend: qkv (C, N, Q+2K) -> (C, N, Q).
    """
    for layer in range(shape.layers):
        h = normalize(x, weights[f"{layer}.norm1"], shape.norm_eps)
        qkv = project(f"{layer}.qkv", h)
        if shape.qkv_bias:
            qkv = qkv + weights[f"{layer}.qkv_bias"].unsqueeze(1)
        x = x + project(f"{layer}.o", attend(qkv))
        h = normalize(x, weights[f"{layer}.norm2"], shape.norm_eps)
        x = x + project(f"{layer}.down", _GatedSilu.apply(project(f"{layer}.gate_up", h)))
    return normalize(x, weights["norm"], shape.norm_eps)


def embed(weights: Weights, ids: Tensor) -> Tensor:
    """Token embeddings: ids (C, B, T) -> (C, B*T, H)."""
    table, flat = weights["embed"], ids.flatten(1)
    if table.shape[0] == 1:
        return F.embedding(flat, table[0])
    cells, vocabulary, hidden = table.shape
    offset = torch.arange(cells, device=ids.device).unsqueeze(1) * vocabulary
    return F.embedding(flat + offset, table.reshape(cells * vocabulary, hidden))


def head(weights: Mapping[str, Tensor]) -> Tensor:
    """The output matrix (C or 1, V, H): its own, or the embeddings where they are tied."""
    return weights["head" if "head" in weights else "embed"]


def causal(shape: Shape, sequences: int, length: int, like: Tensor) -> Callable[[Tensor], Tensor]:
    """Causal self-attention within sequences of one length: qkv (C, N, Q+2K) -> (C, N, Q)."""
    heads, kv_heads = shape.heads, shape.kv_heads
    rope = rotations(shape, torch.arange(length, device=like.device), like.dtype)
    # Queries and keys are rotated, values are not: their factor is 1. Repeated, because broadcasting is slower.
    rope = torch.cat([rope.repeat(1, heads + kv_heads), torch.ones_like(rope).repeat(1, kv_heads)], 1)
    future = like.new_full((length, length), -torch.inf).triu(1).repeat(heads // kv_heads, 1)

    def attend(qkv: Tensor) -> Tensor:
        rotated = _Rotate.apply(qkv.view(-1, length, qkv.shape[-1]), rope).unflatten(-1, (-1, shape.head_dim))
        q, k, v = (each.transpose(1, 2) for each in rotated.split((heads, kv_heads, kv_heads), dim=2))
        if like.is_cuda:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            out = _attend(q * shape.head_dim**-0.5, k, v, future)
        return out.transpose(1, 2).reshape(-1, sequences * length, heads * shape.head_dim)

    return attend


def _attend(q: Tensor, k: Tensor, v: Tensor, future: Tensor) -> Tensor:
    """softmax(Q K^T + future) V by plain products, faster on a CPU than kernels that keep no scores.

    Args:
        q, k, v: (b, heads, T, head_dim), and (b, kv_heads, T, head_dim).
        future: (g*T, T) for the g heads of queries that share their keys: minus infinity where a key lies in it.
    """
    queries, keys, values = q.reshape(-1, len(future), q.shape[-1]), k.flatten(0, 1), v.flatten(0, 1)
    return torch.bmm(torch.baddbmm(future, queries, keys.mT).softmax(-1), values).view(q.shape)


def hidden_states(shape: Shape, weights: Weights, ids: Tensor, project: Project | None = None) -> Tensor:
    """Final hidden states of whole sequences: ids (C, B, T) -> (C, B, T, H).

    Right padding needs no mask: attention is causal, and what follows a completion's end is not read.
    """
    _, sequences, length = ids.shape
    x = embed(weights, ids)
    attend = causal(shape, sequences, length, x)
    out = blocks(shape, weights, x, project or (lambda key, h: multiply(h, weights[key])), attend)
    return out.unflatten(1, (sequences, length))


def logits(shape: Shape, weights: Weights, ids: Tensor) -> Tensor:
    """Next-token logits of whole sequences: ids (C, B, T) -> (C, B, T, V)."""
    h = hidden_states(shape, weights, ids)
    return multiply(h.flatten(1, 2), head(weights)).reshape(*ids.shape, -1)


# --- log-probabilities ---------------------------------------------------------------------------------


def completion_states(
    shape: Shape, weights: Weights, ids: Tensor, prompt_length: int, project: Project | None = None
) -> tuple[Tensor, Tensor]:
    """Hidden states (C, N, H) that predict the completions' tokens, and those tokens (C, N).

    Args:
        ids: (C, B, T) prompt and completion; N = B * (T - prompt_length).
        prompt_length: tokens before the completion.
    """
    hidden = hidden_states(shape, weights, ids, project)[:, :, prompt_length - 1 : -1]
    return hidden.flatten(1, 2), ids[:, :, prompt_length:].flatten(1)


def token_logps(shape: Shape, weights: Weights, ids: Tensor, prompt_length: int) -> Tensor:
    """Log-probability (C, B, T - prompt_length), in nats, of each token of the completions, for autograd."""
    hidden, targets = completion_states(shape, weights, ids, prompt_length)
    return target_logps(hidden, head(weights).expand(len(hidden), -1, -1), targets).unflatten(1, (ids.shape[1], -1))
