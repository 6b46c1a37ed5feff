"""A LLaMA or Qwen2 in plain tensor operations, for one cell or many at once.

Every tensor has a leading cell axis C. Weights that all cells share (a frozen base) have C = 1 there and broadcast.
Sizes: B sequences, T positions, N = B*T, H hidden, Q = heads*head_dim, K = kv_heads*head_dim, M MLP width, V words.

The projections that read the same input are stored as one matrix: ``qkv`` (Q+2K, H) and ``gate_up`` (2M, H).
In the rows of queries and keys the components that the rotary embedding turns together are neighbours. A projection's
bias, where it has one, is ``qkv_bias`` (Q+2K) and so on. The MLP width is padded with zeros to a multiple of 8, which
changes no result (the padded units output zero and receive zero gradient) and makes the matrix products faster.

Architecture: Touvron et al. 2023 (LLaMA) with grouped-query attention, as in Hugging Face's ``LlamaForCausalLM``; Yang
et al. 2024 (Qwen2) is the same with biases on queries, keys and values, as in ``Qwen2ForCausalLM``. What is computed
otherwise is called as a whole (:mod:`rewardgrid.lm.foreign`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardgrid.lm.foreign import Architecture, Foreign
from rewardgrid.lm.output import target_logps
from rewardgrid.lm.rope import rotations
from rewardgrid.lm.shape import Shape

Weights = dict[str, Tensor]
Project = Callable[[str, Tensor], Tensor]

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

    def through(key: str, h: Tensor) -> Tensor:
        bias = weights.get(f"{key}_bias")
        return project(key, h) if bias is None else project(key, h) + bias.unsqueeze(1)

    for layer in range(shape.layers):
        h = normalize(x, weights[f"{layer}.norm1"], shape.norm_eps)
        x = x + through(f"{layer}.o", attend(through(f"{layer}.qkv", h)))
        h = normalize(x, weights[f"{layer}.norm2"], shape.norm_eps)
        x = x + through(f"{layer}.down", _GatedSilu.apply(through(f"{layer}.gate_up", h)))
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


def logits(shape: Architecture, weights: Weights, ids: Tensor) -> Tensor:
    """Next-token logits of whole sequences: ids (C, B, T) -> (C, B, T, V)."""
    if isinstance(shape, Foreign):
        return shape.logits(weights, ids)
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


def token_logps(shape: Architecture, weights: Weights, ids: Tensor, prompt_length: int) -> Tensor:
    """Log-probability (C, B, T - prompt_length), in nats, of each token of the completions, for autograd."""
    if isinstance(shape, Foreign):
        return shape.token_logps(weights, ids, prompt_length)
    hidden, targets = completion_states(shape, weights, ids, prompt_length)
    return target_logps(hidden, head(weights).expand(len(hidden), -1, -1), targets).unflatten(1, (ids.shape[1], -1))
