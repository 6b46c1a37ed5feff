"""Shards of told stories: files of the schema ``study.contracts.TOLD``, one seed each, named ``SEED-SHARD.parquet``.

They are worth hours of a teacher's time, so nothing here deletes or overwrites one.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from rewardgrid.study.bases import StorytellerRecipe
from rewardgrid.study.contracts import TOLD, read_table, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import atomic_write
from rewardgrid.study.layout import Layout
from rewardgrid.study.shipped import shipped
from rewardgrid.study.teachers import teacher_hash

NAME = re.compile(r"([0-9]+)-[0-9]+\.parquet")


def told_before(directory: Path | str) -> list[Path]:
    """The shards of a directory, in the order of their names.

    Raises:
        UserError: there is no such directory.
    """
    directory = shipped(directory)
    if not directory.is_dir():
        raise UserError(
            f"told: read {str(directory)!r}, but there is no such directory; write the path of one, or null"
        )
    return sorted(directory.glob("*.parquet"))


def read_told(paths: Sequence[Path]) -> pd.DataFrame:
    """All stories of these shards, in their order (schema: ``study.contracts.TOLD``).

    Raises:
        UserError: a shard has another name, is torn, has other columns or types, holds another seed than its name
            says, or a story that an earlier one holds too; or there are no stories at all.
    """
    frames = []
    owners: dict[tuple[int, int], Path] = {}
    for path in paths:
        named = NAME.fullmatch(path.name)
        if not named:
            raise UserError(f"{path}: shards are named SEED-SHARD.parquet, such as 2-00017.parquet; rename the file")
        frame, seed = read_table(path, TOLD, remedy="fetch it again, or take it out of the directory"), int(named[1])
        if odd := sorted(set(frame["seed"]) - {seed}):
            raise UserError(
                f"{path}: holds stories of seed {', '.join(map(str, odd))}, but its name says {seed}; a shard is of "
                "one seed: cut it in two, each with its name"
            )
        for number in frame["number"]:
            owner = owners.setdefault((seed, number), path)
            if owner is not path:
                raise UserError(f"{path}: story {number} of seed {seed} is in {owner} too; keep one of the two files")
        if frame["number"].duplicated().any():
            raise UserError(f"{path}: holds a story twice; fetch it again, or take it out of the directory")
        frames.append(frame)
    if not owners:
        raise UserError("there are no stories: the directory `told` is empty, and no teacher is to tell any")
    return pd.concat(frames, ignore_index=True)


def kept(shard: Path) -> Path:
    """Where a shard that was told lies too, undeclared to Snakemake, which cannot remove it therefore."""
    return shard.parent / "kept" / shard.name


def tell_once(out: Path, tell: Callable[[], pd.DataFrame]) -> bool:
    """Write a shard, if it has not been written before; returns whether it was told now.

    Snakemake removes the outputs of a rule before it starts a job and after a job has failed. What was removed is put
    back from :func:`kept`.

    Raises:
        UserError: a file cannot be written; or as ``tell``.
    """
    before = kept(out)
    untold = not before.is_file()
    if not untold:
        try:
            read_told([before])
        except UserError as error:
            print(f"warning: {error}; telling it again", file=sys.stderr)
            untold = True
    if untold:
        write_table(before, tell(), TOLD)
    with atomic_write(out) as temporary:
        shutil.copyfile(before, temporary)
    return untold


def needed(recipe: StorytellerRecipe, layout: Layout) -> list[Path]:
    """Every shard that the recipe takes: those told before, and those that its teacher tells, there or not.

    Raises:
        UserError: as :func:`shards_to_tell`.
    """
    paths = told_before(recipe.told) if recipe.told else []
    for shard in shards_to_tell(recipe):
        assert recipe.teacher is not None
        directory = layout.told(teacher_hash(recipe.teacher), recipe.shard)
        paths.append(directory / f"{recipe.seed}-{shard:05d}.parquet")
    return paths


def shards_to_tell(recipe: StorytellerRecipe) -> list[int]:
    """The shards that the recipe's teacher tells: as many as make up for what `told` lacks of the tokens.

    Shard n of S stories has the requests n*S to (n+1)*S - 1. Those with a request that is told there, under the
    recipe's seed, are passed over.

    Raises:
        UserError: stories are lacking and there is no teacher; or as :func:`read_told`.
    """
    paths = told_before(recipe.told) if recipe.told else []
    told = read_told(paths) if paths else pd.DataFrame({"seed": [], "number": []})
    lacking = recipe.stories - len(told)
    if lacking <= 0:
        return []
    if recipe.teacher is None:
        raise UserError(
            f"storyteller.tokens: read {recipe.tokens}, which takes {recipe.stories} stories, but `told` holds "
            f"{len(told)} and no teacher is named; name one, or write a smaller number"
        )
    taken = set(told["number"][told["seed"] == recipe.seed] // recipe.shard)
    free = (shard for shard in itertools.count() if shard not in taken)
    return list(itertools.islice(free, -(-lacking // recipe.shard)))
