"""Tiny teachers: a LLaMA and a Qwen2 of random weights, each as a Hugging Face directory and as a GGUF file."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rewardgrid.lm.shape import Shape
from rewardgrid.storyteller.shown import SHOWN
from rewardgrid.study.files import write_json
from tests.tiny import config_of, random_tensors

VOCABULARY = 700
LLAMA = Shape(
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=96,
    vocabulary=VOCABULARY,
    context=2048,
    rope_theta=50000.0,
    norm_eps=2**-17,  # a GGUF file has float32
    tied=False,
)
QWEN2 = dataclasses.replace(LLAMA, biases=("qkv",), tied=True)
SHAPES = {"llama": LLAMA, "qwen2": QWEN2}

SPECIAL = {
    "llama": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
TEMPLATES = {
    "llama": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}",
    "qwen2": "{%- for m in messages %}\n"
    "    {{- '<|im_start|>' + m.role + '\n' + m['content'] + '<|im_end|>' + '\n' }}\n"
    "{%- endfor %}",
}
# As the makers of the two families cut their texts; llama.cpp knows the cuts by name.
CUTS = {
    "llama": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}
CUT_NAMES = {"llama": "llama-bpe", "qwen2": "qwen2"}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@cache
def tokenizer_of(family: str) -> Tokenizer:
    """Byte-level BPE, learnt from the stories that teachers are shown, with the family's special tokens at the end."""
    special = SPECIAL[family]
    tokenizer = Tokenizer(models.BPE(ignore_merges=family == "llama"))
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUTS[family]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for pair in SHOWN for text in pair], trainer)
    tokenizer.add_special_tokens(special)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def write_directory(directory: Path, family: str, **tokenizer_config: Any) -> Path:
    """Write the teacher as a Hugging Face directory; returns it."""
    directory.mkdir(parents=True)
    shape, special = SHAPES[family], SPECIAL[family]
    write_json(directory / "config.json", config_of(shape))
    save_file(random_tensors(shape), directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer_of(family).save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": {"__type": "AddedToken", "content": special[-1]},
        "chat_template": TEMPLATES[family],
    }
    write_json(directory / "tokenizer_config.json", config | tokenizer_config)
    return directory


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a LLaMA's query or key projection in llama.cpp's order (as its converter makes it)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, family: str, bits: gguf.GGMLQuantizationType | None = None, /, **changes: Any) -> Path:
    """Write the teacher as a GGUF file; returns its path.

    Args:
        bits: of the matrices; in float32 without it.
        changes: keys of the file (``__`` for ``.``) and other values for them, None to leave one out.
    """
    shape, tokenizer = SHAPES[family], tokenizer_of(family)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(place) for place in range(VOCABULARY)]
    values: dict[str, Any] = {
        f"{family}.block_count": shape.layers,
        f"{family}.embedding_length": shape.hidden,
        f"{family}.feed_forward_length": shape.mlp_width,
        f"{family}.attention.head_count": shape.heads,
        f"{family}.attention.head_count_kv": shape.kv_heads,
        f"{family}.attention.layer_norm_rms_epsilon": shape.norm_eps,
        f"{family}.rope.freq_base": shape.rope_theta,
        f"{family}.context_length": shape.context,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": CUT_NAMES[family],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL[family] else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index(SPECIAL[family][0]),
        "tokenizer.ggml.eos_token_id": tokens.index(SPECIAL[family][-1]),
        "tokenizer.chat_template": TEMPLATES[family],
    }
    architecture = changes.pop("general__architecture", family)
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    for name, array in _arrays(family).items():
        if bits is None or array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, bits), raw_dtype=bits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _arrays(family: str) -> dict[str, np.ndarray]:
    """The weights by their names in a GGUF file."""
    shape = SHAPES[family]
    tensors = {name: tensor.numpy() for name, tensor in random_tensors(shape).items()}
    arrays = {
        "token_embd.weight": tensors["model.embed_tokens.weight"],
        "output_norm.weight": tensors["model.norm.weight"],
    }
    if not shape.tied:
        arrays["output.weight"] = tensors["lm_head.weight"]
    for layer in range(shape.layers):
        for ours, theirs in NAMES.items():
            for kind in ("weight", "bias"):
                values = tensors.get(f"model.layers.{layer}.{ours}.{kind}")
                if values is None:
                    continue
                if family == "llama" and theirs in ("attn_q", "attn_k"):
                    values = permuted(values, shape.heads if theirs == "attn_q" else shape.kv_heads)
                arrays[f"blk.{layer}.{theirs}.{kind}"] = np.ascontiguousarray(values)
    return arrays
