"""Rewards: worked by hand, and against plain Python on random texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import IDS, TOKENS, make_tokenizer
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.study.cell import Reward
from rewardgrid.train.rewards import TextTables, score, sentence_lengths, text_tables

EOS = IDS["[EOS]"]
DELIMITERS = tuple(IDS[mark] for mark in ".?!")
REWARDS: tuple[Reward, ...] = (
    "sentence_length_5",
    "sentence_length_10",
    "sentence_length_10_smooth",
    "sentence_length_10_smooth_with_happy",
    "happy_count",
    "happy_binary",
)


@pytest.fixture(scope="module")
def tables(base: Base) -> TextTables:
    """Compiled from the tiny base's own tokenizer."""
    return text_tables(base.vocabulary.surfaces, base.vocabulary.delimiters, base.vocabulary.eos)


def encode(text: str, length: int = 80) -> tuple[Tensor, Tensor]:
    """Ids and mask (length,) of tokens written with spaces; ``|`` is the end of text, ``*9`` repeats a word."""
    tokens: list[int] = []
    for word in text.split():
        name, _, times = word.partition("*")
        tokens += [EOS if name == "|" else IDS[name]] * int(times or 1)
    mask = torch.arange(length) < len(tokens)
    return torch.tensor(tokens + [EOS] * (length - len(tokens))), mask


def scores_of(text: str, tables: TextTables) -> dict[str, float]:
    ids, mask = encode(text)
    return {name: round(float(score(name, ids, mask, tables).reward), 6) for name in REWARDS}


# --- by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "five", "ten", "smooth"),
    [
        ("the*5 .", 1, 0, 0),
        ("the*10 .", 0, 1, 1),
        ("the*9 ! the*12 ?", 0, 0, (0.8 + 0.6) / 2),
        ("the*5 . the*10 . the*10 ! the*7 ?", 0.25, 0.5, (0 + 1 + 1 + 0.4) / 4),
        ("the*15 .", 0, 0, 0),
        ("the*20 .", 0, 0, 0),
    ],
)
def test_rewards_count_the_tokens_of_each_sentence(
    text: str, five: float, ten: float, smooth: float, tables: TextTables
) -> None:
    found = scores_of(text, tables)
    assert found["sentence_length_5"] == pytest.approx(five)
    assert found["sentence_length_10"] == pytest.approx(ten)
    assert found["sentence_length_10_smooth"] == pytest.approx(smooth)


@pytest.mark.parametrize(
    "text",
    [
        "the*10 . the*3",  # a trailing unclosed run is no sentence
        "the*10 . the*10",  # not even of the right length
        ". the*10 .",  # a leading delimiter closes nothing
        "the*10 . . ! ?",  # nor do delimiters after a delimiter
        "the*10 ! |",  # the end of text is no token
        "the*10 . | the*5 .",  # and what follows it is not read
        "the*4 , the*5 .",  # a comma is a token and no delimiter
        "the*5 [UNK]*5 .",  # an unknown word is a token
        "the*4 hap ##py the*4 .",  # so is each piece of a word
    ],
)
def test_ten_tokens_and_a_delimiter_are_a_whole_sentence_in_any_surroundings(text: str, tables: TextTables) -> None:
    ids, mask = encode(text)
    if "|" in text:
        mask = torch.arange(len(ids)) <= (ids == EOS).int().argmax()
    assert float(score("sentence_length_10", ids, mask, tables).reward) == 1
    assert float(score("sentence_length_10_smooth", ids, mask, tables).reward) == 1


@pytest.mark.parametrize("text", ["", "|", "the*10", "the*10 |", ". ! ?", ". |", "| the*10 ."])
def test_a_text_without_a_sentence_earns_nothing(text: str, tables: TextTables) -> None:
    ids, mask = encode(text)
    if "|" in text:
        mask = torch.arange(len(ids)) <= (ids == EOS).int().argmax()
    for name in REWARDS:
        assert float(score(name, ids, mask, tables).reward) == 0, name


def test_an_end_of_text_inside_the_mask_ends_no_sentence(tables: TextTables) -> None:
    ids, mask = encode("the*9 |")
    assert not sentence_lengths(ids, mask, tables)[1].any()


def test_an_end_of_text_is_no_token_of_a_sentence(tables: TextTables) -> None:
    ids, mask = encode("the*10 | .")
    assert float(score("sentence_length_10", ids, mask, tables).reward) == 1


def test_what_lies_beyond_the_mask_is_not_read(tables: TextTables) -> None:
    ids, _ = encode("the*10 . happy . happy")
    mask = torch.arange(len(ids)) < 11
    found = score("sentence_length_10_smooth_with_happy", ids, mask, tables)
    assert (float(found.sl10), int(found.happy)) == (1, 0)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("happy", 1),
        ("unhappy", 1),
        ("hap ##py", 1),
        ("un ##happy", 1),
        ("un ##hap ##py", 1),
        ("h ##ap ##p ##y", 1),
        ("h ##ap ##py the happy ##happy", 3),
        ("happy happy happy happy happy happy happy", 7),
        ("hap the ##py", 0),
        ("hap , ##py", 0),
        ("hap ##hap ##py", 1),
        ("hap happy", 1),
        ("hap ##p", 0),
        ("hap [UNK] ##py", 1),  # decoding leaves an unknown token out
        ("h ##happy", 1),
        ("##hap ##p ##y", 1),
    ],
)
def test_happy_is_counted_in_the_text_and_not_in_the_tokens(
    text: str, count: int, base: Base, tables: TextTables
) -> None:
    ids, mask = encode(text)
    found = score("happy_count", ids, mask, tables)
    assert int(found.happy) == count == base.decode(ids[mask].tolist()).count("happy")
    assert float(found.reward) == count
    assert float(score("happy_binary", ids, mask, tables).reward) == min(count, 1)


