"""Exact sampling with a static key-value cache, as a pure function of weights, prompts and uniforms.

One loop over token positions, no host round trip on a GPU (the whole loop can be captured in one CUDA graph).
Shapes as in :mod:`rewardgrid.lm.model`; P prompt tokens, L completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewardgrid.lm.model import (
    Attend,
    Shape,
    Weights,
    blocks,
    embed,
    head,
    multiply,
    rotate,
    rotations,
)


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
        stop_early: leave the loop when every completion has ended (asks the device; off inside a CUDA graph).
    """
    cells, sequences, prompt_length = prompts.shape
    length = uniforms.shape[-1]
    rows = cells * sequences
    ids = torch.full((cells, sequences, prompt_length + length), eos, dtype=torch.long, device=prompts.device)
    ids[..., :prompt_length] = prompts
    mask = torch.zeros((cells, sequences, length), dtype=torch.bool, device=prompts.device)
    alive = torch.ones((cells, sequences), dtype=torch.bool, device=prompts.device)
    cache = _Cache(shape, rows, prompt_length + length - 1, weights["embed"])
    out = head(weights)
    last = cache.advance(weights, prompts, 0)
    for place in range(length):
        scores = multiply(last, out).reshape(rows, -1).float()
        if penalty is not None:
            seen = ids[..., : prompt_length + place].reshape(rows, -1)
            scores = penalize(scores, seen, penalty.repeat_interleave(sequences))
        if top_k is not None:
            scores = keep_top(scores, top_k)
        chosen = invert(scores, uniforms[..., place].reshape(rows)).reshape(cells, sequences)
        chosen = torch.where(alive, chosen, eos)
        ids[..., prompt_length + place] = chosen
        mask[..., place] = alive
        alive = alive & (chosen != eos)
        if place + 1 == length or (stop_early and not bool(alive.any())):
            break
        last = cache.advance(weights, chosen.unsqueeze(-1), prompt_length + place)
    return Completions(ids[..., prompt_length:], mask, eos)


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

    Overwrites the scores. The sum is compared with u times its own total, so its rounding leaves no gap at the end.
    """
    cumulative = scores.sub_(scores.amax(-1, keepdim=True)).exp_().cumsum_(-1)
    target = uniforms.to(scores.dtype).unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=scores.shape[-1] - 1)


class _Cache:
    """Keys and values of every position so far: one pair of (rows * kv_heads, positions, head_dim) a layer."""

    def __init__(self, shape: Shape, rows: int, positions: int, like: Tensor) -> None:
        self.shape, self.rows = shape, rows
        size = (shape.layers, rows * shape.kv_heads, positions, shape.head_dim)
        self.keys = torch.empty(size, dtype=like.dtype, device=like.device)
        self.values = torch.empty(size, dtype=like.dtype, device=like.device)
        self.cos, self.sin = rotations(shape, torch.arange(positions, device=like.device), like.dtype)

    def advance(self, weights: Weights, ids: Tensor, start: int) -> Tensor:
        """Feed ids (C, B, T) at positions start, start+1, ...; returns the last position's state (C, B, H)."""
        cells, sequences, length = ids.shape
        hidden = blocks(
            self.shape,
            weights,
            embed(weights, ids),
            lambda key, h: multiply(h, weights[key]),
            self._attend(cells, length, start),
        )
        return hidden.reshape(cells, sequences, length, -1)[:, :, -1]

    def _attend(self, cells: int, length: int, start: int) -> Attend:
        shape, rows, stop = self.shape, self.rows, start + length
        cos, sin = self.cos[start:stop], self.sin[start:stop]
        future = None
        if length > 1:
            ahead = torch.ones(length, stop, dtype=torch.bool, device=cos.device).triu(start + 1)
            future = ahead.repeat(shape.heads // shape.kv_heads, 1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            def split(x: Tensor) -> Tensor:
                return x.reshape(rows, length, -1, shape.head_dim).transpose(1, 2)

            keys, values = self.keys[layer, :, :stop], self.values[layer, :, :stop]
            # Queries and keys turn by the same angles: one rotation serves both.
            turned = rotate(split(torch.cat([q * shape.head_dim**-0.5, k], -1)), cos, sin)
            keys[:, start:] = turned[:, shape.heads :].reshape(-1, length, shape.head_dim)
            values[:, start:] = split(v).reshape(-1, length, shape.head_dim)
            # The query heads of a group read the same keys: (rows * kv_heads, group * T, head_dim).
            queries = turned[:, : shape.heads].reshape(rows * shape.kv_heads, -1, shape.head_dim)
            scores = torch.bmm(queries, keys.mT)
            if future is not None:
                scores = scores.masked_fill(future, -torch.inf)
            out = torch.bmm(scores.softmax(-1), values).reshape(rows, shape.heads, length, shape.head_dim)
            return out.transpose(1, 2).reshape(cells, -1, shape.heads * shape.head_dim)

        return attend
