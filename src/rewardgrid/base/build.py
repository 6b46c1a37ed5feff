"""Building a base: model, tokenizer, prompts and where all of it came from, in one directory."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewardgrid.base.corpus import Stories
from rewardgrid.base.decoding import rejoins
from rewardgrid.base.hub import fetch_hub
from rewardgrid.base.local import copy_local
from rewardgrid.base.model_files import check_model, end_of_text, known_sizes, read_tokenizer
from rewardgrid.base.packaged import copy_packaged
from rewardgrid.base.prompts import EVAL_ORDER, TRAIN_ORDER, cut_prompts, read_prompts, write_prompts
from rewardgrid.lm.hf.config import context_of
from rewardgrid.study.bases import HubBase, PackagedBase, Prompted, Recipe, recipe_hash
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, read_object, sha256, write_json
from rewardgrid.study.shipped import shipped

PROVENANCE = "provenance.json"
LIBRARIES = ("torch", "tokenizers", "safetensors", "numpy", "pyarrow", "huggingface_hub")


def build_base(name: str, recipe: Recipe, out: Path) -> None:
    """Make a base and put it at ``out``, whole or not at all.

    Writes ``model/`` (a Hugging Face directory with its tokenizer), ``train_prompts.parquet``,
    ``eval_prompts.parquet`` (schema: ``study.contracts.PROMPTS``), and ``provenance.json``: name, kind, recipe and
    its hash, the SHA-256 of every file, origin and figures (commits, held-out loss, counts), versions, seconds.

    Raises:
        UserError: the recipe cannot be followed: no network, wrong revision, damaged or missing files, no sound
            model, no prompts, a full disk.
    """
    started = time.monotonic()
    with staged(out) as directory:
        if isinstance(recipe, PackagedBase):
            facts = copy_packaged(recipe, directory)
            check_model(shipped(recipe.path) / "model")
            _check_prompts(name, recipe, directory)
        else:
            model = directory / "model"
            model.mkdir()
            stories = fetch_hub(recipe, model) if isinstance(recipe, HubBase) else copy_local(recipe, model)
            facts = add_prompts(name, recipe, stories, directory)
        seal(name, recipe, facts, directory, started)


def add_prompts(name: str, recipe: Prompted, stories: Stories, directory: Path) -> dict[str, Any]:
    """Check the model of a new base and cut its prompts; returns the facts so far.

    Raises:
        UserError: the model is not sound, or there are no prompts that fit it.
    """
    model = directory / "model"
    _settle(model)
    check_model(model)
    tokenizer = read_tokenizer(model)
    rejoin = rejoins(model, tokenizer)
    context = context_of(read_json(model / "config.json"))
    if recipe.prompt_tokens >= context:
        raise UserError(
            f"{name}: prompt_tokens: read {recipe.prompt_tokens}; write less than the model's context of {context:g}"
        )
    counts = {}
    for split, source, most, order in (
        ("train", stories.train, recipe.train_prompts, TRAIN_ORDER),
        ("eval", stories.evaluation, recipe.eval_prompts, EVAL_ORDER),
    ):
        prompts = cut_prompts(source, tokenizer, recipe.prompt_tokens, most, order, rejoin)
        if not len(prompts):
            raise UserError(
                f"{name}: the {split} split has no story of {recipe.prompt_tokens} tokens or more, so there "
                "are no prompts; name another split or file, or write a smaller prompt_tokens"
            )
        write_prompts(directory / f"{split}_prompts.parquet", prompts)
        counts[f"{split}_prompts"] = len(prompts)
    return stories.facts | counts


def seal(name: str, recipe: Prompted, facts: dict[str, Any], directory: Path, started: float) -> None:
    """Write the provenance of a base, with the hash of every file that lies in its directory."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != PROVENANCE]
    record = recipe.model_dump(mode="json")
    write_json(
        directory / PROVENANCE,
        {
            "name": name,
            "kind": record["kind"],
            "recipe": record,
            "recipe_hash": recipe_hash(recipe),
            "files": {str(path.relative_to(directory)): sha256(path) for path in files},
            "facts": facts,
            "versions": {"python": platform.python_version(), **_versions()},
            "seconds": round(time.monotonic() - started, 1),
        },
    )


def _check_prompts(name: str, recipe: PackagedBase, directory: Path) -> None:
    for split in ("train", "eval"):
        length = read_prompts(directory / f"{split}_prompts.parquet").ids.shape[1]
        if length != recipe.prompt_tokens:
            raise UserError(
                f"{name}: prompt_tokens: read {recipe.prompt_tokens}; write {length}, the length of the prompts in "
                f"{recipe.path}, or choose a base whose prompts are cut anew"
            )


def _settle(model: Path) -> None:
    """Let every reader of the directory end and pad texts with the tokenizer's own end token, and find the sizes.

    A model that is not computed here may have them under other names.
    """
    tokenizer = read_tokenizer(model)
    end = end_of_text(model, tokenizer)
    ends = {"eos_token_id": end, "pad_token_id": end}
    for name, known in (("config.json", known_sizes(model)), ("generation_config.json", {})):
        path = model / name
        write_json(path, known | (read_object(path) if path.is_file() else {}) | ends)
    path = model / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    if settings.get("eos_token") is None:
        write_json(path, settings | {"eos_token": tokenizer.id_to_token(end)})


def _versions() -> dict[str, str]:
    versions = {}
    for library in ("rewardgrid", *LIBRARIES):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary directory beside ``out`` whose content takes its place when the block ends without an error.

    What else lies at ``out`` (the evaluation of the base) stays. The provenance comes last: without it, nothing
    reads the base.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    except OSError as error:
        raise UserError(f"{out}: cannot write: {error.strerror}; choose another results directory") from error
    try:
        yield directory
        (out / PROVENANCE).unlink(missing_ok=True)
        for path in sorted(directory.iterdir(), key=lambda path: path.name == PROVENANCE):
            target = out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.rename(target)
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(
            f"{out}: cannot write: {error.strerror}; free some space, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
