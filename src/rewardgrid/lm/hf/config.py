"""Hugging Face's ``config.json``: which models are computed here, and what their sizes are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rewardgrid.lm.shape import KINDS, Scaling, Shape
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import number, read_json, write_json

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""Of each ``model_type`` that is computed here, the one architecture."""

ELSEWHERE = 'write "engine: trl", which trains what transformers loads'


ADDED = ("add_bos_token", "add_eos_token")
"""What makes transformers add special tokens, whatever tokenizer.json says."""


MOST_LAYERS = 10_000
MOST_ATTENTION = 1000.0
"""What no model has: more than this is a slip of somebody's."""


class NotNative(UserError):
    """A sound configuration of a model that is not computed here."""


def shape_of(config: Mapping[str, Any], source: str = "config.json", otherwise: str = ELSEWHERE) -> Shape:
    """Read the architecture from a Hugging Face ``config.json``.

    Args:
        otherwise: what to do with a model that is not computed here.

    Raises:
        NotNative: another architecture or activation, a sliding window, rotary embeddings that are scaled in another
            way or differ by layer. Names the first key that says so.
        UserError: a size is no whole number, or the rotary embedding is not described by a mapping of sound numbers.
        KeyError: a size is missing.
    """
    rope = _rope(config, source)
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    family = str(config.get("model_type"))
    qwen2 = family == "qwen2"
    fitting = [ARCHITECTURES.get(family)]
    odd = {
        "model_type": family not in ARCHITECTURES,
        "architectures": (config.get("architectures") or fitting) != fitting,
        "use_sliding_window": qwen2 and _slides(config),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "rope_scaling": kind not in SCALINGS
        or any(isinstance(value, dict) for value in rope.values())  # of each kind of layer
        or (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1,
    }
    for key, is_odd in odd.items():
        if is_odd:
            read = rope if key == "rope_scaling" else config.get(key)
            raise NotNative(
                f"{source}: {key}: read {read!r}; the native engine computes LLaMA and Qwen2 without a sliding window, "
                f"with silu and a rotary embedding that is {', '.join(SCALINGS)}: {otherwise}, or choose such a model"
            )
    size = partial(_size, config, source)
    heads, hidden = size("num_attention_heads"), size("hidden_size")
    head_dim = size("head_dim", hidden // heads)
    eps = number(config.get("rms_norm_eps", 1e-6))
    if eps is None or not 0 < eps < 1:
        raise UserError(f"{source}: rms_norm_eps: read {config['rms_norm_eps']!r}; write a number between 0 and 1")
    try:
        theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
        scaling = SCALINGS[kind](config, rope, theta, head_dim)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        theta, scaling = math.nan, None
    sound = theta > 1 and (
        scaling is None
        or (
            (0 < scaling.factor < math.inf and 0 < scaling.attention < MOST_ATTENTION and scaling.low <= scaling.high)
            and (scaling.kind != "llama3" or scaling.low < scaling.high)
        )
    )
    if not sound:
        raise UserError(
            f"{source}: rope_parameters: read {dict(rope)!r}; write positive numbers, a base (rope_theta) above 1, and "
            "the lower of two limits first"
        )
    return Shape(
        layers=size("num_hidden_layers", most=MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        # Where the key is missing, Hugging Face has 32 in a Qwen2, and as many as queries in a LLaMA.
        kv_heads=size("num_key_value_heads", 32 if qwen2 and "num_key_value_heads" not in config else heads),
        head_dim=head_dim,
        mlp_width=size("intermediate_size"),
        vocabulary=size("vocab_size"),
        context=size("max_position_embeddings"),
        rope_theta=theta,
        norm_eps=eps,
        tied=bool(config.get("tie_word_embeddings", False)),
        biases=("qkv",) if qwen2 else _biases(config),
        rope_scaling=scaling,
    )


def config_of(shape: Shape, eos: int) -> dict[str, Any]:
    """The configuration of a plain LLaMA: no BOS, padded with EOS."""
    assert not shape.biases
    assert shape.rope_scaling is None
    return {
        "architectures": [ARCHITECTURES["llama"]],
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.mlp_width,
        "max_position_embeddings": shape.context,
        "vocab_size": shape.vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def generation_config(eos: int, length: int) -> dict[str, Any]:
    """How transformers is to generate: from the model's own distribution, no more than so many tokens."""
    draws = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return {"eos_token_id": eos, "pad_token_id": eos, "max_new_tokens": length} | draws


def plain_tokenizer(directory: Path) -> None:
    """Let the tokenizer of a directory encode a text as it stands, without the special tokens that it would add.

    A story's beginning that is closed by [EOS] makes a model begin another one.
    """
    path = directory / "tokenizer.json"
    write_json(path, read_json(path) | {"post_processor": None})
    path = directory / "tokenizer_config.json"
    settings = {key: value for key, value in read_json(path).items() if key not in ADDED}
    write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def context_of(config: Mapping[str, Any]) -> float:
    """The longest sequence that a model reads, in tokens; infinite where its configuration names none."""
    return number(config.get("max_position_embeddings")) or math.inf


def _size(config: Mapping[str, Any], source: str, key: str, default: int | None = None, most: int = 2**31) -> int:
    """A size of a model; null is as good as missing where there is a default.

    Raises:
        UserError: it is no whole number, or none of this kind.
        KeyError: it is missing.
    """
    read = config[key] if default is None else config.get(key)
    found = default if default is not None and not read else number(read)
    if found is None or not 1 <= found <= most or found % 1:
        raise UserError(f"{source}: {key}: read {read!r}; write a whole number from 1 to {most}")
    return int(found)


def _biases(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The projections of a LLaMA that have biases."""
    attention, mlp = bool(config.get("attention_bias", False)), bool(config.get("mlp_bias", False))
    has = {"qkv": attention, "o": attention, "gate_up": mlp, "down": mlp}
    return tuple(kind for kind in KINDS if has[kind])


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether a Qwen2 has layers that see the last tokens only, as Hugging Face reads its configuration."""
    if not config.get("use_sliding_window", False) or config.get("sliding_window", 4096) is None:
        return False
    kinds = config.get("layer_types")
    if kinds is None:  # the layers from this one on
        return bool(config["num_hidden_layers"] > config.get("max_window_layers", 28))
    return "sliding_attention" in kinds


# --- rotary embeddings ---------------------------------------------------------------------------------


def _rope(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """What is said of the rotary embedding, under its old key or its new one; transformers' order."""
    for key in ("rope_scaling", "rope_parameters"):
        if rope := config.get(key):
            if not isinstance(rope, Mapping):
                raise UserError(f"{source}: {key}: read {rope!r}; write a mapping, such as {{rope_type: default}}")
            return rope
    return {}


def _first_context(config: Mapping[str, Any], rope: Mapping[str, Any]) -> int:
    """The context that a model was trained on before its rotary embedding was scaled."""
    key = "original_max_position_embeddings"
    return int(config.get(key) or rope.get(key) or config["max_position_embeddings"])


def _plain(*_: Any) -> None:
    """Nothing is scaled: always, or (``dynamic``) within the context, beyond which nothing here reads."""


def _linear(_: Mapping[str, Any], rope: Mapping[str, Any], *__: Any) -> Scaling:
    return Scaling("linear", float(rope["factor"]))


def _llama3(config: Mapping[str, Any], rope: Mapping[str, Any], *_: Any) -> Scaling:
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    return Scaling("llama3", float(rope["factor"]), low, high, _first_context(config, rope))


def _yarn(config: Mapping[str, Any], rope: Mapping[str, Any], theta: float, head_dim: int) -> Scaling:
    first = _first_context(config, rope)
    factor = float(rope.get("factor") or config["max_position_embeddings"] / first)

    def place(turns: float) -> float:
        """Of the frequency that turns so often in the first context, its number."""
        return head_dim * math.log(first / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def gain(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = place(rope.get("beta_fast") or 32), place(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    attention = rope.get("attention_factor")
    if attention is None:
        scale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
        attention = gain(scale) / gain(all_dim) if scale and all_dim else gain(1.0)
    return Scaling("yarn", factor, low, high if high != low else high + 0.001, first, float(attention))


SCALINGS: dict[str, Callable[..., Scaling | None]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _plain,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""How each ``rope_type`` is read from (config, its rotary part, theta, head_dim)."""
