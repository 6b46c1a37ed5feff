"""Adapters: their arithmetic, whose parameters a gradient reaches, and their exchange with PEFT's names."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.tiny import SHAPE, random_tensors
from torch import Tensor

from rewardgrid.lm.adapters import Adapter, adapted, channel_scale, initial, merge, total_rank
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.hf.peft import from_peft, peft_config, to_peft
from rewardgrid.lm.model import hidden_states

RETAIN, FORGET = Adapter("retain", 4, 4), Adapter("forget", 2, 4)
BOTH = (RETAIN, FORGET)
SEGMENTS = (6, 3)
CELLS, SEQUENCES, LENGTH, WIDTH = 2, 4, 5, 7

# --- one projection against autograd -----------------------------------------------------------------------


def normal(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves() -> dict[str, Tensor]:
    rank = total_rank(BOTH)
    return {
        "x": normal(CELLS, SEQUENCES * LENGTH, WIDTH, seed=1).requires_grad_(),
        "a": normal(CELLS, len(SEGMENTS) * rank, WIDTH, seed=2).requires_grad_(),
        "b": normal(CELLS, sum(SEGMENTS), rank, seed=3).requires_grad_(),
    }


WEIGHT = normal(1, sum(SEGMENTS), WIDTH, seed=4)
UPSTREAM = normal(CELLS, SEQUENCES * LENGTH, sum(SEGMENTS), seed=5)
SCALE = channel_scale(BOTH).double().expand(CELLS, -1)
IS_FORGET = torch.tensor([adapter.name == "forget" for adapter in BOTH for _ in range(adapter.rank)])

Rule = Callable[[bool, bool], tuple[bool, bool]]
"""(flagged, forget adapter) -> (do its parameters hear the sequence, do activations)."""


def shared(flagged: bool, forget: bool) -> tuple[bool, bool]:
    return forget or not flagged, True


def exclusive(flagged: bool, forget: bool) -> tuple[bool, bool]:
    return flagged == forget, True


def by_the_sequence(rule: Rule, flagged: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The law itself: sequence by sequence, adapter by adapter, with ``detach`` where a gradient must not go."""
    own, outputs = leaves(), []
    x, a, b = own["x"], own["a"], own["b"]
    rank = total_rank(BOTH)
    for cell in range(CELLS):
        for sequence in range(SEQUENCES):
            rows = x[cell, sequence * LENGTH : (sequence + 1) * LENGTH]
            parts = []
            for place, (start, size) in enumerate(((0, 6), (6, 3))):
                y = rows @ WEIGHT[0, start : start + size].T
                for channels, adapter in ((slice(0, 4), RETAIN), (slice(4, 6), FORGET)):
                    left = a[cell, place * rank : (place + 1) * rank][channels]
                    right = b[cell, start : start + size, channels]
                    parameters, activations = rule(bool(flagged[cell, sequence]), adapter is FORGET)
                    if not parameters:
                        left, right = left.detach(), right.detach()
                    into = rows if activations else rows.detach()
                    y = y + adapter.scale * (into @ left.T) @ right.T
                parts.append(y)
            outputs.append(torch.cat(parts, -1))
    y = torch.cat(outputs).reshape(CELLS, SEQUENCES * LENGTH, -1)
    (y * UPSTREAM).sum().backward()
    return y, {key: value.grad if value.grad is not None else torch.zeros_like(value) for key, value in own.items()}


def ours(reach: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    own = leaves()
    y = adapted(own["x"], WEIGHT, own["a"], own["b"], SCALE, SEGMENTS, reach)
    (y * UPSTREAM).sum().backward()
    return y, {key: value.grad for key, value in own.items() if value.grad is not None}


def reach_of(rule: Rule, flagged: Tensor) -> Tensor:
    rows = [
        [[float(rule(bool(f), bool(channel))[0]) for channel in IS_FORGET] for f in sequences] for sequences in flagged
    ]
    return torch.tensor(rows, dtype=torch.float64)


LABELS = {
    "nothing flagged": torch.zeros(CELLS, SEQUENCES, dtype=torch.bool),
    "everything flagged": torch.ones(CELLS, SEQUENCES, dtype=torch.bool),
    "mixed": torch.tensor([[True, False, False, True], [False, True, True, True]]),
}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.allclose(first[key], second[key], rtol=1e-10, atol=1e-12) for key in first)


