"""Exact sampling with a static key-value cache, as a pure function of weights, prompts and uniforms.

One loop over token positions, no host round trip on a GPU (the whole loop can be captured in one CUDA graph).
Shapes as in :mod:`rewardgrid.lm.model`; P prompt tokens, L completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardgrid.lm.model import Shape, Weights, head, rotate, rotations

LOOK_EVERY = 8
"""Tokens between looking which completions have ended."""

CROWDED = 0.8
"""Of the rows, so many must still be written; otherwise the others are left out, which costs a copy of the cache."""


@dataclass(frozen=True)
class Completions:
    """Sampled completions.

    Attributes:
        ids: (C, B, L) token ids; everything after the first end-of-sequence token is that token again.
        mask: (C, B, L) True up to and including the first end-of-sequence token.
    """

    ids: Tensor
    mask: Tensor
    eos: int

    @property
    def ended(self) -> Tensor:
        """(C, B) whether the completion stopped by itself."""
        return (self.mask & (self.ids == self.eos)).any(-1)

    @property
    def lengths(self) -> Tensor:
        """(C, B) tokens, the end-of-sequence token included."""
        return self.mask.sum(-1)


@torch.no_grad()
def sample(
    shape: Shape,
    weights: Weights,
    prompts: Tensor,
    uniforms: Tensor,
    eos: int,
    penalty: Tensor | None = None,
    top_k: int | None = None,
    stop_early: bool = True,
) -> Completions:
    """Sample one completion for each prompt at temperature 1 by inverting the cumulative distribution.

    Args:
        weights: merged weights, cell axis C or 1.
        prompts: (C, B, P) token ids.
        uniforms: (C, B, L) draws in [0, 1), one for each token.
        eos: the token that ends a completion, and fills what follows.
        penalty: (C,) repetition penalty over prompt and completion tokens: the logit of a token already present is
            divided by it if positive, multiplied if negative. None: no penalty.
        top_k: keep only the k likeliest tokens.
        stop_early: leave out completions that have ended (asks the device; off inside a CUDA graph).
    """
    cells, sequences, prompt_length = prompts.shape
    length, rows = uniforms.shape[-1], cells * sequences
    ids = torch.full((rows, prompt_length + length), eos, dtype=torch.long, device=prompts.device)
    ids[:, :prompt_length] = prompts.flatten(0, 1)
    luck = uniforms.flatten(0, 1)
    factor = None if penalty is None else penalty.repeat_interleave(sequences)
    decoder = Decoder(shape, weights, cells, sequences, prompt_length + length - 1)
    scores = decoder(ids[:, :prompt_length], 0)
    writing: slice | Tensor = slice(None)  # the rows that are still written
    for place in range(length):
        now = prompt_length + place
        if factor is not None:
            scores = penalize(scores, ids[writing, :now], factor[writing])
        if top_k is not None:
            scores = keep_top(scores, top_k)
        ids[writing, now] = invert(scores, luck[writing, place])
        if place + 1 == length:
            break
        if stop_early and place % LOOK_EVERY == LOOK_EVERY - 1:
            going = (ids[writing, prompt_length : now + 1] != eos).all(1)
            if not going.any():
                break
            if cells == 1 and going.float().mean() < CROWDED:
                writing = torch.arange(rows, device=ids.device)[writing][going]
                decoder.keep(going)
        scores = decoder(ids[writing, now : now + 1], now)
    # A sequence writes on after its end; that is thrown away here.
    written = ids[:, prompt_length:].reshape(cells, sequences, length)
    is_end = written == eos
    mask = is_end.cumsum(-1) - is_end.long() == 0
    return Completions(torch.where(mask, written, eos), mask, eos)


def penalize(scores: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Repetition penalty (Keskar et al. 2019): scores (R, V), seen ids (R, S), penalty (R,) -> (R, V).

    Changes the scores in place. Gathers and scatters the seen tokens only; one that was seen twice is written twice,
    with the same value.
    """
    values = scores.gather(1, seen)
    factor = penalty.to(scores.dtype).unsqueeze(1)
    return scores.scatter_(1, seen, torch.where(values > 0, values / factor, values * factor))


def keep_top(scores: Tensor, k: int) -> Tensor:
    """Set all but the k largest scores (R, V) of each row to minus infinity (ties with the k-th are kept)."""
    if k >= scores.shape[-1]:
        return scores
    threshold = scores.topk(k, dim=-1).values[:, -1:]
    return scores.masked_fill(scores < threshold, -torch.inf)


