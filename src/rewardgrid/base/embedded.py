"""The embedded base: stories from a grammar, a tokenizer learnt from them, a small LLaMA pretrained on them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from rewardgrid.base.corpus import Stories
from rewardgrid.base.model_files import end_of_text
from rewardgrid.base.pretrain import first_weights, next_token_loss, rows_of, train_weights
from rewardgrid.base.stories import story
from rewardgrid.base.tokenizer import save_tokenizer, token_ids, train_tokenizer
from rewardgrid.lm.model import Shape
from rewardgrid.study.bases import EmbeddedBase, Pretrained
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_json

TOKENIZER_STORIES = 5_000  # that the vocabulary is learnt from
HELD_OUT = 1 << 31  # number of the first story that neither tokenizer nor model has met
HELD_OUT_ROWS = 256  # sequences that the held-out loss is measured on
PATIENCE = 20  # stories read per prompt wanted, before too few distinct prompts are accepted


def make_embedded(recipe: EmbeddedBase, directory: Path) -> Stories:
    """Write the tokenizer and the pretrained model to a Hugging Face directory, and give the stories.

    Raises:
        UserError: the vocabulary is too small for letters and punctuation.
    """
    train = list(_stories(recipe, 0, recipe.steps * recipe.batch))
    tokenizer = train_tokenizer(train[:TOKENIZER_STORIES], recipe.vocabulary)
    save_tokenizer(tokenizer, directory, recipe.context)

    config = config_of(recipe, end_of_text(directory, tokenizer))
    write_json(directory / "config.json", config)
    shape = Shape.from_config(config)
    weights = first_weights(shape, recipe.seed)
    rows = rows_of(token_ids(tokenizer, train), recipe.length + 1)
    if not len(rows):
        raise UserError(f"steps: read {recipe.steps} of {recipe.batch} sequences; write more: they fill no sequence")
    train_weights(shape, weights, rows, recipe.steps, recipe.batch)
    (directory / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))

    unseen = _stories(recipe, HELD_OUT, HELD_OUT + 3 * HELD_OUT_ROWS)
    held_out = rows_of(token_ids(tokenizer, unseen), recipe.length + 1)[:HELD_OUT_ROWS]
    with torch.no_grad():
        losses = [next_token_loss(shape, weights, part).item() for part in np.array_split(held_out, 8)]
    return Stories(
        train=chain(train, _stories(recipe, len(train), PATIENCE * recipe.train_prompts)),
        evaluation=_stories(recipe, HELD_OUT, HELD_OUT + PATIENCE * recipe.eval_prompts),
        facts={
            "held_out_loss": round(float(np.mean(losses)), 4),
            "parameters": sum(weight.numel() for weight in weights.values()),
        },
    )


def _stories(recipe: EmbeddedBase, first: int, end: int) -> Iterator[str]:
    return (story(recipe.seed, index) for index in range(first, end))


def config_of(recipe: Pretrained, eos: int) -> dict[str, Any]:
    """The Hugging Face configuration of the model: LLaMA with tied embeddings, no BOS, padded with EOS."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": recipe.layers,
        "hidden_size": recipe.hidden,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.hidden // recipe.heads,
        "intermediate_size": recipe.mlp_width,
        "max_position_embeddings": recipe.context,
        "vocab_size": recipe.vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
