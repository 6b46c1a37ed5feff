"""From sifted stories to a base: its tokenizer, its pretraining, its prompts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

from rewardgrid.base.build import add_prompts, seal, staged
from rewardgrid.base.corpus import Stories
from rewardgrid.base.model_files import end_of_text
from rewardgrid.base.pretrain import first_weights, rows_of, shape_of, train_weights
from rewardgrid.base.tokenizer import UNK, save_tokenizer, token_ids, train_tokenizer
from rewardgrid.lm.draws import generator
from rewardgrid.lm.hf.config import config_of
from rewardgrid.lm.hf.layout import AFTER, MODULES, NORMS, tensor_name
from rewardgrid.lm.shape import Shape
from rewardgrid.study.bases import Pretrained
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_json

HELD_OUT_EVERY = 15  # every fifteenth request is the evaluation's, as is every story that was held back;
HELD_OUT_STORIES = 600  # where there would be fewer than so many, more of them are: an evaluation needs 256 prompts


def make_storyteller(name: str, recipe: Pretrained, sifted: pd.DataFrame, facts: Mapping[str, Any], out: Path) -> None:
    """Make the base and put it at ``out`` (as :func:`rewardgrid.base.build.build_base` does).

    Args:
        name: of the base.
        sifted: schema ``study.contracts.SIFTED``.
        facts: what is known of the stories' origin.

    Raises:
        UserError: too few stories are left for one step of pretraining.
    """
    started = time.monotonic()
    every = max(2, min(HELD_OUT_EVERY, len(sifted) // HELD_OUT_STORIES))
    held_out = sifted["number"] % every == every - 1
    kept = sifted["held"] == ""
    with staged(out) as directory:
        model = directory / "model"
        model.mkdir()
        tokenizer, made = _pretrain(recipe, sifted[kept & ~held_out], sifted[kept & held_out], model)
        found = {
            "told": len(sifted),
            "kept": int(kept.sum()),
            "sifted": {what: dict(Counter(filter(None, sifted[what])).most_common()) for what in ("cut", "held")},
        }
        begun: set[tuple[str, ...]] = set()
        source = Stories(  # each is read once, in this order
            train=_beginnings(sifted["story"][kept & ~held_out], tokenizer, recipe.prompt_tokens, begun),
            evaluation=_beginnings(sifted["story"][~kept | held_out], tokenizer, recipe.prompt_tokens, begun),
            facts={**facts, **found, **made},
        )
        seal(name, recipe, add_prompts(name, recipe, source, directory), directory, started)


def _pretrain(
    recipe: Pretrained, train: pd.DataFrame, held_out: pd.DataFrame, directory: Path
) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = train_tokenizer(train["story"], recipe.vocabulary)
    save_tokenizer(tokenizer, directory, recipe.context)
    shape = shape_of(recipe)
    write_json(directory / "config.json", config_of(shape, end_of_text(directory, tokenizer)))

    def encoded(stories: pd.DataFrame) -> list[list[int]]:
        """Token ids, with the closing [EOS] of those that ended."""
        ids = token_ids(tokenizer, stories["story"])
        return [story if ended else story[:-1] for story, ended in zip(ids, stories["ended"], strict=True)]

    texts = encoded(train)
    rows, unseen = rows_of(texts, recipe.length), rows_of(encoded(held_out), recipe.length)
    steps = len(rows) // recipe.batch * recipe.epochs
    if not steps:
        raise UserError(
            f"batch: read {recipe.batch}, but {len(train)} stories are left after sifting: fewer than a batch; "
            "let more be told (`tokens`), or write a smaller number"
        )
    orders = [generator(recipe.seed, "pretraining", epoch).permutation(len(rows)) for epoch in range(recipe.epochs)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = {name: weight.to(device) for name, weight in first_weights(shape, recipe.seed).items()}
    losses = train_weights(shape, weights, [rows[order] for order in orders], recipe.batch, recipe.weight_decay, unseen)
    weights = rescaled(shape, weights, recipe.gain)
    (directory / "model.safetensors").write_bytes(
        save({name: weight.cpu() for name, weight in weights.items()}, metadata={"format": "pt"})
    )
    return tokenizer, {
        "train_stories": len(train),
        "train_tokens": sum(map(len, texts)),
        "pretraining_steps": steps,
        "held_out_stories": len(held_out),
        "held_out_losses": [round(loss, 4) for loss in losses],
        "parameters": sum(weight.numel() for weight in weights.values()),
    }


def rescaled(shape: Shape, weights: Mapping[str, Tensor], gain: float) -> dict[str, Tensor]:
    """The same function with norm gains ``gain`` times larger and the matrices after them as much smaller.

    An optimizer of the Adam family moves every weight by about its learning rate. Behind larger gains, the same
    movement of a matrix changes more: this sets how far a learning rate reaches.
    """
    scaled = dict(weights)
    for layer in range(shape.layers):
        for norm, kind in AFTER.items():
            name = tensor_name(layer, NORMS[norm])
            scaled[name] = weights[name] * gain
            for module in MODULES[kind]:
                name = tensor_name(layer, module)
                scaled[name] = weights[name] / gain
    return scaled


def _beginnings(stories: pd.Series, tokenizer: Tokenizer, length: int, begun: set[tuple[str, ...]]) -> Iterator[str]:
    """The stories whose first tokens are whole words that the tokenizer knows, and with which none has begun yet."""
    for story in stories:
        begin = tokenizer.encode(story, add_special_tokens=False).tokens[: length + 1]  # the last word whole too
        whole = not any(token.startswith("##") or token == UNK for token in begin)
        if whole and tuple(begin[:length]) not in begun:
            begun.add(tuple(begin[:length]))
            yield story
