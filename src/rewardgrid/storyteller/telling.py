"""The teacher tells stories: many at a time, with one cache for what all requests begin with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rewardgrid.lm.draws import uniforms
from rewardgrid.lm.model import Shape, Weights
from rewardgrid.lm.sampler import Decoder, invert, keep_top
from rewardgrid.storyteller.requests import SHOWN, request
from rewardgrid.storyteller.teacher import Teacher

TEMPERATURE, TOP_K = 0.7, 40
SHORTEST, LONGEST = (
    60,
    160,
)  # tokens of a story; it may not end before, and one that has not ended by then is sifted out
CLOSING, CLOSE = 110, 3.0  # from this token on, a story is so many nats likelier to end after a sentence
USED = 0.7  # nats by which a word of four letters or more is less likely each time that it has been used
DROP_EVERY = 8  # steps between looking which stories have ended


class SharedStart(Decoder):
    """A decoder of sequences that all begin with the same tokens, whose keys and values are kept once."""

    def __init__(self, shape: Shape, weights: Weights, start: Tensor, sequences: int, positions: int) -> None:
        """Read the start (P,), and make room for so many positions of each sequence after it."""
        reader = Decoder(shape, weights, 1, 1, len(start))
        reader(start.unsqueeze(0), 0)
        super().__init__(shape, weights, 1, sequences, len(start) + positions)
        self.turns = self.turns[len(start) :]
        # For each layer: of each sequence (2, B*kv_heads, positions, head_dim), of all (2, kv_heads, P, head_dim).
        self.cache = [
            (own[:, :, len(start) :].clone(), shared) for own, shared in zip(self.cache, reader.cache, strict=True)
        ]

    def keep(self, rows: Tensor) -> None:
        """Go on with some sequences only: rows (B,) of booleans."""
        heads = rows.repeat_interleave(self.shape.kv_heads)
        self.cache = [(own[:, heads], shared) for own, shared in self.cache]

    def _attend(self, cache: Any, qkv: Tensor, length: int, start: int) -> Tensor:
        """One new position of each sequence; positions count from the end of what is shared."""
        (keys, values), (shared_keys, shared_values) = own, _ = cache
        queries, own[:, :, start : start + 1] = self._turned(qkv, length, start)
        to_shared = self._by_sequence(torch.bmm(self._by_head(queries), shared_keys.mT))
        to_own = torch.bmm(queries, keys[:, : start + 1].mT)
        of_shared, of_own = torch.cat([to_shared, to_own], -1).softmax(-1).split([shared_keys.shape[1], start + 1], -1)
        seen = self._by_sequence(torch.bmm(self._by_head(of_shared), shared_values))
        return torch.baddbmm(seen, of_own, values[:, : start + 1]).view(len(qkv), -1)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B*kv_heads, g, n) -> (kv_heads, B*g, n)."""
        return x.unflatten(0, (-1, self.shape.kv_heads)).transpose(0, 1).flatten(1, 2)

    def _by_sequence(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`_by_head`."""
        return x.unflatten(1, (-1, self.group)).transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def tell(teacher: Teacher, seed: int, numbers: Sequence[int]) -> pd.DataFrame:
    """The stories of these requests (schema: ``study.contracts.TOLD``).

    A story's words are drawn with uniforms that belong to its number, whatever is told beside it.
    """
    device, encode = teacher.words.device, teacher.tokenizer.encode
    requests = [request(seed, number) for number in numbers]
    prompts = [encode(each.prompt).ids for each in requests]
    starts = [len(encode(each.start).ids) for each in requests]
    longest = max(map(len, prompts))
    given = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in zip(given, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    given = given.to(device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    luck = torch.from_numpy(np.stack([uniforms(seed, "story", number, (LONGEST,)) for number in numbers])).to(device)
    total = longest + LONGEST
    shown = torch.tensor(encode(SHOWN).ids, device=device)
    decoder = SharedStart(teacher.shape, teacher.weights, shown, len(prompts), total)
    ends = torch.tensor(teacher.ends, device=device)
    stops = torch.tensor([encode(mark).ids[0] for mark in ".!?"], device=device)
    long = torch.tensor([len(teacher.tokenizer.decode([word]).strip()) > 3 for word in teacher.words.tolist()])
    used = torch.zeros(len(prompts), len(long), device=device)
    price = USED * long.to(device)
    told = torch.full((len(prompts), total), -1, dtype=torch.long, device=device)  # places in teacher.words
    alive = torch.arange(len(prompts), device=device)
    now, began, count = given[:, :1], time.monotonic(), 0
    for place in range(total - 1):
        at = place + 1 - lengths[alive]  # which token of its story each one is at
        scores = decoder(now, place).sub_(used * price)
        closing = CLOSE * ((at > CLOSING) & torch.isin(now.squeeze(1), stops)).float()
        scores[:, ends] += torch.where(at < SHORTEST, -torch.inf, closing).unsqueeze(1)
        drawn = invert(keep_top(scores / TEMPERATURE, TOP_K), luck[alive, at.clamp(0, LONGEST - 1)])
        telling = (at >= 0) & (at < LONGEST)
        told[alive, place + 1] = torch.where(telling, drawn, -1)
        used.scatter_add_(1, drawn.unsqueeze(1), telling.float().unsqueeze(1))
        now = teacher.words[drawn].unsqueeze(1)
        if place + 1 < longest:
            now = torch.where(telling.unsqueeze(1), now, given[alive, place + 1].unsqueeze(1))
        if place % DROP_EVERY == 0 and place >= longest:
            going = ~torch.isin(told[alive], ends).any(1) & (at + 1 < LONGEST)
            if not going.any():
                break
            if going.float().mean() < 0.9:
                count += int((~going).sum())
                alive, now, used = alive[going], now[going], used[going]
                decoder.keep(going)
                seconds = time.monotonic() - began
                print(f"from {numbers[0]}: {count}/{len(prompts)} stories told  {seconds:.0f} s", flush=True)
    stories = []
    for row, prompt, start in zip(told.cpu(), prompts, starts, strict=True):
        said = row[row >= 0]
        stop = torch.isin(said, ends.cpu()).nonzero().flatten()
        words = teacher.words.cpu()[said[: stop[0]] if len(stop) else said].tolist()
        stories.append((teacher.tokenizer.decode(prompt[-start:] + words), bool(len(stop))))
    return pd.DataFrame(
        {
            "number": list(numbers),
            "seed": seed,
            "prompt": [each.prompt for each in requests],
            "story": [story for story, _ in stories],
            "ended": [ended for _, ended in stories],
        }
    )
