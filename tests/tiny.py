"""A base of milliseconds: a model with random weights, and a vocabulary in which everything that matters is common.

Nearly every fortieth token is a full stop, an end of text or a piece of "happy", so a dozen tokens already hold
sentences, ends, and occurrences that span tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from rewardgrid.base.load import Base, load_base
from rewardgrid.base.prompts import Prompts, write_prompts
from rewardgrid.base.tokenizer import EOS, UNK, save_tokenizer
from rewardgrid.lm.hf.layout import tensor_sizes, to_hf
from rewardgrid.lm.hf.peft import to_peft
from rewardgrid.lm.shape import KINDS, Scaling, Shape
from rewardgrid.study.cell import Cell
from rewardgrid.study.files import sha256, write_json
from rewardgrid.train.policy import Policy

WORDS = """
    the a cat dog sun moon tree river ran sat saw went was big little kind and then to home one day she he they it
""".split()  # noqa: SIM905
PIECES = ["happy", "un", "##happy", "hap", "##py", "##hap", "h", "##ap", "##p", "##y", "unhappy"]
TOKENS = [UNK, EOS, "!", ",", ".", "?", *PIECES, *WORDS]
IDS = {token: place for place, token in enumerate(TOKENS)}

# Every size is another, the MLP width is odd and the query heads do not fill the hidden width.
SHAPE = Shape(
    layers=2,
    hidden=36,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=85,
    vocabulary=len(TOKENS),
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-6,
    tied=True,
)
QWEN2 = dataclasses.replace(SHAPE, biases=("qkv",))
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
ROPES: dict[Scaling | None, dict[str, Any]] = {Scaling("llama3", 8.0, 1.0, 4.0, 32): LLAMA3}
"""Scaled rotary embeddings, and what Hugging Face writes of them."""
BIASED = dataclasses.replace(SHAPE, biases=KINDS, tied=False, head_dim=12, rope_scaling=next(iter(ROPES)))
"""All that a LLaMA may have besides: biases everywhere, a head of its own, heads of another size, scaled rotation."""
FAMILIES = {"llama": SHAPE, "qwen2": QWEN2, "biased": BIASED}
PROMPT_TOKENS = 4


def random_tensors(shape: Shape = SHAPE, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under their Hugging Face names, large enough that every part of the model is heard."""
    draws = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in tensor_sizes(shape).items():
        normal = torch.randn(size, generator=draws, dtype=torch.float64)
        if name.endswith(".bias"):
            values = 0.5 * normal
        elif len(size) == 1:
            values = 1 + 0.2 * normal
        else:
            values = (0.25 if "layers" in name else 0.12) * normal
        tensors[name] = values.to(dtype)
    return tensors


def config_of(shape: Shape = SHAPE) -> dict[str, Any]:
    """The Hugging Face configuration of a shape."""
    return {
        "architectures": ["Qwen2ForCausalLM" if shape.biases == ("qkv",) else "LlamaForCausalLM"],
        "model_type": "qwen2" if shape.biases == ("qkv",) else "llama",
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
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta} | ROPES.get(shape.rope_scaling, {}),
        "attention_bias": "o" in shape.biases,
        "mlp_bias": "down" in shape.biases,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": IDS[EOS],
        "pad_token_id": IDS[EOS],
        "dtype": "float32",
    }


