"""The teacher tells stories: many at a time, with one cache for what all requests begin with."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewardgrid.lm.draws import uniforms
from rewardgrid.lm.sampler import invert
from rewardgrid.storyteller.requests import SHOWN_ALIKE, Request, request
from rewardgrid.storyteller.teacher import Teacher
from rewardgrid.study.errors import UserError

TEMPERATURE, TOP_K = 0.8, 60
SHORTEST, LONGEST = 125, 215  # tokens of a story; it may not end before, and is cut off there
CLOSING, CLOSE = 165, 3.0  # from this token on, a story is so many nats likelier to end after a sentence
USED = 0.2  # nats by which a word of four letters or more is less likely each time that it has been used
HAPPY = 2.5  # nats by which it is less likely: the study pays for this word, so a base should seldom say it by itself
LONG, PUSH = (
    11,
    0.6,
)  # beyond so many words, a sentence's end is so many nats likelier for each, a comma half as much less
SHORT, HOLD = 5, 3.0  # below so many words, a sentence's end is so many nats less likely
ASK = 1.5  # nats by which a question is less likely
DROP_EVERY, CROWDED = 8, 0.9  # tokens between looking which stories have ended; if more go on, those stay in the batch


class Manner:
    """What makes some words likelier and others less, for B stories that are told at a time."""

    def __init__(self, teacher: Teacher, requests: Sequence[Request]) -> None:
        device, texts = teacher.words.device, teacher.texts

        def flags(chosen: Iterable[bool]) -> Tensor:
            return torch.tensor(list(chosen), device=device)

        self.end = teacher.end
        self.closes = flags(text in (".", "!", "?") for text in texts)
        self.asks = flags(text == "?" for text in texts)
        self.comma = flags(text == "," for text in texts)
        # A comma counts as a word, as it does in the rewards; the rest of a word that has begun does not.
        self.counts = flags(not text[:1].isalpha() and not text.startswith("'") for text in texts)
        self.price = USED * flags(text.startswith(" ") and len(text) > 4 for text in texts).float()
        costs = HAPPY * flags("happy" in text.lower() for text in texts).float()
        self.costs = costs.repeat(len(requests), 1)  # (B, W), in nats
        # (B,) words of the sentence that each story is in; a story that is between two sentences has 0.
        self.words = torch.tensor([float(len(re.findall(r"[\w']+|,", each.start))) for each in requests], device=device)

    def weigh(self, logits: Tensor, at: Tensor) -> Tensor:
        """Scores (B, W) of the next word, given which one of its story (B,) it is."""
        logits = logits - self.costs
        beyond = PUSH * (self.words - LONG).clamp(min=0)
        logits[:, self.closes] += (beyond - HOLD * (self.words < SHORT)).unsqueeze(1)
        logits[:, self.comma] -= 0.5 * beyond.unsqueeze(1)
        logits[:, self.asks] -= ASK
        early = (at < SHORTEST) | (self.words > 0)
        logits[:, self.end] = torch.where(early, -torch.inf, logits[:, self.end] + CLOSE * (at > CLOSING))
        return logits / TEMPERATURE

    def said(self, drawn: Tensor, telling: Tensor) -> None:
        """Take note of the words (B,) that were drawn by those (B,) that are telling already."""
        cost = torch.where(telling, self.price[drawn], 0.0)
        self.costs.scatter_add_(1, drawn.unsqueeze(1), cost.unsqueeze(1))
        words = torch.where(self.closes[drawn], 0.0, self.words + self.counts[drawn])
        self.words = torch.where(telling, words, self.words)

    def keep(self, rows: Tensor) -> None:
        """Go on with some stories only: rows (B,) of booleans."""
        self.costs, self.words = self.costs[rows], self.words[rows]


def tell(teacher: Teacher, seed: int, numbers: Sequence[int]) -> pd.DataFrame:
    """The stories of these requests (schema: ``study.contracts.TOLD``).

    A story's words are drawn with uniforms that belong to its number, whatever is told beside it.

    Raises:
        UserError: the teacher's context is too short.
    """
    alike = itertools.groupby(numbers, key=lambda number: number // SHOWN_ALIKE)
    return pd.concat([_tell_alike(teacher, seed, list(group)) for _, group in alike], ignore_index=True)


@torch.no_grad()
def _tell_alike(teacher: Teacher, seed: int, numbers: Sequence[int]) -> pd.DataFrame:
    """Stories of which all are shown the same.

    Requests differ in length, but all sequences move on together: those whose request has ended tell, the others read.
    """
    device, decoder = teacher.words.device, teacher.decoder
    requests = [request(seed, number) for number in numbers]
    asked = [teacher.read(each) for each in requests]
    # What all have in common must not depend on which stories are told together.
    start = _common([*asked, teacher.read(replace(requests[0], prompt="?"))])
    own = [torch.tensor(ids[len(start) :]) for ids in asked]
    lengths = torch.tensor([len(ids) for ids in own], device=device)
    given = pad_sequence(own, batch_first=True).to(device)
    read, total = int(lengths.min()), given.shape[1] + LONGEST
    if len(start) + total > decoder.shape.context:
        raise UserError(
            f"{teacher.chat.source}: a request and its story take up to {len(start) + total} tokens, but the model's "
            f"context is {decoder.shape.context}; choose a teacher with a longer one"
        )
    draws = torch.from_numpy(np.stack([uniforms(seed, "story", number, (LONGEST,)) for number in numbers])).to(device)
    manner, began = Manner(teacher, requests), time.monotonic()
    told = torch.full((len(own), total), -1, device=device)  # places in teacher.words
    active = torch.arange(len(own), device=device)
    decoder.begin(len(own), total, torch.tensor(start, device=device))
    logits = decoder(given[:, :read], 0)
    for place in range(read, total):
        at = place - lengths[active]
        telling = (at >= 0) & (at < LONGEST)
        top, words = manner.weigh(logits, at).topk(min(TOP_K, logits.shape[1]))
        drawn = words.gather(1, invert(top, draws[active, at.clamp(0, LONGEST - 1)]).unsqueeze(1)).squeeze(1)
        manner.said(drawn, telling)
        told[active, place] = torch.where(telling, drawn, -1)
        now = teacher.words[drawn]
        if place < given.shape[1]:
            now = torch.where(telling, now, given[active, place])
        elif place % DROP_EVERY == 0:
            going = (told[active] != teacher.end).all(1) & (at + 1 < LONGEST)
            if not going.any():
                break
            if going.float().mean() < CROWDED:
                active, now = active[going], now[going]
                decoder.keep(going)
                manner.keep(going)
                done, seconds = len(own) - len(active), time.monotonic() - began
                print(f"from {numbers[0]}: {done}/{len(own)} stories told  {seconds:.0f} s", flush=True)
        logits = decoder(now.unsqueeze(1), place)
    stories = [_story(teacher, row, each.start) for row, each in zip(told.tolist(), requests, strict=True)]
    return pd.DataFrame(
        {
            "number": list(numbers),
            "seed": seed,
            "prompt": [each.prompt for each in requests],
            "story": [story for story, _ in stories],
            "ended": [ended for _, ended in stories],
        }
    )


def _common(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """What all rows begin with; of each, at least one token is left."""
    least = min(map(len, rows)) - 1
    return rows[0][: next((place for place in range(least) if len({row[place] for row in rows}) > 1), least)]


def _story(teacher: Teacher, told: Sequence[int], start: str) -> tuple[str, bool]:
    """The text of what was told (T,), after its first words, and whether it came to an end."""
    said = [word for word in told if word >= 0]
    ended = teacher.end in said
    said = said[: said.index(teacher.end)] if ended else said
    return (start + "".join(teacher.texts[word] for word in said)).strip(), ended
