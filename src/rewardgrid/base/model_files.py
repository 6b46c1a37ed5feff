"""The files of a model's directory: which there must be, and whether they are sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from rewardgrid.lm.model import Shape
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json

INDEX = "model.safetensors.index.json"
KEPT = (".safetensors", ".json", ".txt", ".jinja")  # never code (a chat template is for a sandbox), never pickles
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The size of every weight of a model by its Hugging Face name, in a fixed order."""
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, width = shape.hidden, shape.mlp_width
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        if shape.qkv_bias:
            sizes |= {
                prefix + "self_attn.q_proj.bias": (q,),
                prefix + "self_attn.k_proj.bias": (k,),
                prefix + "self_attn.v_proj.bias": (k,),
            }
        sizes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (q, hidden),
            prefix + "self_attn.k_proj.weight": (k, hidden),
            prefix + "self_attn.v_proj.weight": (k, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, q),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (width, hidden),
            prefix + "mlp.up_proj.weight": (width, hidden),
            prefix + "mlp.down_proj.weight": (hidden, width),
        }
    sizes["model.norm.weight"] = (hidden,)
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocabulary, hidden)
    return sizes


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model: one, or the shards that its index names.

    Raises:
        UserError: there are none, only pickles, or a shard is missing.
    """
    single, index = directory / "model.safetensors", directory / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        shards = sorted({directory / name for name in read_json(index).get("weight_map", {}).values()})
        for shard in shards:
            if not shard.is_file():
                raise UserError(f"{shard}: no such weights file, but {INDEX} names it; fetch the model again")
        if shards:
            return shards
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickles:
        raise UserError(
            f"{directory}: its weights are pickles ({', '.join(pickles)}), which can run code when opened; convert "
            "them: load the model with transformers where you trust it and call save_pretrained, which writes "
            "model.safetensors"
        )
    raise UserError(f"{single}: no such weights file; fetch the model again")


def check_model(directory: Path) -> None:
    """Make sure that a directory holds a plain LLaMA or Qwen2 with sound weights and a tokenizer.

    Raises:
        UserError: names the file, and what is wrong with it.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory / name}: no such file; a model is a Hugging Face directory with {name}")
    config = read_json(directory / "config.json")
    try:
        shape = Shape.from_config(config, str(directory / "config.json"))
    except KeyError as error:
        raise UserError(f"{directory / 'config.json'}: the key {error} is missing; fetch the model again") from None
    fitting = ARCHITECTURES[config["model_type"]]
    named = config.get("architectures") or [fitting]
    if named != [fitting]:
        raise UserError(
            f"{directory / 'config.json'}: architectures: read {named!r}; choose a model that is a {fitting}"
        )
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="np") as tensors:
                found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: corrupt weights ({error}); fetch or copy the file again") from None
    for name, size in tensor_sizes(shape).items():
        if found.get(name) != size:
            raise UserError(
                f"{directory}: the weights do not fit config.json: {name} has the shape {found.get(name)}, "
                f"not {size}; fetch the model again"
            )
    tokenizer = read_tokenizer(directory)
    if tokenizer.get_vocab_size() > shape.vocabulary:
        raise UserError(
            f"{directory / 'tokenizer.json'}: {tokenizer.get_vocab_size()} tokens, but the model knows "
            f"{shape.vocabulary}; take both from the same place"
        )


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json``.

    Raises:
        UserError: it is missing or corrupt.
    """
    path = directory / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: no readable tokenizer ({error}); fetch or copy the file again") from None


def end_of_text(directory: Path, tokenizer: Tokenizer) -> int:
    """The id of the token that ends a story, as the tokenizer's own files name it.

    A model's configuration is no help: LLaMA's default, 2, is "!" in the published tokenizer.

    Raises:
        UserError: the files name none.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = directory / name
        token: Any = read_json(path).get("eos_token") if path.is_file() else None
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and (number := tokenizer.token_to_id(token)) is not None:
            return int(number)
    number = tokenizer.token_to_id("[EOS]")
    if number is None:
        raise UserError(
            f"{directory / 'tokenizer_config.json'}: names no eos_token; write the token that ends a text, "
            'for example "eos_token": "[EOS]"'
        )
    return int(number)
