"""The output layer in pieces, against a softmax over everything at once and its autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rewardgrid.lm import output
from rewardgrid.lm.output import OutputLayer, exp_, target_logps

ROWS, HIDDEN, WORDS = 11, 6, 23


def inputs(cells: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weights, targets, and what a loss makes of each log-probability."""
    draws = torch.Generator().manual_seed(0)
    hidden, weight, upstream = (
        torch.randn(size, generator=draws, dtype=torch.float64).to(dtype)
        for size in ((cells, ROWS, HIDDEN), (cells, WORDS, HIDDEN), (cells, ROWS))
    )
    return scale * hidden, scale * weight, torch.randint(0, WORDS, (cells, ROWS), generator=draws), upstream


@pytest.fixture(params=[1, 4, ROWS], ids=lambda rows: f"{rows} rows at a time")
def rows_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "CPU_LOGITS", request.param * WORDS * 2)


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.usefixtures("rows_at_a_time")
def test_log_probabilities_entropies_and_gradients_are_those_of_a_plain_softmax(cells: int) -> None:
    hidden, weight, targets, upstream = inputs(cells)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    full = torch.bmm(h, w.mT).log_softmax(-1)
    expected = full.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    (expected.exp() * upstream).sum().backward()

    before = torch.ones_like(weight)
    weight_grad = before.clone()
    logps, entropies, hidden_grad = OutputLayer(weight).backward(
        hidden, targets, lambda logps, rows: logps.exp() * upstream[:, rows], weight_grad
    )
    torch.testing.assert_close(logps, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(entropies, -(full.exp() * full).sum(-1).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(hidden_grad, h.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight_grad, before + w.grad, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("rows_at_a_time")
def test_autograd_goes_the_same_way() -> None:
    hidden, weight, targets, upstream = inputs(2)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    (target_logps(h, w, targets) * upstream).sum().backward()
    weight_grad = torch.zeros_like(weight)
    _, _, hidden_grad = OutputLayer(weight).backward(hidden, targets, lambda _, rows: upstream[:, rows], weight_grad)
    assert torch.equal(h.grad, hidden_grad)
    assert torch.equal(w.grad, weight_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("rows_at_a_time")
def test_with_and_without_a_gradient_log_probabilities_have_the_same_bits(dtype: torch.dtype) -> None:
    hidden, weight, targets, upstream = inputs(2, dtype)
    layer = OutputLayer(weight)
    logps = layer.backward(hidden, targets, lambda _, rows: upstream[:, rows], torch.zeros(weight.shape))[0]
    assert torch.equal(logps, layer.logps(hidden, targets))


def test_a_token_too_improbable_for_its_probability_to_be_a_number_has_a_log_probability_and_a_gradient() -> None:
    hidden, weight, targets, upstream = inputs(1, torch.float32, scale=8.0)
    weight_grad = torch.zeros_like(weight)
    found = OutputLayer(weight).backward(hidden, targets, lambda _, rows: upstream[:, rows], weight_grad)
    exact = torch.bmm(hidden.double(), weight.double().mT).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert found[0].min() < -200  # exp(-104) is zero in float32
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=1e-4)
    assert all(each.isfinite().all() for each in (*found, weight_grad))


def test_where_the_loss_wants_nothing_the_gradient_is_exactly_zero() -> None:
    hidden, weight, targets, _ = inputs(1, torch.float32)
    weight_grad = torch.zeros_like(weight)
    found = OutputLayer(weight).backward(hidden, targets, lambda logps, _: torch.zeros_like(logps), weight_grad)
    assert torch.count_nonzero(found[2]) == torch.count_nonzero(weight_grad) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials_are_as_near_as_their_type_allows(dtype: torch.dtype) -> None:
    x = -torch.linspace(0, 80, 4001, dtype=dtype)
    found, wanted = exp_(x.clone()), x.double().exp()
    # A power of e is as uncertain as its exponent: half a last digit of x, and of the result.
    assert ((found.double() / wanted - 1).abs() <= torch.finfo(dtype).eps * (2 - x.double())).all()
    assert exp_(torch.tensor([0.0, -torch.inf], dtype=dtype)).tolist() == [1, 0]
    assert exp_(torch.tensor([torch.nan], dtype=dtype)).isnan()
