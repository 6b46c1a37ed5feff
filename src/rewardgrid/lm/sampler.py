"""Exact sampling with a static key-value cache, as a pure function of weights, prompts and uniforms.

One loop over token positions, no host round trip on a GPU (the whole loop can be captured in one CUDA graph).
Shapes as in :mod:`rewardgrid.lm.model`; P prompt tokens, L completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardgrid.lm.kernels import Kernels, Plain
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
    decoder = Decoder(shape, weights, cells)
    decoder.begin(sequences, prompt_length + length - 1)
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
    into the queries' biases too. A key-value head's part of ``qkv`` is its g queries, its key, its value. Activations
    are of the type, and on the device, of the embeddings.

    Sequences may begin with the same tokens: their keys and values are kept once then (:meth:`begin`).
    """

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor], cells: int, kernels: Kernels | None = None) -> None:
        """Arrange weights (cell axis C or 1), each read once, for C cells.

        Args:
            kernels: how it is computed.
        """
        self.shape, self.cells = shape, cells
        self.group = shape.heads // shape.kv_heads
        self.kernels = kernels or Plain(cells)
        # Of each layer the keys and values (2, sequences and their key-value heads, positions, head_dim).
        self.cache: list[Tensor] = []
        self.shared: list[Tensor] | None = None
        table = weights["embed"]

        def behind(norm: str, matrix: Tensor) -> Tensor:
            """A matrix (C or 1, out, in) that takes over the gain of the norm before it, and sqrt(H)."""
            return (matrix * (weights[norm] * shape.hidden**0.5).unsqueeze(1)).to(table.dtype)

        def by_head(qkv: Tensor) -> Tensor:
            q, k, v = qkv.split(shape.segments["qkv"], 1)
            parts = [q * shape.head_dim**-0.5, k, v]
            split = [part.unflatten(1, (shape.kv_heads, -1)) for part in parts]
            return torch.cat(split, 2).flatten(1, 2)

        def bias(layer: int) -> Tensor | None:
            if not shape.qkv_bias:
                return None
            return self.kernels.bias(by_head(weights[f"{layer}.qkv_bias"]).to(table.dtype))

        self.embed = table.expand(cells, -1, -1).reshape(-1, shape.hidden)
        self.layers = [
            (
                self.kernels.matrix(behind(f"{layer}.norm1", by_head(weights[f"{layer}.qkv"]))),
                bias(layer),
                self.kernels.matrix(weights[f"{layer}.o"].to(table.dtype)),
                self.kernels.gates(behind(f"{layer}.norm2", weights[f"{layer}.gate_up"])),
                self.kernels.matrix(weights[f"{layer}.down"].to(table.dtype)),
            )
            for layer in range(shape.layers)
        ]
        self.head = self.kernels.matrix(behind("norm", head(weights)))
        wide = torch.promote_types(table.dtype, torch.float32)
        self.floor = torch.full((), (shape.hidden * shape.norm_eps) ** 0.5, dtype=wide, device=table.device)

    def begin(self, sequences: int, positions: int, start: Tensor | None = None) -> None:
        """Make room for B sequences of each cell, of at most this many positions after what they begin with.

        Args:
            start: (P,) tokens that all sequences of the one cell begin with. They are read here, once, as one sequence.
        """
        like, self.shared = self.embed, None
        if start is not None:
            self.begin(1, len(start))
            self(start.unsqueeze(0), 0)
            self.shared = self.cache
        self.sequences, before = sequences, 0 if start is None else len(start)
        # Queries and keys are turned, values are not: their factor is 1. (positions, 1, g + 2, head_dim/2)
        places = torch.arange(before, before + positions, device=like.device)
        turns = rotations(self.shape, places, like.dtype)[:, None, None]
        self.turns = torch.cat([turns.expand(-1, -1, self.group + 1, -1), torch.ones_like(turns)], 2)
        size = (2, self.cells * sequences * self.shape.kv_heads, positions, self.shape.head_dim)
        self.cache = [torch.empty(size, dtype=like.dtype, device=like.device) for _ in self.layers]

    def __call__(self, ids: Tensor, start: int) -> Tensor:
        """Feed ids (C*B, T) at positions start, start+1, ...; returns the scores (C*B, V) of the token after them.

        Positions count from the end of what all sequences begin with.
        """
        length = ids.shape[1]
        if self.cells > 1:
            tables = torch.arange(self.cells, device=ids.device) * self.shape.vocabulary
            ids = ids + tables.repeat_interleave(self.sequences).unsqueeze(1)
        x = F.embedding(ids.flatten(), self.embed)
        if self.cells > 1:
            x = x.unflatten(0, (self.cells, -1))
        for layer, (qkv, bias, o, gates, down) in enumerate(self.layers):
            seen = self._attend(layer, self.kernels.multiply(self._unit(x), qkv, bias), length, start)
            x = self.kernels.add(x, seen.reshape(*x.shape[:-1], -1), o)
            x = self.kernels.add(x, self.kernels.gated(self._unit(x), gates), down)
        if length > 1:
            x = x.unflatten(-2, (-1, length))[..., -1, :]
        scores = self.kernels.multiply(self._unit(x), self.head)
        return scores.flatten(0, -2).float()

    def keep(self, rows: Tensor) -> None:
        """Go on with some sequences of the one cell only: rows (B,) of booleans."""
        heads = rows.repeat_interleave(self.shape.kv_heads)
        for layer, own in enumerate(self.cache):  # one after another: two whole caches may be too much for the memory
            self.cache[layer] = own[:, heads]

    def _unit(self, x: Tensor) -> Tensor:
        """Root-mean-square norm without its gain: x / sqrt(|x|^2 + H eps), sqrt(H) being in the matrices."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.floor.dtype)
        return (x / torch.hypot(length, self.floor)).to(x.dtype)

    def _attend(self, layer: int, qkv: Tensor, length: int, start: int) -> Tensor:
        """Attention of new positions to all so far, for C*B*kv_heads pairs of a sequence and a head.

        Returns (C*B, T, kv_heads, g*head_dim), a view: Q numbers for each token.
        """
        own, stop = self.cache[layer], start + length
        queries, own[:, :, start:stop] = self._turned(qkv, length, start)
        keys, values = own[:, :, :stop]
        future = None
        if length > 1:
            future = torch.ones(length, stop, dtype=torch.bool, device=qkv.device).triu(start + 1)
            future = future.repeat_interleave(self.group, 0)
        if self.shared is None:
            out = self.kernels.attend(queries, keys, values, future)
        else:
            out = self._with_shared(
                self.shared[layer], queries, *self.kernels.attend_in_part(queries, keys, values, future)
            )
        return out.view(-1, self.shape.kv_heads, length, self.group * self.shape.head_dim).transpose(1, 2)

    def _with_shared(self, shared: Tensor, queries: Tensor, own: Tensor, own_weight: Tensor) -> Tensor:
        """Attention to what all sequences begin with and to their own tokens, (B*kv_heads, n, head_dim), of the latter.

        The queries of all sequences go through one product, so that what they share is read once.
        """
        rows = queries.unflatten(0, (-1, self.shape.kv_heads)).transpose(0, 1).flatten(1, 2)
        parts = self.kernels.attend_in_part(rows, *shared)
        out, weight = (part.unflatten(1, (-1, queries.shape[1])).transpose(0, 1).flatten(0, 1) for part in parts)
        # Each part counts as much as its sum of exp(Q K^T).
        return torch.lerp(own, out, (weight - own_weight).sigmoid().to(own.dtype).unsqueeze(-1))

    def _turned(self, qkv: Tensor, length: int, start: int) -> tuple[Tensor, Tensor]:
        """Queries (C*B*kv_heads, T*g, head_dim), and keys and values (2, C*B*kv_heads, T, head_dim), of a product."""
        size = self.shape.head_dim
        parts = qkv.view(-1, length, self.shape.kv_heads, self.group + 2, size)
        parts = rotate(parts, self.turns[start : start + length]).transpose(1, 2)
        parts = parts.reshape(-1, length, self.group + 2, size)
        return parts[:, :, : self.group].reshape(-1, length * self.group, size), parts[:, :, self.group :].movedim(2, 0)
