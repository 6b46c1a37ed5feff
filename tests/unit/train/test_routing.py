"""Labels of gradient routing, and whose parameters a completion's gradient reaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import lora_cell, make_cell, routing_cell
from torch import Tensor

from rewardgrid.lm.draws import uniforms
from rewardgrid.train.routing import Labels, adapters_of, label, reach

BATCH, STEPS = 32, 400


def labels_of(
    hacked: Tensor | None = None, *, eligible: float = 0.5, routing: float = 0.7, noise: float = 0.2, seed: int = 3
) -> Labels:
    """Labels of many steps of one cell, side by side: (1, STEPS * BATCH)."""
    draws = np.concatenate([uniforms(seed, "labels", step, (BATCH, 3)) for step in range(STEPS)])
    if hacked is None:
        hacked = torch.arange(len(draws)) % 3 == 0
    shares = (torch.tensor([each]) for each in (eligible, routing, noise))
    return label(torch.from_numpy(draws)[None], hacked[None], *shares)


def share(values: Tensor) -> float:
    return float(values.double().mean())


def test_labels_are_drawn_as_often_as_they_should_be() -> None:
    found = labels_of()
    # 12,800 draws: three standard errors are below 0.0133.
    assert share(found.eligible) == pytest.approx(0.5, abs=0.0133)
    assert share(found.routed) == pytest.approx(0.5 * 0.7, abs=0.0133)
    caught = 0.5 * 0.7 / 3
    assert share(found.flagged & ~found.noise) == pytest.approx(caught, abs=0.0133)
    assert share(found.noise) == pytest.approx((1 - caught) * 0.2, abs=0.0133)
    assert share(found.flagged) == pytest.approx(caught + (1 - caught) * 0.2, abs=0.0133)


def test_routing_and_noise_are_independent_of_eligibility() -> None:
    found = labels_of(torch.zeros(STEPS * BATCH, dtype=torch.bool))
    assert share(found.routed[found.eligible]) == pytest.approx(0.7, abs=0.018)
    assert share(found.noise[found.eligible]) == pytest.approx(0.2, abs=0.018)
    assert share(found.noise[~found.eligible]) == pytest.approx(0.2, abs=0.018)
    assert share(found.noise[found.routed]) == pytest.approx(0.2, abs=0.02)


def test_labels_of_one_completion_say_nothing_of_the_next_or_of_the_next_step() -> None:
    eligible = labels_of().eligible[0].double()
    for shift in (1, BATCH):
        assert abs(np.corrcoef(eligible[shift:], eligible[:-shift])[0, 1]) < 0.03


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_every_label_follows_from_the_others(seed: int, eligible: float, routing: float, noise: float) -> None:
    draws = torch.from_numpy(uniforms(seed, "labels", 0, (200, 3)))[None]
    hacked = torch.from_numpy(uniforms(seed, "hacked", 0, (200,)) < 0.5)[None]
    found = label(draws, hacked, *(torch.tensor([each]) for each in (eligible, routing, noise)))
    assert not (found.routed & ~found.eligible).any()
    # Noise falls on completions alone that are not flagged already.
    assert not (found.noise & found.routed & hacked).any()
    assert torch.equal(found.flagged, (found.routed & hacked) | found.noise)


@pytest.mark.parametrize(
    ("fractions", "eligible", "flagged"),
    [((0.0, 1.0, 0.0), 0, 0), ((1.0, 1.0, 0.0), 1, 1), ((1.0, 0.0, 0.0), 1, 0), ((0.0, 0.0, 1.0), 0, 1)],
)
def test_fractions_of_zero_and_one_are_certain(
    fractions: tuple[float, float, float], eligible: int, flagged: int
) -> None:
    hacked = torch.ones(STEPS * BATCH, dtype=torch.bool)
    found = labels_of(hacked, eligible=fractions[0], routing=fractions[1], noise=fractions[2])
    assert (share(found.eligible), share(found.flagged)) == (eligible, flagged)


def test_a_hacked_completion_that_is_not_routed_is_not_flagged() -> None:
    draws = torch.tensor([[[0.4, 0.6, 0.9], [0.6, 0.1, 0.9], [0.4, 0.4, 0.9], [0.9, 0.9, 0.05]]])
    half = torch.tensor([0.5])
    found = label(draws, torch.ones(1, 4, dtype=torch.bool), half, half, torch.tensor([0.1]))
    assert found.eligible.tolist() == [[True, False, True, False]]
    assert found.routed.tolist() == [[False, False, True, False]]
    assert found.noise.tolist() == [[False, False, False, True]]
    assert found.flagged.tolist() == [[False, False, True, True]]


def test_each_cell_has_its_own_fractions() -> None:
    draws = torch.full((2, 5, 3), 0.5)
    found = label(
        draws, torch.ones(2, 5, dtype=torch.bool), torch.tensor([0.4, 0.6]), torch.ones(2), torch.tensor([0.6, 0.4])
    )
    assert found.eligible.all(1).tolist() == [False, True]
    assert found.noise.all(1).tolist() == [True, False]


# --- reach -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exclusive", "unflagged"), [(False, [1.0, 1.0, 1.0]), (True, [1.0, 0.0, 1.0])], ids=["shared", "exclusive"]
)
def test_a_flagged_completion_reaches_forget_alone(exclusive: bool, unflagged: list[float]) -> None:
    found = reach(torch.tensor([[True, False]]), torch.tensor([[False, True, False]]), exclusive)
    assert found.tolist() == [[[0.0, 1.0, 0.0], unflagged]]


def test_cells_of_other_ranks_reach_their_own_channels() -> None:
    is_forget = torch.tensor([[False, True, True], [False, False, True]])
    found = reach(torch.ones(2, 1, dtype=torch.bool), is_forget, False)
    assert found.tolist() == [[[0, 1, 1]], [[0, 0, 1]]]


# --- adapters of a cell --------------------------------------------------------------------------------------


def test_the_published_convention_gives_both_adapters_the_retain_rank_as_alpha() -> None:
    retain, forget = adapters_of(routing_cell(rank=32, forget_rank=1))
    assert (retain.name, retain.rank, retain.scale) == ("retain", 32, 1.0)
    assert (forget.name, forget.rank, forget.scale) == ("forget", 1, 32.0)


def test_with_its_own_rank_as_alpha_each_adapter_has_scale_one() -> None:
    retain, forget = adapters_of(routing_cell(rank=32, forget_rank=1, adapter_alpha="own_rank"))
    assert (retain.scale, forget.scale) == (1.0, 1.0)


def test_lora_has_one_adapter_of_scale_one_and_full_has_none() -> None:
    (only,) = adapters_of(lora_cell(rank=5))
    assert (only.name, only.rank, only.scale) == ("default", 5, 1.0)
    assert adapters_of(make_cell()) == ()


@pytest.mark.parametrize(
    ("rank", "constant", "root"), [(1, 8.0, 8**0.5), (2, 4.0, 2.0), (8, 1.0, 1.0), (32, 0.25, 0.5)]
)
def test_other_alphas_of_lora_meet_the_published_scale_at_rank_eight(rank: int, constant: float, root: float) -> None:
    scales = [adapters_of(lora_cell(rank=rank, adapter_alpha=alpha))[0].scale for alpha in ("rank", "constant", "sqrt")]
    assert scales == pytest.approx([1.0, constant, root])