@pytest.mark.parametrize("flagged", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("rule", [shared, exclusive])
def test_output_and_every_gradient_are_those_of_detached_parameters(rule: Rule, flagged: Tensor) -> None:
    y, gradients = ours(reach_of(rule, flagged))
    expected_y, expected = by_the_sequence(rule, flagged)
    torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == expected.keys()
    assert same(gradients, expected)


def activations_masked(flagged: bool, forget: bool) -> tuple[bool, bool]:
    return forget or not flagged, forget or not flagged


def swapped(flagged: bool, forget: bool) -> tuple[bool, bool]:
    return not forget or not flagged, True


def unmasked(flagged: bool, forget: bool) -> tuple[bool, bool]:
    return True, True


@pytest.mark.parametrize("wrong", [activations_masked, swapped, unmasked, exclusive])
def test_the_comparison_tells_a_wrong_rule(wrong: Rule) -> None:
    flagged = LABELS["mixed"]
    assert not same(ours(reach_of(shared, flagged))[1], by_the_sequence(wrong, flagged)[1])


def test_no_mask_is_the_plain_gradient() -> None:
    flagged = LABELS["nothing flagged"]
    assert same(ours(None)[1], by_the_sequence(shared, flagged)[1])
    assert same(ours(None)[1], ours(reach_of(shared, flagged))[1])


def test_what_is_masked_is_exactly_zero() -> None:
    _, gradients = ours(reach_of(shared, LABELS["everything flagged"]))
    retain = ~IS_FORGET.repeat(len(SEGMENTS))
    assert torch.count_nonzero(gradients["a"][:, retain]) == 0
    assert torch.count_nonzero(gradients["b"][..., ~IS_FORGET]) == 0
    assert torch.count_nonzero(gradients["a"][:, ~retain]) > 0
    assert torch.count_nonzero(gradients["b"][..., IS_FORGET]) > 0


def test_the_frozen_matrix_gets_no_gradient() -> None:
    own, weight = leaves(), WEIGHT.clone().requires_grad_()
    adapted(own["x"], weight, own["a"], own["b"], SCALE, SEGMENTS).sum().backward()
    assert weight.grad is None


def test_switched_off_channels_leave_the_projection_as_it_was() -> None:
    own = leaves()
    off = channel_scale(BOTH, ()).double().expand(CELLS, -1)
    y = adapted(own["x"], WEIGHT, own["a"], own["b"], off, SEGMENTS)
    torch.testing.assert_close(y, own["x"] @ WEIGHT.mT, rtol=1e-12, atol=1e-12)


# --- scale -------------------------------------------------------------------------------------------------


def test_scale_is_alpha_by_rank_and_zero_where_switched_off_or_padding() -> None:
    assert channel_scale(BOTH).tolist() == [1, 1, 1, 1, 2, 2]
    assert channel_scale(BOTH, ("retain",)).tolist() == [1, 1, 1, 1, 0, 0]
    assert channel_scale(BOTH, ("forget",), 8).tolist() == [0, 0, 0, 0, 2, 2, 0, 0]


# --- whole models ------------------------------------------------------------------------------------------


def trained(seed: int = 9) -> dict[str, Tensor]:
    """Adapters whose B is no longer zero."""
    weights = initial(SHAPE, BOTH, seed)
    draws = torch.Generator().manual_seed(seed)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=draws) if key.endswith("B") else value
        for key, value in weights.items()
    }


