"""What is surprising about a text, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tests.tiny import IDS, PROMPT_TOKENS

from rewardgrid.base.load import Base
from rewardgrid.evaluate.divergence import divergence
from rewardgrid.train.rewards import TextTables, text_tables
from rewardgrid.train.surprise import ROWS, surprises, surprises_of, unlikely, usual
from rewardgrid.train.weights import base_weights


@pytest.fixture(scope="module")
def tables(base: Base) -> TextTables:
    return text_tables(base.vocabulary.surfaces, base.vocabulary.delimiters, base.vocabulary.eos)


def test_windows_are_whole_and_within_the_first_64_tokens(tables: TextTables) -> None:
    length = 90
    ids = torch.full((3, length), IDS["cat"])
    mask = torch.arange(length) < torch.tensor([[90], [47], [15]])
    nll = torch.arange(length, dtype=torch.float32).expand(3, -1)
    # Means of 0..15, 16..31, 32..47 (not whole in the second text), 48..63.
    assert surprises(nll, ids, mask, tables)["windows"] == [[7.5, 23.5, 39.5, 55.5], [7.5, 23.5], []]


def test_texts_shorter_than_a_window_have_none(tables: TextTables) -> None:
    ids = torch.full((2, 9), IDS["cat"])
    assert surprises(torch.ones(2, 9), ids, torch.ones(2, 9, dtype=torch.bool), tables)["windows"] == [[], []]


def test_ends_are_the_delimiters_that_close_a_sentence(tables: TextTables) -> None:
    text = [IDS[token] for token in (".", "cat", "ran", "!", "?", "dog", ".", "sun", ".")]
    mask = torch.tensor([[True] * 9, [True] * 7 + [False] * 2])
    nll = torch.arange(9, dtype=torch.float32).expand(2, -1)
    # The first closes nothing, and "?" nothing after "!"; in the second text the last is padding.
    assert surprises(nll, torch.tensor([text, text]), mask, tables)["ends"] == [[3.0, 6.0, 8.0], [3.0, 6.0]]


def test_recorded_sequences_of_different_lengths_are_scored_as_each_one_alone(base: Base, tables: TextTables) -> None:
    shape, weights = base_weights(base)
    draws = np.random.default_rng(0)
    sequences = [draws.integers(2, shape.vocabulary, PROMPT_TOKENS + n) for n in draws.integers(1, 50, ROWS + 5)]
    found = surprises_of(shape, weights, sequences, PROMPT_TOKENS, tables)
    for place, sequence in enumerate(sequences):
        ids = torch.from_numpy(sequence)[None]
        nll, written = divergence(shape, weights, weights, ids, PROMPT_TOKENS).base_nll, ids[:, PROMPT_TOKENS:]
        alone = surprises(nll, written, torch.ones_like(written, dtype=torch.bool), tables)
        for kind, lists in found.items():
            np.testing.assert_allclose(lists[place], alone[kind][0], rtol=1e-4)
    assert {kind: sum(map(len, lists)) > 20 for kind, lists in found.items()} == {"windows": True, "ends": True}


def frame(windows: list[list[float]], ends: list[list[float]]) -> pd.DataFrame:
    return pd.DataFrame({"windows": windows, "ends": ends})


def test_what_is_usual_is_the_95_percent_quantile_of_all_samples_together() -> None:
    values = [float(value) for value in range(101)]
    assert usual(frame([values[:7], values[7:], []], [[], [2.0], []])) == {"windows": 95.0, "ends": 2.0}


def test_a_share_counts_what_lies_beyond_the_limit_whichever_text_it_is_in() -> None:
    samples = frame([[1.0, 3.0], [2.0], []], [[0.5], [], []])
    assert unlikely(samples, {"windows": 1.5, "ends": 0.5}) == {"unlikely_windows": 2 / 3, "unlikely_ends": 0.0}


def test_where_the_base_or_the_cell_has_nothing_there_is_no_share() -> None:
    empty, some = frame([[]], [[]]), frame([[1.0]], [[1.0]])
    assert usual(empty) == {"windows": None, "ends": None}
    assert (
        unlikely(some, usual(empty))
        == unlikely(empty, usual(some))
        == {
            "unlikely_windows": None,
            "unlikely_ends": None,
        }
    )
