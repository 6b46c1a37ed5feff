"""The local base: a Hugging Face directory on this machine and a file of stories."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from rewardgrid.base.corpus import Stories, read_stories
from rewardgrid.base.model_files import check_model, kept_files
from rewardgrid.study.bases import LocalBase
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import sha256

HELD_OUT_EVERY = 10  # without a file of their own, the evaluation stories are every tenth


def copy_local(recipe: LocalBase, directory: Path) -> Stories:
    """Check the model, copy it, and give the stories.

    Raises:
        UserError: the directory is missing or holds no sound model with safetensors weights, or
            there is no such file of stories.
    """
    source = Path(recipe.model)
    if not source.is_dir():
        raise UserError(f"{recipe.model}: no such directory of a model; write the path of one")
    check_model(source)
    copied = kept_files(source)
    for path in copied:
        shutil.copyfile(path, directory / path.name)
    files = [Path(name) for name in (recipe.stories, recipe.eval_stories) if name]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file of stories; write the path of a .txt or .parquet file")
    own = recipe.eval_stories is not None
    return Stories(
        train=_part(recipe, held_out=False) if not own else read_stories(files[0], recipe.story_column),
        evaluation=_part(recipe, held_out=True) if not own else read_stories(files[1], recipe.story_column),
        facts={"source": {str(path): sha256(path) for path in [*copied, *files]}, "license": _licence(source)},
    )


def _licence(model: Path) -> str | None:
    """What the model's card names, if it has one."""
    card = model / "README.md"
    try:
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL) if card.is_file() else None
        values = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, LookupError, AttributeError, RecursionError, yaml.YAMLError):
        return None  # a card decides nothing
    found = values.get("license") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def _part(recipe: LocalBase, held_out: bool) -> Iterator[str]:
    for number, story in enumerate(read_stories(Path(recipe.stories), recipe.story_column), start=1):
        if (number % HELD_OUT_EVERY == 0) == held_out:
            yield story
