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

from rewardgrid.lm.foreign import Architecture, Cached, Foreign
from rewardgrid.lm.kernels import Kernels, Plain, Wide
from rewardgrid.lm.model import Weights, head, rotate, widen
from rewardgrid.lm.output import exp_
from rewardgrid.lm.rope import rotations
from rewardgrid.lm.shape import KINDS, Shape

LOOK_EVERY = 8
"""Tokens between looking which completions have ended."""

BLOCK = 64
"""Words whose probabilities are summed before one of them is looked for."""

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


def sample(
    shape: Architecture,
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
    with torch.inference_mode():  # operations cost a sixth less
        ids = _continued(shape, weights, prompts, uniforms, eos, penalty, top_k, stop_early)
    # A sequence goes on after its end; that is thrown away here.
    written = ids.view(*prompts.shape[:2], -1)[..., prompts.shape[-1] :]
    is_end = written == eos
    mask = is_end.cumsum(-1) - is_end.long() == 0
    return Completions(torch.where(mask, written, eos), mask, eos)


def _continued(
    shape: Architecture,
    weights: Weights,
    prompts: Tensor,
    uniforms: Tensor,
    eos: int,
    penalty: Tensor | None,
    top_k: int | None,
    stop_early: bool,
) -> Tensor:
    """Prompts and what follows them, as ids (C*B, P+L)."""
    cells, sequences, prompt_length = prompts.shape
    length, rows = uniforms.shape[-1], cells * sequences
    ids = torch.full((rows, prompt_length + length), eos, dtype=torch.long, device=prompts.device)
    ids[:, :prompt_length] = prompts.flatten(0, 1)
    uniforms = uniforms.flatten(0, 1)
    penalties = None if penalty is None else penalty.repeat_interleave(sequences)
    if isinstance(shape, Foreign):
        decoder: Decoder | Cached = shape.decoder(weights)
    else:
        kernels = Wide(sequences) if cells == 1 and Wide.work(weights["embed"].dtype, prompts.device) else None
        decoder = Decoder(shape, weights, cells, kernels)
    decoder.begin(sequences, prompt_length + length - 1)
    logits = decoder(ids[:, :prompt_length], 0)
    active: slice | Tensor = slice(None)  # the rows that are still written
    for place in range(length):
        now = prompt_length + place
        if penalties is not None:
            logits = penalize(logits, ids[active, :now], penalties[active])
        if top_k is not None:
            logits = keep_top(logits, top_k)
        ids[active, now] = invert(logits, uniforms[active, place])
        if place + 1 == length:
            break
        if stop_early and place % LOOK_EVERY == LOOK_EVERY - 1:
            unfinished = (ids[active, prompt_length : now + 1] != eos).all(1)
            if not unfinished.any():
                break
            if cells == 1 and unfinished.float().mean() < CROWDED:
                active = torch.arange(rows, device=ids.device)[active][unfinished]
                decoder.keep(unfinished)
        logits = decoder(ids[active, now : now + 1], now)
    return ids


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Repetition penalty (Keskar et al. 2019): logits (R, V), seen ids (R, S), penalty (R,) -> (R, V).

    Changes the logits in place. Gathers and scatters the seen tokens only; one that was seen twice is written twice,
    with the same value.
    """
    values = logits.gather(1, seen)
    factor = penalty.to(logits.dtype).unsqueeze(1)
    return logits.scatter_(1, seen, torch.where(values > 0, values / factor, values * factor))


def keep_top(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits (R, V) of each row to minus infinity (ties with the k-th are kept)."""
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def invert(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from softmax(logits) (R, V) by inverting its cumulative sum at the uniforms (R,); changes the logits.

    First the block of words is found that holds u times the total, then the word in it: most words are only summed.
    """
    words = logits.shape[-1]
    if words % BLOCK:
        logits = F.pad(logits, (0, -words % BLOCK), value=-torch.inf)
    blocks = exp_(logits.sub_(logits.amax(-1, keepdim=True))).unflatten(-1, (-1, BLOCK))  # multiples of probabilities
    cumulative = blocks.sum(-1).cumsum_(-1)
    target = uniforms.to(logits.dtype).unsqueeze(1) * cumulative[:, -1:]  # less than the total: u <= 1 - 2^-24
    # Of NaN, which a policy that diverges comes to, nothing is found: the last word stands for that.
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[-1] - 1)
    target -= F.pad(cumulative, (1, 0)).gather(1, block)
    cumulative = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).cumsum_(-1)
    # A block's sum is rounded in two ways, so what is left may exceed it; no word of probability 0 is drawn for that.
    target = torch.minimum(target, cumulative[:, -1:] * (1 - 2**-24))
    return (block * BLOCK + torch.searchsorted(cumulative, target, right=True)).squeeze(1).clamp_(max=words - 1)


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

        def bias(layer: int, kind: str) -> Tensor | None:
            if kind not in shape.biases:
                return None
            own = weights[f"{layer}.{kind}_bias"]
            return self.kernels.bias((by_head(own) if kind == "qkv" else own).to(table.dtype))

        self.embed = table.expand(cells, -1, -1).reshape(-1, shape.hidden)
        self.layers = [
            (
                self.kernels.matrix(behind(f"{layer}.norm1", by_head(weights[f"{layer}.qkv"]))),
                self.kernels.matrix(weights[f"{layer}.o"].to(table.dtype)),
                self.kernels.gates(behind(f"{layer}.norm2", weights[f"{layer}.gate_up"])),
                self.kernels.matrix(weights[f"{layer}.down"].to(table.dtype)),
                [bias(layer, kind) for kind in KINDS],
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
        # Queries and keys are rotated, values are not: their factor is 1. (positions, (Q+2K)/2)
        rope = rotations(self.shape, torch.arange(before, before + positions, device=like.device), like.dtype)
        self.rope = torch.cat([*[rope] * (self.group + 1), torch.ones_like(rope)], 1).repeat(1, self.shape.kv_heads)
        size = (2, self.cells * sequences * self.shape.kv_heads, positions, self.shape.head_dim)
        self.cache = [torch.empty(size, dtype=like.dtype, device=like.device) for _ in self.layers]

    def __call__(self, ids: Tensor, start: int) -> Tensor:
        """Feed ids (C*B, T) at positions start, start+1, ...; returns the logits (C*B, V) of the token after them.

        Positions count from the end of what all sequences begin with.
        """
        length = ids.shape[1]
        if self.cells > 1:
            tables = torch.arange(self.cells, device=ids.device) * self.shape.vocabulary
            ids = ids + tables.repeat_interleave(self.sequences).unsqueeze(1)
        x = F.embedding(ids.flatten(), self.embed)
        if self.cells > 1:
            x = x.unflatten(0, (self.cells, -1))
        for layer, (qkv, o, gates, down, (qkv_bias, o_bias, gate_up_bias, down_bias)) in enumerate(self.layers):
            attended = self._attend(layer, self.kernels.multiply(self._unit(x), qkv, qkv_bias), length, start)
            x = self.kernels.add(x, attended.reshape(*x.shape[:-1], -1), o, o_bias)
            x = self.kernels.add(x, self.kernels.gated(self._unit(x), gates, gate_up_bias), down, down_bias)
        if length > 1:
            x = x.unflatten(-2, (-1, length))[..., -1, :]
        return widen(self.kernels.multiply(self._unit(x), self.head).flatten(0, -2))

    def keep(self, rows: Tensor) -> None:
        """Go on with some sequences of the one cell only: rows (B,) of booleans."""
        heads = rows.repeat_interleave(self.shape.kv_heads)
        for layer, own in enumerate(self.cache):  # one after another: two whole caches may be too much for the memory
            self.cache[layer] = own[:, heads]

    def _unit(self, x: Tensor) -> Tensor:
        """Root-mean-square norm without its gain: x / sqrt(|x|^2 + H eps), sqrt(H) being in the matrices."""
        wide = widen(x)
        return (wide / torch.hypot(torch.linalg.vector_norm(wide, dim=-1, keepdim=True), self.floor)).to(x.dtype)

    def _attend(self, layer: int, qkv: Tensor, length: int, start: int) -> Tensor:
        """Attention of new positions to all so far, for C*B*kv_heads pairs of a sequence and a head.

        Returns (C*B, T, kv_heads, g*head_dim), a view: Q numbers for each token.
        """
        cache, stop, group, size = self.cache[layer], start + length, self.group, self.shape.head_dim
        heads = rotate(qkv.view(-1, length, qkv.shape[-1]), self.rope[start:stop])
        heads = heads.view(-1, length, self.shape.kv_heads, group + 2, size).transpose(1, 2)
        heads = heads.reshape(-1, length, group + 2, size)
        queries = heads[:, :, :group].reshape(-1, length * group, size)
        cache[:, :, start:stop] = heads[:, :, group:].movedim(2, 0)
        keys, values = cache[:, :, :stop].unbind(0)
        future = None
        if length > 1:
            future = torch.ones(length, stop, dtype=torch.bool, device=qkv.device).triu(start + 1)
            future = future.repeat_interleave(group, 0)
        if self.shared is None:
            out = self.kernels.attend(queries, keys, values, future)
        else:
            out = self._with_shared(
                self.shared[layer], queries, *self.kernels.attend_in_part(queries, keys, values, future)
            )
        return out.view(-1, self.shape.kv_heads, length, group * size).transpose(1, 2)

    def _with_shared(self, shared: Tensor, queries: Tensor, own: Tensor, own_weight: Tensor) -> Tensor:
        """Attention to what all sequences begin with and to their own tokens, (B*kv_heads, n, head_dim), of the latter.

        The queries of all sequences go through one product, so that what they share is read once.
        """
        rows = queries.unflatten(0, (-1, self.shape.kv_heads)).transpose(0, 1).flatten(1, 2)
        parts = self.kernels.attend_in_part(rows, *shared)
        out, weight = (part.unflatten(1, (-1, queries.shape[1])).transpose(0, 1).flatten(0, 1) for part in parts)
        # Each part counts as much as its sum of exp(Q K^T).
        return torch.lerp(own, out, (weight - own_weight).sigmoid().to(own.dtype).unsqueeze(-1))
