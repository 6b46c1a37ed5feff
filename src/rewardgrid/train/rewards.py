"""Rewards of completions, from token ids, as tensor operations of fixed shape.

A *sentence* is a non-empty run of non-delimiter tokens closed by a delimiter (``.`` ``?`` ``!``). A trailing unclosed
run is no sentence; the end-of-sequence token and padding are no tokens of the text. No sentence: reward 0.
Shapes: (..., L) token ids and masks -> (...) rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardgrid.study.cell import Reward

WORD = "happy"


@dataclass(frozen=True)
class TextTables:
    """What rewards need to know of the vocabulary, as tensors indexed by token id (V words).

    Attributes:
        delimiter: (V,) True for tokens that close a sentence.
        eos: id of the end-of-sequence token.
        next_state: (len(WORD), V) state of the ``happy`` automaton after reading a token.
        found: (len(WORD), V) how many times ``happy`` was completed while reading it.
    """

    delimiter: Tensor
    eos: int
    next_state: Tensor
    found: Tensor

    def to(self, device: torch.device) -> TextTables:
        """The same tables on another device."""
        return TextTables(self.delimiter.to(device), self.eos, self.next_state.to(device), self.found.to(device))


def text_tables(surfaces: Sequence[str], delimiters: Sequence[int], eos: int) -> TextTables:
    """Compile a vocabulary.

    Args:
        surfaces: the text that each token adds to a decoded completion, "" for special tokens.
        delimiters: ids that close a sentence.
        eos: id of the end-of-sequence token.
    """
    delimiter = torch.zeros(len(surfaces), dtype=torch.bool)
    delimiter[list(delimiters)] = True
    next_state = torch.zeros(len(WORD), len(surfaces), dtype=torch.long)
    found = torch.zeros(len(WORD), len(surfaces), dtype=torch.long)
    for token, surface in enumerate(surfaces):
        for state in range(len(WORD)):
            next_state[state, token], found[state, token] = _read(state, surface.lower())
    return TextTables(delimiter, eos, next_state, found)


def _read(state: int, text: str) -> tuple[int, int]:
    """Run the automaton over text; state = letters of WORD matched so far. Returns (state, completed words)."""
    count = 0
    matched = WORD[:state]
    for letter in text:
        matched += letter
        while not WORD.startswith(matched):
            matched = matched[1:]
        if matched == WORD:
            count += 1
            matched = ""  # str.count semantics; no border of the word is a prefix of it either
    return len(matched), count


def sentence_lengths(ids: Tensor, mask: Tensor, tables: TextTables) -> tuple[Tensor, Tensor]:
    """Lengths in tokens of the sentences of each completion, placed where they close.

    Args:
        ids: (..., L) token ids.
        mask: (..., L) True for the completion's tokens.

    Returns:
        lengths (..., L), and closes (..., L): True where a sentence closes; lengths mean nothing elsewhere.
    """
    text = mask & (ids != tables.eos)
    delimiter = tables.delimiter[ids] & text
    words = (text & ~delimiter).cumsum(-1)
    # Words before the previous delimiter: a running maximum of the count at delimiters, shifted by one place.
    before = F.pad(torch.where(delimiter, words, 0).cummax(-1).values[..., :-1], (1, 0))
    lengths = words - before
    return lengths, delimiter & (lengths > 0)


def exact_share(lengths: Tensor, closes: Tensor, target: int) -> Tensor:
    """``sentence_length_N``: share of sentences of exactly N tokens (...)."""
    hits = (closes & (lengths == target)).sum(-1)
    return hits / closes.sum(-1).clamp(min=1)


def smooth(lengths: Tensor, closes: Tensor, target: int = 10) -> Tensor:
    """``sentence_length_10_smooth``: mean over sentences of max(0, 1 - 0.2 |10 - n|) (...)."""
    score = (1 - 0.2 * (lengths - target).abs()).clamp(min=0)
    return torch.where(closes, score, 0.0).sum(-1) / closes.sum(-1).clamp(min=1)


def happy_count(ids: Tensor, mask: Tensor, tables: TextTables) -> Tensor:
    """Occurrences of the substring "happy" in the decoded lowercase completion ("unhappy" counts), (...) as integers.

    An automaton over tokens: equal to decoding and counting, including occurrences that span tokens.
    """
    # A token maps every state to the next one and to what it completes; tokens that do not count leave all as it is.
    # Neighbours are joined, and their unions again, until one map stands for the whole completion.
    stay = torch.arange(len(tables.next_state), device=ids.device)
    present = mask.unsqueeze(-1)
    following = torch.where(present, F.embedding(ids, tables.next_state.mT), stay)
    count = torch.where(present, F.embedding(ids, tables.found.mT), 0)
    while following.shape[-2] > 1:
        if following.shape[-2] % 2:
            last = stay.expand(*following.shape[:-2], 1, -1)
            following, count = torch.cat([following, last], -2), F.pad(count, (0, 0, 0, 1))
        first = following[..., 0::2, :]
        count = count[..., 0::2, :] + count[..., 1::2, :].gather(-1, first)
        following = following[..., 1::2, :].gather(-1, first)
    return count[..., 0, 0]


@dataclass(frozen=True)
class Scores:
    """What completions are worth.

    Attributes:
        reward: (...) the cell's reward.
        sl10: (...) ``sentence_length_10_smooth``, which routing pays to completions that are not eligible unless
            the cell has another ``base_reward``.
        happy: (...) count of "happy".
    """

    reward: Tensor
    sl10: Tensor
    happy: Tensor


Terms = Sequence[tuple[str, float]]


def score(
    name: Reward | str,
    ids: Tensor,
    mask: Tensor,
    tables: TextTables,
    said: Mapping[str, Tensor] | None = None,
    sums: Mapping[str, Terms] | None = None,
) -> Scores:
    """Score completions (..., L) with the reward of that name.

    Args:
        said: what functions of one's own gave the completions, (...) by name.
        sums: the (reward, weight) of each term of rewards that are weighted sums, by name.
    """
    lengths, closes = sentence_lengths(ids, mask, tables)
    sl10 = smooth(lengths, closes)
    happy = happy_count(ids, mask, tables)

    def worth(name: str) -> Tensor:
        match name:
            case "sentence_length_5":
                return exact_share(lengths, closes, 5)
            case "sentence_length_10":
                return exact_share(lengths, closes, 10)
            case "sentence_length_10_smooth":
                return sl10
            case "sentence_length_10_smooth_with_happy":
                return (sl10 + 0.1 * happy.clamp(max=5)).clamp(max=1)
            case "happy_count":
                return happy.to(sl10.dtype)
            case "happy_binary":
                return (happy > 0).to(sl10.dtype)
        if sums and name in sums:
            return torch.stack([weight * worth(part) for part, weight in sums[name]]).sum(0)
        return (said or {})[name].to(sl10.dtype)

    return Scores(worth(name), sl10, happy)
