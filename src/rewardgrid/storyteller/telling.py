"""The teacher tells stories: many at a time, with one cache for what all requests begin with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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


class Style:
    """What makes some words likelier and others less, for stories told at a time: state of shape (B, W)."""

    def __init__(self, teacher: Teacher, sequences: int) -> None:
        device, texts = teacher.words.device, [teacher.tokenizer.decode([word]) for word in teacher.words.tolist()]
        self.ends = torch.tensor(teacher.ends, device=device)
        self.closes = torch.tensor([text in (".", "!", "?") for text in texts], device=device)
        self.price = USED * torch.tensor([float(len(text.strip()) > 3) for text in texts], device=device)
        self.used = torch.zeros(sequences, len(texts), device=device)
        self.closed = torch.zeros(sequences, dtype=torch.bool, device=device)

    def weigh(self, scores: Tensor, at: Tensor) -> Tensor:
        """Scores (B, W) of the next word, given at which token of its story (B,) each sequence is."""
        scores = scores - self.used * self.price
        closing = CLOSE * ((at > CLOSING) & self.closed).float()
        scores[:, self.ends] += torch.where(at < SHORTEST, -torch.inf, closing).unsqueeze(1)
        return scores / TEMPERATURE

    def said(self, drawn: Tensor, telling: Tensor) -> None:
        """Take note of the words (B,) that were drawn by those (B,) that are telling already."""
        self.used.scatter_add_(1, drawn.unsqueeze(1), telling.float().unsqueeze(1))
        self.closed = self.closes[drawn]

    def keep(self, rows: Tensor) -> None:
        """Go on with some sequences only: rows (B,) of booleans."""
        self.used, self.closed = self.used[rows], self.closed[rows]


@torch.no_grad()
def tell(teacher: Teacher, seed: int, numbers: Sequence[int]) -> pd.DataFrame:
    """The stories of these requests (schema: ``study.contracts.TOLD``).

    A story's words are drawn with uniforms that belong to its number, whatever is told beside it. Requests differ in
    length, but all sequences move on together: those whose request has ended tell, the others still read.
    """
    device, encode = teacher.words.device, teacher.tokenizer.encode
    requests = [request(seed, number) for number in numbers]
    prompts = [torch.tensor(encode(each.prompt).ids) for each in requests]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    given = pad_sequence(prompts, batch_first=True).to(device)
    luck = torch.from_numpy(np.stack([uniforms(seed, "story", number, (LONGEST,)) for number in numbers])).to(device)
    total = given.shape[1] + LONGEST
    decoder = SharedStart(
        teacher.shape, teacher.weights, torch.tensor(encode(SHOWN).ids, device=device), len(prompts), total
    )
    style = Style(teacher, len(prompts))
    told = torch.full((len(prompts), total), -1, device=device)  # places in teacher.words
    alive = torch.arange(len(prompts), device=device)
    now, began = given[:, :1], time.monotonic()
    for place in range(1, total):
        at = place - lengths[alive]
        telling = (at >= 0) & (at < LONGEST)
        scores = keep_top(style.weigh(decoder(now, place - 1), at), TOP_K)
        drawn = invert(scores, luck[alive, at.clamp(0, LONGEST - 1)])
        style.said(drawn, telling)
        told[alive, place] = torch.where(telling, drawn, -1)
        now = teacher.words[drawn].unsqueeze(1)
        if place < given.shape[1]:
            now = torch.where(telling.unsqueeze(1), now, given[alive, place : place + 1])
        elif place % DROP_EVERY == 0:
            going = ~torch.isin(told[alive], style.ends).any(1) & (at + 1 < LONGEST)
            if not going.any():
                break
            if going.float().mean() < 0.9:
                alive, now = alive[going], now[going]
                decoder.keep(going)
                style.keep(going)
                done, seconds = len(prompts) - len(alive), time.monotonic() - began
                print(f"from {numbers[0]}: {done}/{len(prompts)} stories told  {seconds:.0f} s", flush=True)
    stories = [_story(teacher, row, each.start) for row, each in zip(told.cpu(), requests, strict=True)]
    return pd.DataFrame(
        {
            "number": list(numbers),
            "seed": seed,
            "prompt": [each.prompt for each in requests],
            "story": [story for story, _ in stories],
            "ended": [ended for _, ended in stories],
        }
    )


def _story(teacher: Teacher, told: Tensor, start: str) -> tuple[str, bool]:
    """The text of what was told (T,), after its first words, and whether it came to an end."""
    said = told[told >= 0].tolist()
    stop = next((place for place, word in enumerate(said) if word in teacher.ends), None)
    words = teacher.words.cpu()[said[:stop]].tolist()
    return start + teacher.tokenizer.decode(words), stop is not None
