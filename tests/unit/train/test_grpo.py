"""The equations of GRPO: worked by hand, and against torch's own optimizer and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rewardgrid.study.cell import KlEstimator, LossType, Schedule
from rewardgrid.train.grpo import (
    AdamW,
    Variant,
    advantages,
    clip_factor,
    k3,
    kl_estimate,
    kl_slope,
    learning_rate,
    logp_grads,
    loss_tokens,
    mean_over,
    sequence_losses,
    token_shares,
)

ESTIMATORS: tuple[KlEstimator, ...] = ("k1", "k2", "k3")


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- advantages ------------------------------------------------------------------------------------------------


def test_advantages_use_the_unbiased_deviation_and_a_tenth_of_a_thousandth() -> None:
    # 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, over n - 1 = 3.
    deviation = math.sqrt(14 / 3)
    found = advantages(double(1, 2, 3, 6).unsqueeze(0), 4)
    expected = [centred / (deviation + 1e-4) for centred in (-2, -1, 0, 3)]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_groups_are_the_consecutive_completions_of_one_prompt() -> None:
    found = advantages(double(0, 1, 10, 12).reshape(1, 4), 2)
    low, high = 0.5 / (math.sqrt(0.5) + 1e-4), 1 / (math.sqrt(2) + 1e-4)
    assert found[0].tolist() == pytest.approx([-low, low, -high, high])


def test_a_group_paid_alike_has_no_advantage() -> None:
    for reward in (0.1, 0.3, 0.7, 1 / 3):
        assert torch.count_nonzero(advantages(torch.full((2, 15), reward), 3)) == 0
        assert torch.count_nonzero(advantages(torch.full((2, 15), reward), 15)) == 0


def test_cells_have_their_own_groups() -> None:
    rewards = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    together = advantages(rewards, 4)
    for cell in range(3):
        assert torch.equal(together[cell : cell + 1], advantages(rewards[cell : cell + 1], 4))


# --- KL and loss -------------------------------------------------------------------------------------------------


def test_k3_is_exp_d_minus_d_minus_one() -> None:
    # d = ref - logp = ln 2: 2 - ln 2 - 1; and ln 1/2: 1/2 + ln 2 - 1.
    found = k3(double(-1.0, -1.0, -1.0), double(-1.0 + math.log(2), -1.0 - math.log(2), -1.0))
    assert found.tolist() == pytest.approx([1 - math.log(2), math.log(2) - 0.5, 0])


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative(logp: float, reference: float) -> None:
    assert float(k3(double(logp), double(reference))) >= 0


def test_k3_averages_to_the_exact_divergence() -> None:
    policy, base = double(0.5, 0.3, 0.2), double(0.2, 0.3, 0.5)
    exact = (policy * (policy / base).log()).sum()
    assert float((policy * k3(policy.log(), base.log())).sum()) == pytest.approx(float(exact))


MASK = torch.tensor([[[True, True, True], [True, False, False]]])


def test_the_loss_is_the_mean_over_tokens_then_over_sequences() -> None:
    logps = torch.full((1, 2, 3), -1.0, dtype=torch.float64)
    reference = logps.clone()
    reference[0, 0, 2] += math.log(2)
    reference[0, 1, 1:] += 5  # behind the mask
    found = sequence_losses(logps, reference, double(2.0, -1.0).unsqueeze(0), MASK, double(0.3))
    # -A for every token, and on one token of three beta (1 - ln 2).
    assert found[0].tolist() == pytest.approx([-2.0 + 0.3 * (1 - math.log(2)) / 3, 1.0])


def test_the_gradient_is_the_policy_gradient_and_that_of_k3() -> None:
    logps = (-torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    reference = -torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantage, beta = double(2.0, -1.0), 0.3
    sequence_losses(logps, reference, advantage.unsqueeze(0), MASK, double(beta)).mean().backward()
    slope = -advantage[None, :, None] + beta * (1 - (reference - logps.detach()).exp())
    expected = torch.where(MASK, slope / double(3, 1)[None, :, None], 0) / 2
    torch.testing.assert_close(logps.grad, expected, rtol=0, atol=1e-12)


def test_the_gradient_written_out_is_that_of_the_loss() -> None:
    draws = torch.Generator().manual_seed(0)
    logps, reference = (-3 * torch.rand(2, 4, 5, generator=draws, dtype=torch.float64) for _ in range(2))
    advantage, beta = torch.randn(2, 4, generator=draws, dtype=torch.float64), double(0.3, 0.0)
    mask = torch.arange(5) < torch.tensor([[5, 1, 3, 2], [4, 4, 5, 1]])[..., None]
    leaf = logps.clone().requires_grad_()
    sequence_losses(leaf, reference, advantage, mask, beta).mean(-1).sum().backward()
    per_token = (logps, reference, advantage[..., None].expand_as(logps), token_shares(mask, logps.dtype))
    found = logp_grads(*(each.flatten(1) for each in per_token), beta=beta)
    torch.testing.assert_close(found.view_as(logps), leaf.grad, rtol=0, atol=1e-12)


def test_what_lies_behind_a_completions_end_has_no_gradient_whatever_it_is() -> None:
    logps, reference, share = torch.tensor([[-101.0, -1.0]]), torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.0, 1.0]])
    found = logp_grads(logps, reference, torch.full_like(logps, 0.5), share, torch.tensor([0.02]))
    assert found.tolist() == [[0, pytest.approx(0.02 * (1 - math.exp(-1)) - 0.5)]]


def test_each_cell_has_its_own_beta() -> None:
    logps, reference = torch.zeros(2, 1, 1, dtype=torch.float64), torch.ones(2, 1, 1, dtype=torch.float64)
    found = sequence_losses(logps, reference, torch.zeros(2, 1), torch.ones(2, 1, 1, dtype=torch.bool), double(0, 2))
    assert found.flatten().tolist() == pytest.approx([0, 2 * (math.e - 2)])


def test_a_mean_reads_only_what_the_mask_shows() -> None:
    values = torch.tensor([[1.0, 3.0, math.nan], [math.inf, 5.0, 7.0]])
    mask = torch.tensor([[True, True, False], [False, True, False]])
    assert mean_over(values, mask).tolist() == [2.0, 5.0]
    assert mean_over(values, torch.zeros_like(mask)).tolist() == [0.0, 0.0]


# --- variants ------------------------------------------------------------------------------------------------------


def test_advantages_by_the_deviation_of_the_batch_or_by_none() -> None:
    rewards = double(0, 1, 10, 12).reshape(1, 4)
    # Of 0, 1, 10, 12: mean 5.75, squared deviations 33.0625 + 22.5625 + 18.0625 + 39.0625 = 112.75, over 3.
    deviation = math.sqrt(112.75 / 3) + 1e-4
    assert advantages(rewards, 2, "none")[0].tolist() == [-0.5, 0.5, -1, 1]
    found = advantages(rewards, 2, "batch")[0].tolist()
    assert found == pytest.approx([each / deviation for each in (-0.5, 0.5, -1, 1)])


def test_estimates_of_the_kl_and_their_slopes() -> None:
    logps, reference = double(-1.0), double(-1.5)
    found = {name: float(kl_estimate(logps, reference, name)) for name in ESTIMATORS}
    assert found == pytest.approx({"k1": 0.5, "k2": 0.125, "k3": math.exp(-0.5) + 0.5 - 1})
    for name in ESTIMATORS:
        leaf = double(-1.0, -2.0).requires_grad_()
        kl_estimate(leaf, double(-1.5, -0.3), name).sum().backward()
        torch.testing.assert_close(kl_slope(leaf.detach(), double(-1.5, -0.3), name), leaf.grad, rtol=0, atol=1e-14)


def test_what_a_completions_loss_is_divided_by() -> None:
    # Three tokens and one of at most five: two on average.
    assert loss_tokens(MASK, "grpo").tolist() == [[3, 1]]
    assert loss_tokens(MASK, "dr_grpo", 5).tolist() == [[5, 5]]
    assert loss_tokens(MASK, "dapo").tolist() == loss_tokens(MASK, "bnpo").tolist() == [[2, 2]]
    shares = token_shares(MASK, torch.float64, loss_tokens(MASK, "dapo"))
    assert shares[MASK].tolist() == pytest.approx([0.25] * 4)


def test_a_ratio_beyond_its_clip_pulls_no_further() -> None:
    # Ratios of 1.5 and 0.5 with either sign of the advantage; clipped to 0.8 and 1.3.
    variant = Variant(epsilon=0.2, epsilon_high=0.3)
    logps, advantage = double(1.5, 0.5, 1.5, 0.5).log(), double(1, 1, -1, -1)
    one = logps.view(1, 4, 1)
    every = torch.ones_like(one, dtype=torch.bool)
    loss = sequence_losses(one, one, advantage.unsqueeze(0), every, double(0), torch.zeros_like(one), variant=variant)
    assert loss[0].tolist() == pytest.approx([-1.3, -0.5, 1.5, 0.8])
    rows = [each.unsqueeze(0) for each in (logps, logps, advantage, torch.ones(4))]
    found = logp_grads(*rows, double(0), torch.zeros(1, 4), variant)
    assert found[0].tolist() == pytest.approx([0, -0.5, 1.5, 0])


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_of_every_variant_is_that_of_its_loss(loss_type: LossType, estimator: KlEstimator) -> None:
    draws = torch.Generator().manual_seed(0)
    logps, reference, old = (-torch.rand(2, 4, 5, generator=draws, dtype=torch.float64) for _ in range(3))
    advantage, beta = torch.randn(2, 4, generator=draws, dtype=torch.float64), double(0.3, 0.0)
    mask = torch.arange(5) < torch.tensor([[5, 1, 3, 2], [4, 4, 5, 1]])[..., None]
    variant, tokens = Variant(loss_type, 0.1, 0.2, estimator), loss_tokens(mask, loss_type, 6)
    leaf = logps.clone().requires_grad_()
    sequence_losses(leaf, reference, advantage, mask, beta, old, tokens, variant).mean(-1).sum().backward()
    per_token = (logps, reference, advantage[..., None].expand_as(logps), token_shares(mask, logps.dtype, tokens))
    found = logp_grads(*(each.flatten(1) for each in per_token), beta, old.flatten(1), variant)
    torch.testing.assert_close(found.view_as(logps), leaf.grad, rtol=0, atol=1e-12)


# --- schedule and clip -------------------------------------------------------------------------------------------


def test_the_rate_falls_linearly_from_its_peak_towards_zero() -> None:
    peak, steps = double(1.0, 1.0, 1.0, 1.0), double(0, 1, 3, 4)
    assert learning_rate(peak, steps, double(4, 4, 4, 4)).tolist() == [1.0, 0.75, 0.25, 0.0]
    assert learning_rate(peak, double(5, 9, 0, 0), double(4, 4, 4, 4)).tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_transformers(kind: Schedule, warmup: int) -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    theirs = transformers.get_scheduler(kind, optimizer, warmup, 10).lr_lambdas[0]
    for step in range(10):
        ours = learning_rate(double(2.0), double(step), double(10), kind, warmup)
        assert float(ours) == pytest.approx(2 * theirs(step), abs=1e-15)


def test_gradients_longer_than_the_limit_are_cut_to_it_as_torch_cuts_them() -> None:
    for size in (0.5, 1.0, 3.0):
        parameter = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
        parameter.grad = torch.full((5,), size / math.sqrt(5), dtype=torch.float64)
        before = parameter.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        ours = before * clip_factor(norm.unsqueeze(0), double(1.0))
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-14, atol=0)
        assert float(ours.norm()) == pytest.approx(min(size, 1.0), abs=2e-6)


# --- AdamW ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-7)])
def test_twenty_updates_are_those_of_torchs_adamw(dtype: torch.dtype, tolerance: float) -> None:
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(3, 40, generator=draws, dtype=dtype)
    peaks, active = torch.tensor([1e-3, 1e-2, 0.1], dtype=dtype), torch.ones(3, dtype=torch.bool)
    parameters, optimizer = start.clone(), AdamW.fresh(start)
    theirs = [torch.nn.Parameter(row.clone()) for row in start]
    reference = [
        torch.optim.AdamW([each], lr=float(peak), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, foreach=False)
        for each, peak in zip(theirs, peaks, strict=True)
    ]
    for step in range(20):
        # Gradients of very different sizes, some exactly zero, one moment never touched.
        gradient = torch.randn(3, 40, generator=draws, dtype=dtype) * 10.0 ** torch.arange(-10, 10, 0.5, dtype=dtype)
        gradient[:, 3] = 0.0
        gradient[:, step] = 0.0
        rate = peaks * (1 - step / 20)
        optimizer.update(parameters, gradient, rate, active)
        for cell, each in enumerate(reference):
            theirs[cell].grad = gradient[cell].clone()
            each.param_groups[0]["lr"] = float(rate[cell])
            each.step()
        for cell, expected in enumerate(theirs):
            torch.testing.assert_close(parameters[cell], expected.detach(), rtol=tolerance, atol=tolerance)
    assert torch.equal(parameters[:, 3], start[:, 3])
    assert (parameters - start).abs().max() > 0.1


def test_a_frozen_cell_keeps_parameters_and_moments() -> None:
    draws = torch.Generator().manual_seed(0)
    parameters = torch.randn(2, 6, generator=draws)
    optimizer = AdamW.fresh(parameters)
    optimizer.update(parameters, torch.randn(2, 6, generator=draws), torch.ones(2), torch.ones(2, dtype=torch.bool))
    before = [each.clone() for each in (parameters, optimizer.mean, optimizer.square, optimizer.count)]
    optimizer.update(parameters, torch.ones(2, 6), torch.ones(2), torch.tensor([True, False]))
    after = (parameters, optimizer.mean, optimizer.square, optimizer.count)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[1], new[1])
        assert not torch.equal(old[0], new[0])
    assert optimizer.count.tolist() == [2, 1]


def test_a_frozen_cell_is_not_hurt_by_a_gradient_that_is_not_finite() -> None:
    parameters = torch.ones(2, 3)
    optimizer = AdamW.fresh(parameters)
    gradient = torch.tensor([[1.0, 1.0, 1.0], [math.nan, math.inf, 1.0]])
    optimizer.update(parameters, gradient, torch.full((2,), 0.1), torch.tensor([True, False]))
    assert parameters[1].tolist() == [1, 1, 1]
    assert torch.isfinite(optimizer.mean).all()
    assert torch.isfinite(optimizer.square).all()