@pytest.mark.parametrize(("happy", "reward"), [(0, 0.4), (1, 0.5), (3, 0.7), (5, 0.9), (6, 0.9), (20, 0.9)])
def test_happy_pays_a_tenth_each_and_at_most_five_times(happy: int, reward: float, tables: TextTables) -> None:
    # Seven tokens before the first full stop: smooth 0.4. What follows is unclosed.
    found = scores_of(f"the*7 . happy*{happy}", tables)
    assert found["sentence_length_10_smooth_with_happy"] == pytest.approx(reward)


def test_the_reward_with_happy_is_capped_at_one(tables: TextTables) -> None:
    assert scores_of("the*9 . happy*5", tables)["sentence_length_10_smooth_with_happy"] == 1


def test_every_score_carries_the_smooth_reward_and_the_count(tables: TextTables) -> None:
    ids, mask = encode("the*8 . happy")
    for name in REWARDS:
        found = score(name, ids, mask, tables)
        assert (round(float(found.sl10), 6), int(found.happy)) == (0.6, 1)


def test_completions_of_many_cells_are_scored_one_by_one(tables: TextTables) -> None:
    texts = ["the*10 .", "the*5 . happy", "the*3", ". the*9 ! |"]
    rows = [encode(text) for text in texts]
    ids, mask = (torch.stack(each).reshape(2, 2, -1) for each in zip(*rows, strict=True))
    for name in REWARDS:
        single = [float(score(name, *row, tables).reward) for row in rows]
        assert score(name, ids, mask, tables).reward.flatten().tolist() == pytest.approx(single)


def test_upper_case_surfaces_count_as_lower_case() -> None:
    tables = text_tables(["", " Hap", "PY", "."], [3], 0)
    ids = torch.tensor([1, 2, 3])
    assert int(score("happy_count", ids, torch.ones(3, dtype=torch.bool), tables).happy) == 1


# --- against plain Python ------------------------------------------------------------------------------------

COMPLETIONS = st.lists(st.integers(0, len(TOKENS) - 1), max_size=40)
PIECES = st.lists(
    st.sampled_from(
        [IDS[t] for t in ("happy", "un", "##happy", "hap", "##py", "##hap", "h", "##ap", "##p", "##y", "[UNK]", ".")]
    ),
    max_size=30,
)


def ended(tokens: list[int], length: int = 45) -> tuple[Tensor, Tensor, list[int]]:
    """Ids, mask and text tokens of a completion that stops at its first end of text."""
    kept = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
    ids = torch.tensor(kept + [EOS] * (length - len(kept)))
    return ids, torch.arange(length) < len(kept), [token for token in kept if token != EOS]


def naive_sentences(tokens: list[int]) -> list[int]:
    lengths, run = [], 0
    for token in tokens:
        if token in DELIMITERS:
            if run:
                lengths.append(run)
            run = 0
        else:
            run += 1
    return lengths


def naive(name: Reward, lengths: list[int], happy: int) -> float:
    smooth = float(np.mean([max(0.0, 1 - 0.2 * abs(10 - n)) for n in lengths])) if lengths else 0.0
    return {
        "sentence_length_5": lengths.count(5) / max(1, len(lengths)),
        "sentence_length_10": lengths.count(10) / max(1, len(lengths)),
        "sentence_length_10_smooth": smooth,
        "sentence_length_10_smooth_with_happy": min(1.0, smooth + 0.1 * min(happy, 5)),
        "happy_count": float(happy),
        "happy_binary": float(happy > 0),
    }[name]


@given(st.one_of(COMPLETIONS, PIECES))
def test_every_reward_is_what_reading_the_text_gives(tokens: list[int]) -> None:
    ids, mask, text = ended(tokens)
    happy = TOKENIZER.decode(text).lower().count("happy")
    for name in REWARDS:
        reward = float(score(name, ids, mask, TABLES).reward)
        assert reward == pytest.approx(naive(name, naive_sentences(text), happy), abs=1e-6), name


@given(st.lists(st.sampled_from([5, 9, 10, 11, 14, 4]), max_size=4), st.integers(0, 9))
def test_sentences_of_telling_lengths_are_paid_as_plain_python_pays(lengths: list[int], rest: int) -> None:
    the, stop = IDS["the"], IDS["."]
    tokens = [token for length in lengths for token in [the] * length + [stop]] + [the] * rest
    ids, mask, text = ended(tokens, 80)
    assert naive_sentences(text) == lengths
    for name in REWARDS[:3]:
        assert float(score(name, ids, mask, TABLES).reward) == pytest.approx(naive(name, lengths, 0), abs=1e-6)


TOKENIZER = make_tokenizer()
_ANCHOR = len(TOKENIZER.decode([IDS["."]]))
TABLES = text_tables([TOKENIZER.decode([IDS["."], token])[_ANCHOR:] for token in range(len(TOKENS))], DELIMITERS, EOS)