def invert(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from softmax(scores) (R, V) by inverting its cumulative sum at the uniforms (R,).

    The sum is compared with u times its own total, so its rounding leaves no gap at the end.
    """
    cumulative = scores.softmax(-1).cumsum_(-1)
    target = uniforms.to(scores.dtype).unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=scores.shape[-1] - 1)


class Decoder:
    """A model arranged for a token at a time: few operations on small arrays, so each of them counts.

    The gains of the norms and the scale of the queries are multiplied into the matrices that follow them, that scale
    into the queries' biases too. The matrices lie transposed, (in, out), and without their cell axis where there is one
    cell only, because products of two dimensions are faster than of three. A key-value head's part of ``qkv`` is its g
    queries, its key, its value.
    """

    def __init__(self, shape: Shape, weights: Weights, cells: int, sequences: int, positions: int) -> None:
        """Arrange weights (cell axis C or 1) for C cells of B sequences of at most this many positions."""
        self.shape, self.cells, self.sequences = shape, cells, sequences
        self.group = shape.heads // shape.kv_heads
        self.multiply: Callable[[Tensor, Tensor], Tensor] = torch.mm if cells == 1 else torch.bmm
        self.multiply_add: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.addmm if cells == 1 else torch.baddbmm
        like = weights["embed"]

        def arrange(matrix: Tensor, gain: Tensor | None = None) -> Tensor:
            matrix = matrix.mT if gain is None else matrix.mT * (gain * shape.hidden**0.5).unsqueeze(-1)
            return matrix[0].contiguous() if cells == 1 else matrix.expand(cells, -1, -1).contiguous()

        def by_head(qkv: Tensor) -> Tensor:
            q, k, v = qkv.split(shape.segments["qkv"], 1)
            parts = [q * shape.head_dim**-0.5, k, v]
            split = [part.unflatten(1, (shape.kv_heads, -1)) for part in parts]
            return torch.cat(split, 2).flatten(1, 2)

        def bias(layer: int) -> Tensor | None:
            if not shape.qkv_bias:
                return None
            row = by_head(weights[f"{layer}.qkv_bias"])
            return row[0] if cells == 1 else row.unsqueeze(1)

        self.embed = like.expand(cells, -1, -1).reshape(-1, shape.hidden)
        self.layers = [
            (
                arrange(by_head(weights[f"{layer}.qkv"]), weights[f"{layer}.norm1"]),
                bias(layer),
                arrange(weights[f"{layer}.o"]),
                arrange(weights[f"{layer}.gate_up"], weights[f"{layer}.norm2"]),
                arrange(weights[f"{layer}.down"]),
            )
            for layer in range(shape.layers)
        ]
        self.head = arrange(head(weights), weights["norm"])
        wide = torch.promote_types(like.dtype, torch.float32)
        self.floor = torch.full((), (shape.hidden * shape.norm_eps) ** 0.5, dtype=wide, device=like.device)
        # Queries and keys are turned, values are not: their factor is 1. (positions, 1, g + 2, head_dim/2)
        turns = rotations(shape, torch.arange(positions, device=like.device), like.dtype)[:, None, None]
        self.turns = torch.cat([turns.expand(-1, -1, self.group + 1, -1), torch.ones_like(turns)], 2)
        size = (shape.layers, 2, cells * sequences * shape.kv_heads, positions, shape.head_dim)
        self.cache: Any = torch.empty(size, dtype=like.dtype, device=like.device)

    def __call__(self, ids: Tensor, start: int) -> Tensor:
        """Feed ids (C*B, T) at positions start, start+1, ...; returns the scores (C*B, V) of the token after them."""
        length = ids.shape[1]
        if self.cells > 1:
            tables = torch.arange(self.cells, device=ids.device) * self.shape.vocabulary
            ids = ids + tables.repeat_interleave(self.sequences).unsqueeze(1)
        x = F.embedding(ids.flatten(), self.embed)
        if self.cells > 1:
            x = x.unflatten(0, (self.cells, -1))
        for cache, (qkv, bias, o, gate_up, down) in zip(self.cache, self.layers, strict=True):
            unit = self._unit(x)
            product = self.multiply(unit, qkv) if bias is None else self.multiply_add(bias, unit, qkv)
            seen = self._attend(cache, product, length, start)
            x = self.multiply_add(x, seen.reshape(*x.shape[:-1], -1), o)
            gate, up = self.multiply(self._unit(x), gate_up).chunk(2, -1)
            x = self.multiply_add(x, F.silu(gate) * up, down)
        if length > 1:
            x = x.unflatten(-2, (-1, length))[..., -1, :]
        scores = self.multiply(self._unit(x), self.head)
        return scores.flatten(0, -2).float()

    def keep(self, rows: Tensor) -> None:
        """Go on with some sequences of the one cell only: rows (B,) of booleans."""
        self.cache = self.cache[:, :, rows.repeat_interleave(self.shape.kv_heads)]

    def _unit(self, x: Tensor) -> Tensor:
        """Root-mean-square norm without its gain: x / sqrt(|x|^2 + H eps), sqrt(H) being in the matrices."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.floor.dtype)
        return (x / torch.hypot(length, self.floor)).to(x.dtype)

    def _attend(self, cache: Any, qkv: Tensor, length: int, start: int) -> Tensor:
        """Attention of new positions to all so far: cache (2, C*B*kv_heads, positions, head_dim).

        Returns (C*B, T, kv_heads, g*head_dim), a view: Q numbers for each token.
        """
        stop = start + length
        queries, cache[:, :, start:stop] = self._turned(qkv, length, start)
        keys, values = cache[:, :, :stop]
        scores = torch.bmm(queries, keys.mT)
        if length > 1:
            future = torch.ones(length, stop, dtype=torch.bool, device=qkv.device).triu(start + 1)
            scores = scores.masked_fill(future.repeat_interleave(self.group, 0), -torch.inf)
        out = torch.bmm(scores.softmax(-1), values)
        return out.view(-1, self.shape.kv_heads, length, self.group * self.shape.head_dim).transpose(1, 2)

    def _turned(self, qkv: Tensor, length: int, start: int) -> tuple[Tensor, Tensor]:
        """Queries (C*B*kv_heads, T*g, head_dim), and keys and values (2, C*B*kv_heads, T, head_dim), of a product."""
        size = self.shape.head_dim
        parts = qkv.view(-1, length, self.shape.kv_heads, self.group + 2, size)
        parts = rotate(parts, self.turns[start : start + length]).transpose(1, 2)
        parts = parts.reshape(-1, length, self.group + 2, size)
        return parts[:, :, : self.group].reshape(-1, length * self.group, size), parts[:, :, self.group :].movedim(2, 0)