@pytest.mark.parametrize("active", [None, ("retain",), ("forget",), ()])
def test_merged_weights_compute_what_the_adapters_compute(active: tuple[str, ...] | None) -> None:
    base = {key: value.double() for key, value in from_hf(SHAPE, random_tensors()).items()}
    adapters = {key: value.double() for key, value in trained().items()}
    scale = channel_scale(BOTH, active).double().unsqueeze(0)
    ids = torch.randint(0, SHAPE.vocabulary, (1, 2, 9), generator=torch.Generator().manual_seed(0))

    def project(key: str, h: Tensor) -> Tensor:
        segments = SHAPE.segments[key.split(".")[1]]
        return adapted(h, base[key], adapters[f"{key}.A"], adapters[f"{key}.B"], scale, segments)

    with_adapters = hidden_states(SHAPE, base, ids, project)
    merged = hidden_states(SHAPE, merge(SHAPE, base, adapters, scale), ids)
    torch.testing.assert_close(merged, with_adapters, rtol=1e-10, atol=1e-10)
    if active != ():
        assert not torch.allclose(merged, hidden_states(SHAPE, base, ids), atol=1e-3)


def test_fresh_adapters_change_nothing_and_fill_the_kaiming_range() -> None:
    weights = initial(SHAPE, BOTH, 3)
    for key, kind in SHAPE.projections():
        a, b = weights[f"{key}.A"], weights[f"{key}.B"]
        assert torch.count_nonzero(b) == 0
        width = SHAPE.mlp_width if kind == "down" else SHAPE.inputs[kind]
        bound = 1 / math.sqrt(width)
        real = a[..., :width]
        assert real.abs().max() <= bound
        assert real.abs().max() > 0.9 * bound
        assert abs(float(real.mean())) < 0.2 * bound
        assert torch.count_nonzero(a[..., width:]) == 0


def test_fresh_adapters_are_no_copies_of_one_another() -> None:
    tensors = [to_peft(SHAPE, initial(SHAPE, BOTH, 3), BOTH, name) for name in ("retain", "forget")]
    rows = [tuple(row.tolist()[:5]) for each in tensors for key, t in each.items() if "lora_A" in key for row in t]
    assert len(set(rows)) == len(rows)


def test_an_adapter_starts_the_same_whatever_stands_beside_it() -> None:
    narrow, wide = (
        to_peft(SHAPE, initial(SHAPE, pair, 3), pair, "retain") for pair in (BOTH, (RETAIN, Adapter("forget", 7, 1)))
    )
    for key, tensor in narrow.items():
        assert torch.equal(tensor, wide[key]), key


@pytest.mark.parametrize("adapters", [BOTH, (Adapter("default", 3, 3),)])
def test_adapters_come_back_bit_for_bit_from_pefts_names(adapters: tuple[Adapter, ...]) -> None:
    weights = initial(SHAPE, adapters, 5)
    for key in weights:
        if key.endswith("B"):
            weights[key] = torch.randn(weights[key].shape, generator=torch.Generator().manual_seed(1))
            if "gate_up" in key:
                for half in weights[key].split(SHAPE.mlp_padded, 1):
                    half[:, SHAPE.mlp_width :] = 0
    named = [(adapter, to_peft(SHAPE, weights, adapters, adapter.name)) for adapter in adapters]
    back = from_peft(SHAPE, named)
    assert back.keys() == weights.keys()
    for key, weight in weights.items():
        assert torch.equal(back[key], weight), key


def test_pefts_tensors_have_pefts_names_and_the_real_sizes() -> None:
    tensors = to_peft(SHAPE, initial(SHAPE, BOTH, 5), BOTH, "forget")
    assert len(tensors) == SHAPE.layers * 7 * 2
    prefix = "base_model.model.model.layers.1."
    assert tensors[prefix + "mlp.down_proj.lora_A.weight"].shape == (2, SHAPE.mlp_width)
    assert tensors[prefix + "mlp.up_proj.lora_B.weight"].shape == (SHAPE.mlp_width, 2)
    assert tensors[prefix + "self_attn.k_proj.lora_B.weight"].shape == (16, 2)


def test_the_configuration_for_peft_names_rank_alpha_and_all_seven_projections() -> None:
    config = peft_config(FORGET, to_peft(SHAPE, initial(SHAPE, BOTH, 0), BOTH, "forget"))
    assert (config["r"], config["lora_alpha"], config["bias"], config["lora_dropout"]) == (2, 4, "none", 0.0)
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
