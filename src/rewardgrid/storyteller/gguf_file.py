"""A GGUF file as a language model: llama.cpp's format, with weights of a few bits that are made plain numbers here.

Its format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from rewardgrid.lm.hf.layout import ROTATED, tensor_sizes, unpair
from rewardgrid.lm.shape import Shape
from rewardgrid.storyteller.chat import Chat
from rewardgrid.storyteller.model import Lazy, Model, chat_template
from rewardgrid.study.errors import UserError

FAMILIES = ("llama", "qwen2")
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face's modules, and what GGUF calls them."""

ROWS_AT_A_TIME = 8192  # of a matrix that is made plain numbers, which takes several times its memory

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LATER % "{1,3}",),
    "qwen2": (_LATER % "",),
}
"""``tokenizer.ggml.pre``, and how that tokenizer cuts a text, one pattern after another, before it looks for tokens."""

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type: tokens that are not learned from text


def open_gguf(path: Path) -> Model:
    """Open a GGUF file.

    Raises:
        UserError: the package ``gguf`` is missing; the file is cut short or no GGUF; it is no plain LLaMA or Qwen2, its
            tokenizer is of a kind that is not read here, or it has no chat template.
    """
    try:
        import gguf
    except ImportError:
        raise UserError('the package gguf is missing; run `pip install "rewardgrid[storyteller]"`') from None
    try:
        reader = gguf.GGUFReader(path)
        values = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, LookupError, TypeError, OverflowError, OSError) as error:
        raise UserError(
            f"{path}: cut short, or no GGUF file ({str(error) or type(error).__name__}); fetch it again"
        ) from None
    stored = {tensor.name: tensor for tensor in reader.tensors}
    family = values.get("general.architecture")
    if family not in FAMILIES:
        raise UserError(
            f"{path}: general.architecture: read {family!r}; choose a model of the family {' or '.join(FAMILIES)}"
        )
    try:
        shape = _shape(values, stored, path)
        tokenizer = _tokenizer(values, path)
    except KeyError as error:
        raise UserError(f"{path}: the key {error} is missing; fetch the file again, or choose another one") from None
    tokens = values["tokenizer.ggml.tokens"]
    special = {
        f"{name}_token": tokens[place]
        for name in ("bos", "eos")
        if (place := values.get(f"tokenizer.ggml.{name}_token_id")) is not None
    }
    template = chat_template(values.get("tokenizer.chat_template"), str(path))
    readers = {name: partial(_read, shape, name, stored[_name(name)]) for name in _checked(shape, stored, path)}
    return Model(shape, Lazy(readers), tokenizer, Chat(template, special, str(path)))


def _shape(values: Mapping[str, Any], stored: Mapping[str, Any], path: Path) -> Shape:
    """The sizes; the file's keys begin with its family."""
    family = values["general.architecture"]
    own = {key.removeprefix(f"{family}."): value for key, value in values.items() if key.startswith(f"{family}.")}
    heads, hidden = own["attention.head_count"], own["embedding_length"]
    head_dim = own.get("attention.key_length", hidden // heads)
    odd = {
        "rope.scaling.type": own.get("rope.scaling.type", "none") != "none",
        "rope.dimension_count": own.get("rope.dimension_count", head_dim) != head_dim,
        "attention.value_length": own.get("attention.value_length", head_dim) != head_dim,
        "attention.sliding_window": bool(own.get("attention.sliding_window")),
        "expert_count": bool(own.get("expert_count")),
    }
    for key, is_odd in odd.items():
        if is_odd:
            raise UserError(f"{path}: {family}.{key}: read {own[key]!r}; choose a model without it")
    return Shape(
        layers=own["block_count"],
        hidden=hidden,
        heads=heads,
        kv_heads=own.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_width=own["feed_forward_length"],
        vocabulary=len(values["tokenizer.ggml.tokens"]),
        context=own["context_length"],
        rope_theta=own.get("rope.freq_base", 10000.0),
        norm_eps=own["attention.layer_norm_rms_epsilon"],
        tied="output.weight" not in stored,
        biases=("qkv",) if family == "qwen2" else (),
    )


def _name(hf: str) -> str:
    """GGUF's name of a tensor: ``model.layers.0.mlp.up_proj.weight`` is ``blk.0.ffn_up.weight``."""
    module, _, kind = hf.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.{kind}"
    layer, _, module = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def _checked(shape: Shape, stored: Mapping[str, Any], path: Path) -> list[str]:
    """The Hugging Face names of the file's tensors, if they are those of this shape."""
    sizes = tensor_sizes(shape)
    for name, size in sizes.items():
        tensor = stored.get(_name(name))
        found = None if tensor is None else tuple(reversed(tensor.shape.tolist()))
        if found != size:
            raise UserError(f"{path}: {_name(name)} has the shape {found}, not {size}; fetch the file again")
    if odd := stored.keys() - {_name(name) for name in sizes}:
        raise UserError(
            f"{path}: holds {', '.join(sorted(odd)[:3])}, which no plain LLaMA or Qwen2 has; choose another model"
        )
    return list(sizes)


def _read(shape: Shape, name: str, tensor: Any) -> Tensor:
    """A tensor as float32, its rows in Hugging Face's order."""
    import gguf

    size = tuple(reversed(tensor.shape.tolist()))
    plain = np.empty(size, dtype=np.float32)
    for first in range(0, size[0], ROWS_AT_A_TIME):
        rows = slice(first, first + ROWS_AT_A_TIME)
        try:
            plain[rows] = gguf.dequantize(tensor.data[rows], tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(f"{tensor.name}: {error}; choose the same model in other bits, such as Q4_K_M") from None
    whole = torch.from_numpy(plain)
    # Of a LLaMA, llama.cpp keeps the two components that the rotary embedding turns together as neighbours, as we do.
    turned = not shape.biases and any(module in name for module in ROTATED)
    return unpair(shape, whole) if turned else whole


def _tokenizer(values: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer: byte-level BPE, cut as the file says."""
    kind, cut = values["tokenizer.ggml.model"], values.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or cut not in CUTS:
        key, read = ("model", kind) if kind != "gpt2" else ("pre", cut)
        raise UserError(
            f"{path}: tokenizer.ggml.{key}: read {read!r}; of a GGUF file only byte-level tokenizers (gpt2) are read "
            f"here, cut as {', '.join(CUTS)}: choose the same model as a Hugging Face directory"
        )
    tokens = values["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in values["tokenizer.ggml.merges"])]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cut == "llama-bpe"))
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS[cut]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = values["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer
