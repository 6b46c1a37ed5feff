"""The files of a model's directory: which there must be, and whether they are sound."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from rewardgrid.lm.hf.config import NotNative, shape_of
from rewardgrid.lm.hf.layout import WHOLE, tensor_sizes
from rewardgrid.lm.hf.models import check_foreign, foreign_sizes
from rewardgrid.lm.shape import Shape
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
KEPT = (".json", ".txt", ".jinja")
"""What is kept of a model's directory beside its weights: never code (a chat template is for a sandbox), or pickles."""
PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ENDS = ("[EOS]", "<|endoftext|>", "</s>")
"""What the token that ends a text is called, where no file says which one it is."""
POINTER = b"version https://git-lfs.github.com/spec/"
CONSTANTS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Ends of the names of what old models hold beside their weights."""


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model, and no others that lie beside them: one, or the shards that its index names.

    Raises:
        UserError: there are none, only pickles, or a shard is missing.
    """
    there = [path.name for path in directory.iterdir() if path.is_file()]
    return [directory / name for name in weight_names(directory, there)]


def kept_files(directory: Path) -> list[Path]:
    """What of a model's directory is copied: its configuration, tokenizer and weights.

    Raises:
        UserError: as :func:`weight_files`.
    """
    beside = [path for path in directory.iterdir() if path.is_file() and path.suffix in KEPT]
    return sorted([*beside, *weight_files(directory)])


def weight_names(directory: Path, there: Collection[str]) -> list[str]:
    """Which of the files that are there hold the weights, as ``transformers`` chooses them.

    Args:
        directory: where the index lies, if there is one.

    Raises:
        UserError: none, only pickles, or a shard is missing.
    """
    if SINGLE in there:
        return [SINGLE]
    if INDEX in there:
        index = read_json(directory / INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{directory / INDEX}: names no weights files (weight_map); fetch the model again")
        shards = sorted(set(places.values()))
        for shard in shards:
            if shard not in there:  # nor one in another directory
                raise UserError(
                    f"{directory / shard}: no such weights file, but {INDEX} names it; fetch the model again"
                )
        return shards
    pickles = sorted(name for name in there if name.endswith((".bin", ".pt", ".pth")))
    if pickles:
        raise UserError(
            f"{directory}: its weights are pickles ({', '.join(pickles)}), which can run code when opened; convert "
            "them: load the model with transformers where you trust it and call save_pretrained, which writes "
            f"{SINGLE}"
        )
    raise UserError(f"{directory / SINGLE}: no such weights file; fetch the model again")


def check_model(directory: Path) -> None:
    """Make sure that a directory holds a sound language model and its tokenizer, as far as can be seen.

    Of a LLaMA or Qwen2 that is computed here, every weight is compared with the configuration. Any other model is
    loaded once by transformers.

    Raises:
        UserError: names the file, and what is wrong with it: quantised weights, sizes that differ from the
            configuration's, numbers that are not finite, a model that needs code of its own, no end of text.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory / name}: no such file; a model is a Hugging Face directory with {name}")
    if (directory / ADAPTER).is_file():
        raise UserError(
            f"{directory / ADAPTER}: an adapter lies beside the model, and transformers would load both; remove it, or "
            "merge it (merge_and_unload of PEFT) and save the model anew"
        )
    source = str(directory / "config.json")
    config = read_object(directory / "config.json")
    if config.get("quantization_config"):
        raise UserError(
            f"{source}: quantization_config: the weights are quantised; choose the model as it was before (float32, "
            "float16 or bfloat16)"
        )
    try:
        shape = shape_of(config, source)
    except KeyError as error:
        raise UserError(f"{source}: the key {error} is missing; fetch the model again") from None
    except NotNative:
        _check_numbers(directory)
        check_foreign(directory, str(config.get("model_type")), CONSTANTS)
        vocabulary = foreign_sizes(directory).get("vocab_size", math.inf)
    else:
        _check_weights(directory, shape)
        vocabulary = shape.vocabulary
    tokenizer = read_tokenizer(directory)
    if tokenizer.get_vocab_size() > vocabulary:
        raise UserError(
            f"{directory / 'tokenizer.json'}: {tokenizer.get_vocab_size()} tokens, but the model knows "
            f"{vocabulary}; take both from the same place"
        )
    end_of_text(directory, tokenizer)


def known_sizes(directory: Path) -> dict[str, Any]:
    """What a sound model's configuration may have under other names than those that are read here."""
    try:
        shape_of(read_object(directory / "config.json"))
    except NotNative:
        return foreign_sizes(directory)
    return {}


def _tensors(directory: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor of a model with its file and its name, one after another.

    Raises:
        UserError: a file is missing or corrupt.
    """
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    yield path, name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            _refuse_pointer(path, "weights")
            raise UserError(f"{path}: corrupt weights ({error}); fetch or copy the file again") from None


def _refuse_pointer(path: Path, what: str) -> None:
    """Raise a UserError if the file is what Git LFS leaves where it has not fetched the real one."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{path}: a Git LFS pointer instead of the {what}; run `git lfs pull` where the model was cloned"
            ) from None


def _check_weights(directory: Path, shape: Shape) -> None:
    """Each weight is there, has its size and nothing but finite numbers; and there are no others."""
    sizes = tensor_sizes(shape)
    missing = dict(sizes)
    head: Tensor | None = None
    embedding = torch.empty(0)
    for path, name, tensor in _tensors(directory):
        if name == WHOLE["head"] and shape.tied:
            head = tensor
        elif not name.endswith(CONSTANTS[0]):
            _check_weight(path, name, tensor, sizes.get(name))
        if name == WHOLE["embed"]:
            embedding = tensor
        missing.pop(name, None)
    for name, size in missing.items():
        raise UserError(f"{directory}: the weights do not fit config.json: {name}, {size}, is missing; {_AGAIN}")
    if head is not None and not torch.equal(head.float(), embedding.float()):
        raise UserError(
            f"{directory / 'config.json'}: tie_word_embeddings: read True, but the weights have an lm_head.weight of "
            "their own; write false"
        )


def _check_weight(path: Path, name: str, tensor: Tensor, size: tuple[int, ...] | None) -> None:
    _check_kind(path, name, tensor)
    if size is None:
        raise UserError(
            f"{path}: the weights do not fit config.json: a plain model has no {name} (it is of another kind, "
            f"quantised, or an adapter); {_AGAIN}"
        )
    if tensor.shape != size:
        raise UserError(
            f"{path}: the weights do not fit config.json: {name} has the shape {tuple(tensor.shape)}, not {size}; "
            f"{_AGAIN}"
        )
    _check_finite(path, name, tensor)


def _check_numbers(directory: Path) -> None:
    """Weights of any model: none is quantised, and all numbers are finite."""
    for path, name, tensor in _tensors(directory):
        if not name.endswith(CONSTANTS):
            _check_kind(path, name, tensor)
            _check_finite(path, name, tensor)


def _check_kind(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in PRECISIONS:
        raise UserError(
            f"{path}: {name} is quantised ({str(tensor.dtype).removeprefix('torch.')}); choose the model as it was "
            "before (float32, float16 or bfloat16)"
        )


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not tensor.float().isfinite().all():
        raise UserError(f"{path}: {name} holds numbers that are not finite (NaN or infinite); {_AGAIN}")


_AGAIN = "fetch the model again, or choose another one"


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json``.

    Raises:
        UserError: it is missing or corrupt.
    """
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        _refuse_pointer(path, "tokenizer")
        raise UserError(f"{path}: no readable tokenizer ({error}); fetch or copy the file again") from None
    # How it was called when it was saved; prompts have one length, and no rows are filled up.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def end_of_text(directory: Path, tokenizer: Tokenizer) -> int:
    """The id of the token that ends a story, as the tokenizer's own files name it.

    A model's configuration is no help: LLaMA's default, 2, is "!" in the published tokenizer.

    Raises:
        UserError: the files name none, several, or one that the tokenizer does not know.
    """
    remedy = 'write the token that ends a text, for example "eos_token": "[EOS]"'
    for path in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
        named: Any = read_object(path).get("eos_token") if path.is_file() else None
        token = named.get("content") if isinstance(named, dict) else named
        if named is None:
            continue
        if not isinstance(token, str) or (number := tokenizer.token_to_id(token)) is None:
            raise UserError(
                f"{path}: eos_token: read {f'{named!r}'[:100]}, which is no token of tokenizer.json; {remedy}"
            )
        return int(number)
    number = next((number for end in ENDS if (number := tokenizer.token_to_id(end)) is not None), None)
    if number is None:
        raise UserError(f"{directory / 'tokenizer_config.json'}: names no eos_token; {remedy}")
    return int(number)
