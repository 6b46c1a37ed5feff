"""The pieces of pretraining."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tests.stories import told
from torch import Tensor

from rewardgrid.base.pretrain import (
    Muon,
    Rows,
    backward,
    first_weights,
    held_out_loss,
    learning_rate,
    next_token_loss,
    orthogonalize,
    rows_of,
    shape_of,
    train_weights,
)
from rewardgrid.base.tokenizer import token_ids, train_tokenizer
from rewardgrid.study.bases import Pretrained

RECIPE = Pretrained(layers=2, hidden=16, mlp_width=24, vocabulary=300)
SHAPE = shape_of(RECIPE)


def random_rows(*lengths: int) -> Rows:
    draws = np.random.default_rng(0)
    return rows_of([draws.integers(0, RECIPE.vocabulary, length).tolist() for length in lengths], max(lengths))


@pytest.fixture(scope="module")
def stories() -> Rows:
    """The beginnings of two hundred stories, of different lengths."""
    table = told()
    tokenizer = train_tokenizer(table["story"], RECIPE.vocabulary)
    ids = token_ids(tokenizer, table["story"])
    return rows_of((story[: 20 + number % 20] for number, story in enumerate(ids)), 40)


# --- rows ----------------------------------------------------------------------------------------------


def test_a_row_is_one_story_cut_at_its_length_and_padded() -> None:
    rows = rows_of([[1, 2, 3, 9], [4, 9], [5, 6, 7, 8, 9]], 4)
    assert rows.ids.tolist() == [[1, 2, 3, 9], [4, 9, 0, 0], [5, 6, 7, 8]]
    assert rows.lengths.tolist() == [4, 2, 4]


def test_a_story_of_one_token_foretells_nothing_and_is_left_out() -> None:
    assert rows_of([[3], [4, 9], []], 5).ids.tolist() == [[4, 9]]
    assert len(rows_of([[3]], 5)) == len(rows_of([], 5)) == 0


def test_some_rows_are_as_wide_as_the_longest_of_them() -> None:
    rows = rows_of([[1, 2, 3, 9], [4, 9], [5, 6, 9]], 10)
    assert rows[1:].ids.tolist() == [[4, 9, 0], [5, 6, 9]]
    assert rows[np.array([2, 0, 2])].ids.tolist() == [[5, 6, 9, 0], [1, 2, 3, 9], [5, 6, 9, 0]]
    assert rows[np.array([2, 0, 2])].lengths.tolist() == [3, 4, 3]


# --- loss ----------------------------------------------------------------------------------------------


def test_the_loss_counts_no_padding_and_every_token_alike() -> None:
    weights = first_weights(SHAPE, 0)
    rows = random_rows(30, 4, 11)
    alone = [next_token_loss(SHAPE, weights, rows[place : place + 1]).item() for place in range(3)]
    assert next_token_loss(SHAPE, weights, rows).item() == pytest.approx(np.average(alone, weights=[29, 3, 10]))
    padded = np.where(np.arange(30) < rows.lengths[:, None], rows.ids, 7)
    assert next_token_loss(SHAPE, weights, Rows(padded, rows.lengths)) == next_token_loss(SHAPE, weights, rows)


def test_the_loss_of_rows_held_out_is_that_of_all_their_tokens() -> None:
    weights = first_weights(SHAPE, 0)
    rows = random_rows(*range(2, 72))  # measured in two parts, of short rows and of long ones
    whole = next_token_loss(SHAPE, weights, rows).item()
    assert held_out_loss(SHAPE, weights, rows) == pytest.approx(whole, abs=1e-5)
    assert held_out_loss(SHAPE, weights, rows[:1]) == pytest.approx(next_token_loss(SHAPE, weights, rows[:1]).item())


def test_the_shards_of_a_batch_add_up_to_the_gradient_of_its_mean_loss() -> None:
    rows = random_rows(12, 3, 9, 25, 2)  # shards of three and two stories
    weights = {name: weight.requires_grad_() for name, weight in first_weights(SHAPE, 0).items()}
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        loss = backward(SHAPE, weights, rows, pool)
    whole = next_token_loss(SHAPE, weights, rows)
    assert torch.allclose(loss, whole)
    for weight, gradient in zip(weights.values(), torch.autograd.grad(whole, list(weights.values())), strict=True):
        assert weight.grad is not None
        assert torch.allclose(weight.grad, gradient, rtol=1e-4, atol=1e-6)


# --- training ------------------------------------------------------------------------------------------


def trained(
    epochs: list[Rows], held_out: Rows | None = None, threads: int = 1
) -> tuple[dict[str, Tensor], list[float]]:
    weights, before = first_weights(SHAPE, 0), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        losses = train_weights(SHAPE, weights, epochs, batch=8, weight_decay=0.1, held_out=held_out)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    return weights, losses


def test_training_gives_the_same_bits_on_one_thread_and_on_two(stories: Rows) -> None:
    (one, losses), (two, others) = (trained([stories[:40]], stories[150:], threads) for threads in (1, 2))
    assert losses == others
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_epoch_lowers_the_loss_of_stories_that_are_not_trained_on(stories: Rows) -> None:
    read, unseen = stories[:150], stories[150:]
    weights, losses = trained([read, read, read], unseen)
    untrained = held_out_loss(SHAPE, first_weights(SHAPE, 0), unseen)
    assert untrained == pytest.approx(np.log(RECIPE.vocabulary), abs=0.3)
    assert untrained - 0.5 > losses[0] > losses[1] > losses[2]
    assert losses[2] == held_out_loss(SHAPE, weights, unseen)
    assert not any(weight.requires_grad for weight in weights.values())


def test_an_epoch_is_read_in_its_order_and_what_fills_no_batch_is_left_out(stories: Rows) -> None:
    whole, _ = trained([stories[:16], stories[16:24]])
    more, losses = trained([stories[:19], stories[16:30]])
    assert losses == []
    assert all(torch.equal(whole[name], more[name]) for name in whole)
    other, _ = trained([stories[16:24], stories[:16]])
    assert not torch.equal(whole["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_the_learning_rate_rises_stays_and_falls_to_nearly_nothing() -> None:
    rates = [learning_rate(step, 100) for step in range(100)]
    assert rates[0] == 0.5
    assert rates[1:51] == [1.0] * 50
    assert rates[75] == 0.5
    assert rates[99] == pytest.approx(0.02)


@pytest.mark.parametrize("size", [(8, 8), (16, 6), (5, 20)])
def test_orthogonalising_evens_out_the_singular_values(size: tuple[int, int]) -> None:
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonalize(matrix)
    assert torch.linalg.svdvals(ours).min() > 0.5
    assert torch.linalg.svdvals(ours).max() < 1.3
    # The singular vectors stay: seen in them, the result is diagonal.
    seen = u.mT @ ours @ vh.mT
    assert (seen - seen.diag().diag()).abs().max() < 1e-4


def test_muon_moves_a_matrix_against_its_gradient_by_the_learning_rate_whatever_the_gradients_size() -> None:
    moves = []
    for scale in (1.0, 1000.0):
        matrix = torch.zeros(4, 4, requires_grad=True)
        matrix.grad = scale * torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        Muon([matrix]).step(0.1)
        assert matrix.grad is None
        moves.append(matrix.detach())
    assert torch.allclose(moves[0], moves[1], atol=1e-5)
    assert ((moves[0].diag() < -0.05) & (moves[0].diag() > -0.13)).all()


def test_weight_decay_shrinks_a_matrix_by_its_share_of_the_learning_rate() -> None:
    matrix = torch.ones(3, 3, requires_grad=True)
    matrix.grad = torch.zeros(3, 3)
    Muon([matrix], weight_decay=0.5).step(0.1)
    assert torch.allclose(matrix, torch.full((3, 3), 0.95))


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = first_weights(SHAPE, 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, other = first_weights(SHAPE, 0), first_weights(SHAPE, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_attention_begins_by_copying_half_of_what_it_attends_to() -> None:
    """Every query head reads the values of its group; their outputs add up to 0.5 V^T V on the values' subspace."""
    weights = first_weights(SHAPE, 0)
    values = weights["model.layers.0.self_attn.v_proj.weight"]  # (kv_heads * d, hidden), orthonormal rows
    out = weights["model.layers.0.self_attn.o_proj.weight"]
    per_query_head = values.reshape(2, 4, 16).repeat_interleave(2, dim=0).flatten(0, 1)
    assert torch.allclose(out @ per_query_head, 0.5 * values.mT @ values, atol=1e-6)
