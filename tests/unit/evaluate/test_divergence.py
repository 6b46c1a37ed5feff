"""Divergence between policy and base along sequences."""

from __future__ import annotations

import torch
from scipy import stats
from tests.tiny import SHAPE, hf_model, random_tensors
from torch import Tensor

from rewardgrid.evaluate.divergence import ROWS, divergence
from rewardgrid.lm.draws import uniforms
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.sampler import sample

EOS = SHAPE.vocabulary + 1  # never drawn
PROMPT = 4


def nearby(share: float) -> dict[str, Tensor]:
    """The tiny weights, moved a little towards another model's."""
    first, second = random_tensors(seed=0), random_tensors(seed=1)
    return {key: (1 - share) * value + share * second[key] for key, value in first.items()}


POLICY, BASE = nearby(0.1), nearby(0.0)


def sequences(rows: int, length: int = 10) -> Tensor:
    prompts = torch.randint(17, SHAPE.vocabulary, (1, rows, PROMPT), generator=torch.Generator().manual_seed(0))
    draws = torch.from_numpy(uniforms(0, "divergence test", 0, (1, rows, length)))
    done = sample(SHAPE, from_hf(SHAPE, POLICY), prompts, draws, EOS)
    return torch.cat([prompts, done.ids], -1)[0]


def test_each_token_is_compared_as_a_direct_computation_does() -> None:
    ids = sequences(2 * ROWS + 3)
    found = divergence(SHAPE, from_hf(SHAPE, POLICY), from_hf(SHAPE, BASE), ids, PROMPT)
    with torch.no_grad():
        own, other = (
            hf_model(SHAPE, tensors, torch.float64)(ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
            for tensors in (POLICY, BASE)
        )
    assert found.k3.shape == (2 * ROWS + 3, 10)
    exact = torch.zeros(found.exact.shape, dtype=torch.float64)
    for row in range(ids.shape[0]):
        for place in range(10):
            token = ids[row, PROMPT + place]
            p, q = own[row, place], other[row, place]
            exact[row, place] = (p.exp() * (p - q)).sum()
            d = q[token] - p[token]
            torch.testing.assert_close(found.k3[row, place].double(), d.exp() - d - 1, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(found.base_nll[row, place].double(), -q[token], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.exact.double(), exact, rtol=1e-4, atol=1e-6)
    assert exact.mean() > 0.01


def test_k3_and_the_exact_divergence_agree_on_the_policys_own_samples() -> None:
    ids = sequences(1500)
    found = divergence(SHAPE, from_hf(SHAPE, POLICY), from_hf(SHAPE, BASE), ids, PROMPT)
    difference = (found.k3 - found.exact).mean(1).numpy()
    # Unbiased: the mean difference is within three of its standard errors, and that is a small share of the KL.
    assert abs(difference.mean()) < 3 * stats.sem(difference)
    assert 3 * stats.sem(difference) < 0.1 * float(found.exact.mean())


def test_the_direction_is_policy_against_base() -> None:
    ids = sequences(4)
    policy, base = from_hf(SHAPE, POLICY), from_hf(SHAPE, BASE)
    forth, back = divergence(SHAPE, policy, base, ids, PROMPT), divergence(SHAPE, base, policy, ids, PROMPT)
    assert not torch.allclose(forth.exact, back.exact, rtol=1e-2)
    assert not torch.allclose(forth.base_nll, back.base_nll, rtol=1e-2)


def test_a_policy_that_has_not_moved_has_no_divergence() -> None:
    base = from_hf(SHAPE, BASE)
    found = divergence(SHAPE, base, base, sequences(3), PROMPT)
    assert torch.count_nonzero(found.k3) == torch.count_nonzero(found.exact) == 0
    assert (found.base_nll > 0).all()
