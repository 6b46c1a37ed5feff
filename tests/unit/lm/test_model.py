"""The model against Hugging Face's LLaMA and Qwen2, and its own pieces against autograd."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.tiny import BIASED, FAMILIES, LLAMA3, QWEN2, SHAPE, config_of, exact_hf, hf_model, random_tensors, shape_with
from torch import Tensor

from rewardgrid.lm.hf.config import NotNative, shape_of
from rewardgrid.lm.hf.layout import from_hf, to_hf
from rewardgrid.lm.model import logits, token_logps
from rewardgrid.lm.shape import Shape
from rewardgrid.study.errors import UserError

SHAPES = {
    "tied, grouped queries, odd MLP width": SHAPE,
    "untied": shape_with(tied=False),
    "a key for every query": shape_with(kv_heads=4),
    "one key for all queries": shape_with(kv_heads=1, mlp_width=88),
    "another rotation and norm": shape_with(rope_theta=500.0, norm_eps=1e-3),
    "biases, tied": QWEN2,
    "biases, untied, one key for all queries": shape_with(biases=("qkv",), tied=False, kv_heads=1),
    "biases of attention": shape_with(biases=("qkv", "o")),
    "biases of the MLP": shape_with(biases=("gate_up", "down")),
    "biases everywhere, untied, heads of another size, scaled rotation": BIASED,
}

PLAIN = {name: FAMILIES[name] for name in ("llama", "qwen2")}


def random_ids(*size: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SHAPE.vocabulary, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_hugging_face_in_float32(shape: Shape) -> None:
    tensors, ids = random_tensors(shape), random_ids(3, 30)
    with torch.no_grad():
        theirs = hf_model(shape, tensors)(ids).logits
    ours = logits(shape, from_hf(shape, tensors), ids[None])[0]
    assert theirs.std() > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_hugging_face_in_float64(shape: Shape) -> None:
    tensors, ids = random_tensors(shape, dtype=torch.float64), random_ids(3, 30)
    with torch.no_grad(), exact_hf():
        theirs = hf_model(shape, tensors, torch.float64)(ids).logits
    ours = logits(shape, from_hf(shape, tensors), ids[None])[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 700.0},
        {"rope_theta": 700.0, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}},
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 9.0},
            "rope_scaling": {"rope_type": "default", "rope_theta": 700.0},
        },
    ],
    ids=["no key", "old key", "old key without scaling", "new key", "both"],
)
@pytest.mark.parametrize("family", PLAIN.values(), ids=PLAIN)
def test_the_rotation_is_read_from_old_and_new_configurations(rope: dict[str, Any], family: Shape) -> None:
    config = {key: value for key, value in config_of(family).items() if key != "rope_parameters"} | rope
    shape = shape_of(config)
    assert shape == dataclasses.replace(family, rope_theta=700.0 if rope else 10000.0)
    tensors, ids = random_tensors(shape), random_ids(2, 20)
    with torch.no_grad():
        theirs = hf_model(shape, tensors, **rope)(ids).logits
    torch.testing.assert_close(logits(shape, from_hf(shape, tensors), ids[None])[0], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": [1]},
        {"rope_scaling": "linear"},
        {"rope_parameters": {"rope_type": "linear", "factor": "two"}},
        {"rope_parameters": {"rope_type": "linear", "factor": 0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": -1.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": -1.0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1, "high_freq_factor": 1}},
    ],
    ids=str,
)
def test_a_rotation_that_is_none_is_named(rope: dict[str, Any]) -> None:
    config = {key: value for key, value in config_of(SHAPE).items() if key != "rope_parameters"} | rope
    with pytest.raises(UserError, match=r"config\.json: rope_\w+: read .*; write "):
        shape_of(config)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_key_value_heads", "max_position_embeddings"])
@pytest.mark.parametrize("value", ["big", 1e30, -1, 2.5, [3], True, float("nan")], ids=str)
def test_a_size_that_is_none_is_named(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {key}: read .*; write a whole number from 1 to "):
        shape_of(config_of(SHAPE) | {key: value})


@pytest.mark.parametrize("value", [None, "big", 0, -1, 1e30])
def test_a_norm_that_is_none_is_named(value: Any) -> None:
    with pytest.raises(UserError, match=r"config\.json: rms_norm_eps: read .*; write a number between 0 and 1"):
        shape_of(config_of(SHAPE) | {"rms_norm_eps": value})


SPREAD = shape_with(head_dim=32, rope_theta=20.0)
"""Frequencies on both sides of every bound."""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "linear, old key": {"type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "llama3 of another theta": LLAMA3 | {"rope_theta": 500.0, "factor": 2.0},
    "yarn": YARN,
    "yarn of the whole context": {"rope_type": "yarn", "factor": 2.0},
    "yarn with bounds": YARN | {"beta_fast": 8.0, "beta_slow": 0.5, "truncate": False},
    "yarn with a given gain": YARN | {"attention_factor": 0.7},
    "yarn with two gains": YARN | {"mscale": 0.707, "mscale_all_dim": 0.5},
}


@pytest.mark.parametrize("rope", SCALED.values(), ids=SCALED)
def test_a_scaled_rotation_gives_the_logits_and_gradients_of_hugging_face(rope: dict[str, Any]) -> None:
    key = "rope_scaling" if "type" in rope else "rope_parameters"
    rope = {"rope_theta": SPREAD.rope_theta} | rope
    shape = shape_of(
        {name: value for name, value in config_of(SPREAD).items() if name != "rope_parameters"} | {key: rope}
    )
    assert (shape.rope_scaling is None) == (rope.get("rope_type") == "dynamic")
    agree_on_a_step(shape, **{key: rope})
    if shape.rope_scaling is not None:  # and it is heard
        tensors, ids = random_tensors(shape), random_ids(1, 2, 60)
        plain, ours = (logits(each, from_hf(each, tensors), ids) for each in (SPREAD, shape))
        assert (plain - ours).abs().max() > 0.05


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_are_those_of_hugging_face(shape: Shape) -> None:
    agree_on_a_step(shape)


def agree_on_a_step(shape: Shape, **config: Any) -> None:
    """Log-probabilities, and the gradient that reaches every weight from a weighted sum of them, are transformers'."""
    tensors, ids, prompt = random_tensors(shape), random_ids(3, 60), 4
    upstream = torch.randn(3, 56, generator=torch.Generator().manual_seed(7)) / 168
    model = hf_model(shape, tensors, **config)
    model.get_input_embeddings().padding_idx = None  # [EOS] is a token like any other
    theirs = model(ids).logits[:, prompt - 1 : -1].log_softmax(-1).gather(-1, ids[:, prompt:, None]).squeeze(-1)
    (theirs * upstream).sum().backward()
    weights = {key: value.requires_grad_() for key, value in from_hf(shape, tensors).items()}
    ours = token_logps(shape, weights, ids[None], prompt)[0]
    (ours * upstream).sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    found = to_hf(shape, {key: weight.grad for key, weight in weights.items() if weight.grad is not None})
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found.pop(name), parameter.grad, rtol=0, atol=1e-5, msg=name)
    assert not found


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        (SHAPE, "model_type", "gpt2"),
        (SHAPE, "architectures", ["LlamaForSequenceClassification"]),
        (SHAPE, "hidden_act", "gelu"),
        (SHAPE, "rope_scaling", {"type": "longrope", "factor": 2.0}),
        (SHAPE, "rope_scaling", LLAMA3 | {"partial_rotary_factor": 0.5}),
        (QWEN2, "model_type", "qwen3"),
        (QWEN2, "use_sliding_window", True),
        (QWEN2, "hidden_act", "gelu"),
        (QWEN2, "rope_scaling", {"type": "su", "factor": 4.0}),
        (SHAPE, "rope_scaling", {"full_attention": {"rope_type": "default", "rope_theta": 9.0}}),
    ],
)
def test_a_model_that_is_not_computed_here_is_refused_by_the_key_that_says_so_with_the_engine_that_would_do(
    family: Shape, key: str, value: object
) -> None:
    config = config_of(family) | {key: value, "max_window_layers": 1}
    message = (
        f'base/config.json: {key}: read .*the native engine computes LLaMA and Qwen2.*: write "engine: trl", which'
    )
    with pytest.raises(NotNative, match=message):
        shape_of(config, "base/config.json")