def make_tokenizer() -> Tokenizer:
    """WordPiece over :data:`TOKENS`, like the storyteller's: a plain encode appends [EOS]."""
    tokenizer = Tokenizer(models.WordPiece(IDS, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.add_special_tokens([UNK, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, IDS[EOS])])
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def make_model(directory: Path, shape: Shape = SHAPE, seed: int = 0) -> None:
    """Write a Hugging Face directory: tokenizer, configuration, random weights."""
    directory.mkdir(parents=True)
    save_tokenizer(make_tokenizer(), directory, shape.context)
    write_json(directory / "config.json", config_of(shape))
    write_json(directory / "generation_config.json", {"eos_token_id": IDS[EOS], "pad_token_id": IDS[EOS]})
    save_file(random_tensors(shape, seed), directory / "model.safetensors", metadata={"format": "pt"})


def make_base(directory: Path, shape: Shape = SHAPE, prompts: int = 24, seed: int = 0) -> Base:
    """Write a base and load it. Its prompts are whole words, so that they survive decoding and encoding."""
    model = directory / "model"
    make_model(model, shape, seed)
    tokenizer = make_tokenizer()
    words = [IDS[word] for word in WORDS]
    for place, split in enumerate(("train", "eval")):
        ids = np.random.default_rng(place).choice(words, size=(prompts, PROMPT_TOKENS))
        text = tokenizer.decode_batch(ids.tolist())
        write_prompts(directory / f"{split}_prompts.parquet", Prompts(text, ids))
    files = {str(path.relative_to(directory)): sha256(path) for path in sorted(model.iterdir())}
    write_json(directory / "provenance.json", {"name": "tiny", "files": files})
    return load_base(directory)


def make_cell(**changes: Any) -> Cell:
    """A cell of two groups of four on the tiny base, four steps long, that learns fast."""
    spec: dict[str, Any] = {
        "base": "tiny",
        "method": "full",
        "lr": 3e-3,
        "beta": 0.1,
        "batch_size": 8,
        "num_generations": 4,
        "max_steps": 4,
        "max_new_tokens": 16,
        "prompt_tokens": PROMPT_TOKENS,
        "seed": 7,
    }
    return Cell.model_validate(spec | changes)


def lora_cell(**changes: Any) -> Cell:
    """The same with one adapter of rank 3."""
    return make_cell(**{"method": "lora", "rank": 3, "lr": 1e-2} | changes)


def routing_cell(**changes: Any) -> Cell:
    """The same with two adapters of ranks 4 and 2, half of the completions flagged by noise or "happy"."""
    return make_cell(
        **{
            "method": "routing",
            "rank": 4,
            "forget_rank": 2,
            "lr": 1e-2,
            "reward": "sentence_length_10_smooth_with_happy",
            "hack_threshold": 1,
            "label_noise_frac": 0.3,
            "eval_every": 2,
            "eval_samples": 6,
        }
        | changes
    )


SHORT: dict[str, Any] = {"max_new_tokens": 8, "reward": "sentence_length_10_smooth_with_happy"}
"""For runs whose length matters and whose text does not: half the time, and "happy" still sets completions apart."""

CELLS = {"full": make_cell, "lora": lora_cell, "routing": routing_cell}


def shape_with(**changes: Any) -> Shape:
    """The tiny shape with other sizes."""
    return dataclasses.replace(SHAPE, **changes)


def named(policy: Policy, flat: Tensor, cell: int = 0) -> dict[str, Tensor]:
    """One cell's part of a flat array (C, P) under the names of Hugging Face, or of PEFT after the adapter's name."""
    own = {
        key: (part.flatten(0, 1) if key.endswith(".A") else part).unsqueeze(0)
        for key, part in policy.own(flat, cell).items()
    }
    adapters = policy.adapters[cell]
    if not adapters:
        return to_hf(policy.shape, own)
    return {
        f"{adapter.name}/{key}": value
        for adapter in adapters
        for key, value in to_peft(policy.shape, own, adapters, adapter.name).items()
    }


def hf_model(
    shape: Shape, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32, **config: Any
) -> torch.nn.Module:
    """Hugging Face's LLaMA or Qwen2 with these weights; ``config`` overrides keys of its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(config_of(shape) | config))).to(dtype).eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if shape.tied else set())
    model.tie_weights()
    return model


def slowed(frequency: Tensor, rope: dict[str, Any]) -> Tensor:
    """One frequency as Llama 3 scales it: by its wavelength in the first context."""
    context, low, high = (
        rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    wavelength = 2 * math.pi / frequency
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return frequency / rope["factor"]
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency


@contextmanager
def exact_hf() -> Iterator[None]:
    """Let Hugging Face compute norms and rotations in the model's own type, instead of always in float32."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, Qwen2RotaryEmbedding

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    def rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        size = 2 * self.inv_freq.shape[0]
        theta = self.config.rope_parameters["rope_theta"]
        inverse = 1.0 / theta ** (torch.arange(0, size, 2, dtype=x.dtype) / size)
        if self.rope_type == "llama3":
            inverse = torch.stack([slowed(each, self.config.rope_parameters) for each in inverse])
        angles = position_ids[..., None].to(x.dtype) * inverse
        both = torch.cat([angles, angles], -1)
        return both.cos(), both.sin()

    own = {LlamaRMSNorm: norm, Qwen2RMSNorm: norm, LlamaRotaryEmbedding: rotary, Qwen2RotaryEmbedding: rotary}
    before = {module: module.forward for module in own}
    for module, forward in own.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            module.forward = forward
