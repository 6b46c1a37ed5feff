"""The sampler against exact probabilities, against the model without a cache, and against Hugging Face's processors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.tiny import FAMILIES, IDS, QWEN2, SHAPE, random_tensors, shape_with
from torch import Tensor

from rewardgrid.lm.draws import uniforms
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.model import logits
from rewardgrid.lm.sampler import BLOCK, CROWDED, LOOK_EVERY, Decoder, invert, keep_top, penalize, sample
from rewardgrid.lm.shape import Shape

EOS = IDS["[EOS]"]
NEVER = SHAPE.vocabulary + 1
"""An end-of-text token that is never drawn: completions of full length."""

WEIGHTS = from_hf(SHAPE, random_tensors())
PROMPTS = torch.tensor(
    [[IDS[word] for word in ["one", "day", "the", "dog"]], [IDS[word] for word in ["he", "and", "she", "saw"]]]
)


def draws(*size: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(uniforms(seed, "sampler test", 0, size))


def exact(scores: Tensor, seen: Tensor, penalty: float | None, top_k: int | None) -> Tensor:
    """Probabilities (V,) of the next token, token by token, as SEMANTICS words them."""
    scores = scores.double().clone()
    if penalty is not None:
        for token in set(seen.tolist()):
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    if top_k is not None:
        scores[scores < scores.sort(descending=True).values[top_k - 1]] = -torch.inf
    return scores.softmax(-1)


def p_value(chosen: Tensor, probabilities: Tensor) -> float:
    """Chi-square test of draws against probabilities; rare outcomes are pooled, an impossible one gives 0."""
    counts = np.bincount(chosen.numpy(), minlength=len(probabilities))
    expected = probabilities.numpy() * len(chosen)
    if counts[expected == 0].any():
        return 0.0
    often = expected >= 10
    seen = np.append(counts[often], counts[~often].sum())
    hoped = np.append(expected[often], expected[~often].sum())
    kept = hoped > 0
    hoped = hoped[kept] * seen[kept].sum() / hoped[kept].sum()
    return float(stats.chisquare(seen[kept], hoped).pvalue)


@pytest.mark.parametrize("penalty", [None, 1.4, 1.6])
@pytest.mark.parametrize("top_k", [None, 5])
def test_the_first_token_follows_the_exact_distribution(penalty: float | None, top_k: int | None) -> None:
    rows = 8_000
    done = sample(
        SHAPE,
        WEIGHTS,
        PROMPTS[:1].expand(rows, -1)[None],
        draws(1, rows, 1),
        EOS,
        None if penalty is None else torch.tensor([penalty]),
        top_k,
    )
    scores = logits(SHAPE, WEIGHTS, PROMPTS[None, :1])[0, 0, -1]
    wanted = exact(scores, PROMPTS[0], penalty, top_k)
    assert p_value(done.ids[0, :, 0], wanted) > 0.01
    if penalty is not None:
        # The test can tell: the same draws do not fit the distribution without penalty.
        assert p_value(done.ids[0, :, 0], exact(scores, PROMPTS[0], None, top_k)) < 1e-3


def test_a_later_token_follows_the_distribution_given_what_was_drawn_before() -> None:
    rows, penalty = 12_000, 1.3
    done = sample(SHAPE, WEIGHTS, PROMPTS[:1].expand(rows, -1)[None], draws(1, rows, 2), NEVER, torch.tensor([penalty]))
    first, second = done.ids[0].unbind(-1)
    common = int(first.bincount().argmax())
    after = second[first == common]
    context = torch.cat([PROMPTS[0], torch.tensor([common])])
    wanted = exact(logits(SHAPE, WEIGHTS, context[None, None])[0, 0, -1], context, penalty, None)
    assert len(after) > 500
    assert p_value(after, wanted) > 0.01


@pytest.mark.parametrize("shape", [SHAPE, QWEN2, shape_with(kv_heads=1), shape_with(kv_heads=4, tied=False)])
def test_every_step_of_the_cache_gives_the_distribution_of_the_whole_sequence(shape: Shape) -> None:
    weights = from_hf(shape, random_tensors(shape))
    numbers = draws(1, 2, 30)
    done = sample(shape, weights, PROMPTS[None], numbers, NEVER)
    whole = torch.cat([PROMPTS[None], done.ids], -1)
    probabilities = logits(shape, weights, whole)[0, :, 3:-1].double().softmax(-1)
    upper = probabilities.cumsum(-1).gather(-1, done.ids[0, ..., None]).squeeze(-1)
    lower = upper - probabilities.gather(-1, done.ids[0, ..., None]).squeeze(-1)
    # Each draw lies in the interval of the token that was chosen with it.
    assert (lower - 1e-6 <= numbers[0]).all()
    assert (numbers[0] <= upper + 1e-6).all()


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("cells", [1, 2])
@torch.no_grad()
def test_a_token_at_a_time_the_scores_are_those_of_the_whole_sequence(shape: Shape, cells: int) -> None:
    each = [from_hf(shape, random_tensors(shape, seed)) for seed in range(cells)]
    weights = {key: torch.cat([one[key] for one in each]) for key in each[0]}
    ids = torch.randint(0, shape.vocabulary, (cells, 3, 12), generator=torch.Generator().manual_seed(0))
    decoder, rows = Decoder(shape, weights, cells), ids.flatten(0, 1)
    decoder.begin(3, 12)
    steps = [decoder(rows[:, :5], 0), *(decoder(rows[:, place : place + 1], place) for place in range(5, 12))]
    whole = logits(shape, weights, ids)[:, :, 4:].flatten(0, 1)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, QWEN2, shape_with(kv_heads=1)], ids=["llama", "qwen2", "one key"])
@torch.no_grad()
def test_what_all_sequences_begin_with_is_kept_once_and_changes_nothing(shape: Shape) -> None:
    weights = from_hf(shape, random_tensors(shape))
    ids = torch.randint(0, shape.vocabulary, (3, 20), generator=torch.Generator().manual_seed(0))
    ids[:] = torch.cat([ids[:1, :11].expand(3, -1), ids[:, 11:]], 1)
    whole = logits(shape, weights, ids[None])[0]
    decoder = Decoder(shape, weights, 1)
    for _ in range(2):  # the same decoder begins again and again
        decoder.begin(3, 9, ids[0, :11])
        several = decoder(ids[:, 11:15], 0)
        one = decoder(ids[:, 15:16], 4)
        torch.testing.assert_close(torch.stack([several, one], 1), whole[:, 14:16], rtol=0, atol=1e-5)
        rows = torch.tensor([True, False, True])
        decoder.keep(rows)
        torch.testing.assert_close(decoder(ids[rows, 16:17], 5), whole[rows, 16], rtol=0, atol=1e-5)
        torch.testing.assert_close(decoder(ids[rows, 17:20], 6), whole[rows, 19], rtol=0, atol=1e-5)


def test_the_penalty_is_that_of_hugging_face() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = torch.randn(6, SHAPE.vocabulary, generator=torch.Generator().manual_seed(1))
    seen = torch.randint(0, SHAPE.vocabulary, (6, 9), generator=torch.Generator().manual_seed(2))
    seen[:, 4] = seen[:, 0]  # a token seen twice is penalised once
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(seen, scores)
    ours = penalize(scores.clone(), seen, torch.full((6,), 1.7))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert not torch.equal(ours, scores)


def test_the_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    scores = torch.tensor([[2.0, -2.0, 0.0, 4.0]])
    assert penalize(scores, torch.tensor([[0, 1, 2]]), torch.tensor([2.0])).tolist() == [[1.0, -4.0, 0.0, 4.0]]


def test_each_cell_has_its_own_penalty() -> None:
    numbers, prompts = draws(2, 2, 20), PROMPTS.expand(2, -1, -1)
    both = sample(SHAPE, WEIGHTS, prompts, numbers, NEVER, torch.tensor([1.0, 1.8]))
    for cell, penalty in enumerate([None, torch.tensor([1.8])]):
        alone = sample(SHAPE, WEIGHTS, prompts[:1], numbers[cell : cell + 1], NEVER, penalty)
        assert torch.equal(both.ids[cell], alone.ids[0])
    assert not torch.equal(both.ids[1], sample(SHAPE, WEIGHTS, prompts[:1], numbers[1:], NEVER).ids[0])


def test_top_k_keeps_the_k_largest_and_ties_with_the_last() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert keep_top(scores, 2).isfinite().tolist() == [[False, True, True, True, False]]
    assert torch.equal(keep_top(scores, 9), scores)


def test_a_draw_takes_the_token_whose_interval_holds_it() -> None:
    scores = torch.tensor([0.2, 0.3, 0.0, 0.5]).log().repeat(5, 1)
    numbers = torch.tensor([0.0, 0.199, 0.201, 0.501, 1 - 2**-24])
    assert invert(scores, numbers).tolist() == [0, 0, 1, 3, 3]


@pytest.mark.parametrize("words", [BLOCK - 1, BLOCK, BLOCK + 1, 1000, 4096])
def test_a_draw_among_many_words_takes_the_one_whose_interval_holds_it(words: int) -> None:
    rows = 2000
    logits = torch.randn(rows, words, generator=torch.Generator().manual_seed(words)) * 3
    numbers = torch.cat([torch.tensor([0.0, 1 - 2**-24]), draws(rows - 2)])
    upper = logits.double().softmax(-1).cumsum(-1)
    chosen = invert(logits.clone(), numbers).unsqueeze(1)
    lower = torch.nn.functional.pad(upper, (1, 0)).gather(1, chosen).squeeze(1)
    assert (lower - 1e-6 <= numbers).all()
    assert (numbers <= upper.gather(1, chosen).squeeze(1) + 1e-6).all()


def test_of_logits_that_are_no_numbers_some_word_is_drawn() -> None:
    """A policy that diverges is ended by its KL, not by a place that no table has."""
    for words in (BLOCK - 1, 3 * BLOCK + 1):
        assert invert(torch.full((2, words), torch.nan), torch.tensor([0.0, 0.9])).tolist() == [words - 1] * 2


@given(st.integers(0, 2**32 - 1), st.integers(2, 5 * BLOCK))
def test_the_smallest_and_the_largest_draw_take_no_impossible_token(seed: int, size: int) -> None:
    scores = torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * 5
    scores[:, size // 2 + 1 :] = -torch.inf
    scores[:, : size // 4] = -torch.inf
    for numbers in (0.0, 1 - 2**-24):
        assert size // 4 <= invert(scores.clone(), torch.tensor([numbers])).item() <= size // 2


# Ends


def force(tokens: list[int]) -> dict[str, Tensor]:
    """Weights of a model that draws these tokens one after another, whatever its numbers."""
    # One layer of nothing; the embedding of each token in the chain points at the head of the next.
    chain = [PROMPTS[0, -1].item(), *tokens]
    shape = shape_with(tied=False, hidden=SHAPE.vocabulary)
    tensors = {key: torch.zeros_like(value) for key, value in random_tensors(shape).items()}
    tensors["model.norm.weight"] += 1
    tensors["model.embed_tokens.weight"] = torch.eye(SHAPE.vocabulary)
    for before, after in itertools.pairwise(chain):
        tensors["lm_head.weight"][after, int(before)] = 20.0
    return from_hf(shape, tensors)


def test_a_completion_ends_with_its_first_end_token_and_is_filled_up_with_more() -> None:
    a, b = IDS["cat"], IDS["ran"]
    shape = shape_with(tied=False, hidden=SHAPE.vocabulary)
    done = sample(shape, force([a, b, EOS, a]), PROMPTS[None, :1], draws(1, 1, 6), EOS)
    assert done.ids.tolist() == [[[a, b, EOS, EOS, EOS, EOS]]]
    assert done.mask.tolist() == [[[True, True, True, False, False, False]]]
    assert done.lengths.tolist() == [[3]]
    assert done.ended.tolist() == [[True]]


def test_a_completion_that_fills_its_length_has_not_ended() -> None:
    a, b, c = IDS["cat"], IDS["ran"], IDS["home"]
    shape = shape_with(tied=False, hidden=SHAPE.vocabulary)
    done = sample(shape, force([a, b, c]), PROMPTS[None, :1], draws(1, 1, 3), EOS)
    assert done.ids.tolist() == [[[a, b, c]]]
    assert done.mask.all()
    assert done.ended.tolist() == [[False]]


def test_an_end_at_the_last_place_counts_as_ended() -> None:
    shape = shape_with(tied=False, hidden=SHAPE.vocabulary)
    done = sample(shape, force([IDS["cat"], EOS]), PROMPTS[None, :1], draws(1, 1, 2), EOS)
    assert (done.lengths.item(), done.ended.item()) == (2, True)


@pytest.mark.parametrize("penalty", [None, torch.tensor([1.2])])
def test_leaving_out_what_has_ended_changes_nothing(penalty: torch.Tensor | None) -> None:
    numbers = draws(1, 16, 40)
    prompts = PROMPTS.repeat(8, 1)[None]
    early, late = (sample(SHAPE, WEIGHTS, prompts, numbers, EOS, penalty, stop_early=each) for each in (True, False))
    assert torch.equal(early.ids, late.ids)
    assert torch.equal(early.mask, late.mask)
    left = (early.lengths[0] > LOOK_EVERY * torch.arange(1, 5)[:, None]).float().mean(1)
    assert ((left > 0) & (left < CROWDED)).any(), "no row was left out while others went on"


# Independence


def test_a_completion_does_not_depend_on_the_rows_beside_it() -> None:
    numbers = draws(1, 16, 24)
    prompts = PROMPTS.repeat(8, 1)[None]
    penalty = torch.tensor([1.2])
    together = sample(SHAPE, WEIGHTS, prompts, numbers, EOS, penalty)
    for row in (0, 7, 15):
        alone = sample(SHAPE, WEIGHTS, prompts[:, row : row + 1], numbers[:, row : row + 1], EOS, penalty)
        assert torch.equal(alone.ids[0, 0], together.ids[0, row])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    permuted = sample(SHAPE, WEIGHTS, prompts[:, order], numbers[:, order], EOS, penalty)
    assert torch.equal(permuted.ids, together.ids[:, order])


def test_a_completion_does_not_depend_on_the_cells_beside_its_own() -> None:
    weights = [from_hf(SHAPE, random_tensors(seed=seed)) for seed in (1, 2, 3)]
    side_by_side = {key: torch.cat([each[key] for each in weights]) for key in weights[0]}
    numbers, prompts = draws(3, 2, 24), PROMPTS.expand(3, -1, -1)
    penalty = torch.tensor([1.0, 1.1, 1.5])
    together = sample(SHAPE, side_by_side, prompts, numbers, EOS, penalty)
    for cell, own in enumerate(weights):
        rows = slice(cell, cell + 1)
        alone = sample(SHAPE, own, prompts[rows], numbers[rows], EOS, penalty[rows])
        assert torch.equal(alone.ids[0], together.ids[cell])
        assert torch.equal(alone.mask[0], together.mask[cell])