@pytest.mark.parametrize("use", [True, False])
@pytest.mark.parametrize("window", [{}, {"sliding_window": 16}, {"sliding_window": None}], ids=str)
@pytest.mark.parametrize(
    "layers",
    [
        {},
        {"max_window_layers": 1},
        {"max_window_layers": 2},
        {"layer_types": ["full_attention", "full_attention"], "max_window_layers": 0},
        {"layer_types": ["full_attention", "sliding_attention"], "max_window_layers": 2},
    ],
    ids=str,
)
def test_a_sliding_window_is_refused_where_hugging_face_would_use_it(
    use: bool, window: dict[str, Any], layers: dict[str, Any]
) -> None:
    from transformers import Qwen2Config

    config = config_of(QWEN2) | {"use_sliding_window": use} | window | layers
    theirs = Qwen2Config(**config)
    if theirs.sliding_window is not None and "sliding_attention" in theirs.layer_types:
        with pytest.raises(NotNative, match="use_sliding_window: read True"):
            shape_of(config)
    else:
        assert shape_of(config) == QWEN2


@pytest.mark.parametrize("family", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("heads", [4, 64])
def test_what_a_configuration_leaves_out_is_what_hugging_face_takes(family: Shape, heads: int) -> None:
    from transformers import AutoConfig

    named = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    config = {key: config_of(family)[key] for key in named}
    config |= {"hidden_size": 128, "num_attention_heads": heads, "max_position_embeddings": 64}
    theirs, ours = AutoConfig.for_model(**config), shape_of(config)
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == 128 // heads
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied == theirs.tie_word_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert shape_of(config | {"num_key_value_heads": None}).kv_heads == heads


def test_a_qwen2_has_its_biases_whatever_its_configuration_says_of_them() -> None:
    assert shape_of(config_of(QWEN2) | {"attention_bias": False, "mlp_bias": True}) == QWEN2


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_weights_come_back_bit_for_bit_from_the_fused_and_padded_form(shape: Shape) -> None:
    tensors = random_tensors(shape)
    back = to_hf(shape, from_hf(shape, tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor), name


def test_to_hf_takes_the_cell_that_it_is_asked_for() -> None:
    first, second = random_tensors(seed=1), random_tensors(seed=2)
    pair = {key: torch.cat([value, from_hf(SHAPE, second)[key]]) for key, value in from_hf(SHAPE, first).items()}
    assert torch.equal(to_hf(SHAPE, pair, 0)["model.norm.weight"], first["model.norm.weight"])
    assert torch.equal(
        to_hf(SHAPE, pair, 1)["model.layers.1.mlp.up_proj.weight"], second["model.layers.1.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES)
def test_cells_side_by_side_do_not_see_one_another(shape: Shape) -> None:
    weights = [from_hf(shape, random_tensors(shape, seed)) for seed in (1, 2, 3)]
    side_by_side = {key: torch.cat([each[key] for each in weights]) for key in weights[0]}
    ids = random_ids(3, 2, 20)
    together = logits(shape, side_by_side, ids)
    for cell, own in enumerate(weights):
        torch.testing.assert_close(together[cell], logits(shape, own, ids[cell : cell + 1])[0], rtol=0, atol=1e-5)


def test_one_frozen_model_serves_every_cell() -> None:
    weights, ids = from_hf(SHAPE, random_tensors()), random_ids(3, 2, 20)
    together = logits(SHAPE, weights, ids)
    for cell in range(3):
        torch.testing.assert_close(together[cell], logits(SHAPE, weights, ids[cell : cell + 1])[0], rtol=0, atol=1e-5)


def test_padding_units_of_the_mlp_stay_zero_in_every_gradient() -> None:
    weights = {key: value.requires_grad_() for key, value in from_hf(SHAPE, random_tensors()).items()}
    token_logps(SHAPE, weights, random_ids(1, 2, 12), 4).sum().backward()
    for layer in range(SHAPE.layers):
        up, down = weights[f"{layer}.gate_up"].grad, weights[f"{layer}.down"].grad
        assert up is not None
        assert down is not None
        for half in up[0].split(SHAPE.mlp_padded):
            assert half[: SHAPE.mlp_width].abs().sum() > 0
            assert torch.count_nonzero(half[SHAPE.mlp_width :]) == 0
        assert torch.count_nonzero(down[0, :, SHAPE.mlp_width :]) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_log_probabilities_and_gradient_are_those_of_a_plain_softmax(tied: bool) -> None:
    shape, prompt = shape_with(tied=tied), 5
    ids = random_ids(1, 3, 14)
    upstream = torch.randn(1, 3, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def leaves() -> dict[str, Tensor]:
        tensors = random_tensors(shape, dtype=torch.float64)
        return {key: value.requires_grad_() for key, value in from_hf(shape, tensors).items()}

    plain = leaves()
    full = logits(shape, plain, ids)[:, :, prompt - 1 : -1].log_softmax(-1)
    expected = full.gather(-1, ids[:, :, prompt:, None]).squeeze(-1)
    (expected * upstream).sum().backward()

    ours = leaves()
    logps = token_logps(shape, ours, ids, prompt)
    (logps * upstream).sum().backward()
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-12)
    for key, weight in plain.items():
        torch.testing.assert_close(ours[key].grad, weight.grad, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES)
def test_gradients_of_cells_with_their_own_weights_stay_apart(shape: Shape) -> None:
    pair = [from_hf(shape, random_tensors(shape, seed, torch.float64)) for seed in (1, 2)]
    weights = {key: torch.cat([each[key] for each in pair]).requires_grad_() for key in pair[0]}
    token_logps(shape, weights, random_ids(2, 2, 10), 4)[1].sum().backward()
    for key, weight in weights.items():
        assert weight.grad is not None, key
        assert torch.count_nonzero(weight.grad[0]) == 0, key
        assert torch.count_nonzero(weight.grad[1]) > 0, key


def test_what_follows_a_completion_changes_nothing_before_it() -> None:
    weights, ids = from_hf(SHAPE, random_tensors()), random_ids(1, 2, 16)
    other = ids.clone()
    other[..., 10:] = 1
    first, second = (token_logps(SHAPE, weights, each, 4)[..., :6] for each in (ids, other))
    assert torch.equal(first, second)
