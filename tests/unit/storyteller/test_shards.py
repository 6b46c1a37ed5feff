"""Shards of told stories: found, checked, never lost, and only what is lacking is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rewardgrid.storyteller.shards import needed, read_told, shards_to_tell, tell_once, told_before
from rewardgrid.study.bases import StorytellerRecipe
from rewardgrid.study.contracts import TOLD, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.layout import Layout
from rewardgrid.study.teachers import GgufTeacher, teacher_hash

TEACHER = GgufTeacher(model="teacher.gguf", licence="MIT")


def stories(seed: int, numbers: range) -> pd.DataFrame:
    return pd.DataFrame(
        {"number": list(numbers), "seed": seed, "prompt": "Write.", "story": "He ran home.", "ended": True}
    )


def shard(directory: Path, seed: int, place: int, numbers: range) -> Path:
    path = directory / f"{seed}-{place:05d}.parquet"
    write_table(path, stories(seed, numbers), TOLD)
    return path


def recipe(**changes: Any) -> StorytellerRecipe:
    return StorytellerRecipe.model_validate({"teacher": TEACHER, "tokens": "1800", "shard": 4} | changes)


# --- reading -------------------------------------------------------------------------------------------


def test_shards_of_several_seeds_are_read_in_their_order(tmp_path: Path) -> None:
    for seed, place in ((2, 0), (1, 1), (1, 0)):
        shard(tmp_path, seed, place, range(3 * place, 3 * place + 3))
    told = read_told(told_before(tmp_path))
    assert list(zip(told["seed"], told["number"], strict=True)) == [
        *((1, number) for number in range(6)),
        *((2, number) for number in range(3)),
    ]


def test_shards_from_elsewhere_are_read(tmp_path: Path) -> None:
    stories(7, range(3)).to_parquet(tmp_path / "7-0.parquet")  # as pandas writes them by itself
    assert read_told([tmp_path / "7-0.parquet"])["story"].tolist() == ["He ran home."] * 3


def complaint(paths: list[Path]) -> str:
    """The one message, which tells nobody to delete a shard."""
    with pytest.raises(UserError) as caught:
        read_told(paths)
    assert "\n" not in str(caught.value)
    assert "delete" not in str(caught.value)
    return str(caught.value)


def test_a_story_that_is_told_twice_is_named_with_both_files(tmp_path: Path) -> None:
    one, other = shard(tmp_path, 1, 0, range(4)), shard(tmp_path, 1, 1, range(3, 7))
    assert complaint([one, other]).startswith(f"{other}: story 3 of seed 1 is in {one} too; keep one")
    twice = tmp_path / "2-00000.parquet"
    write_table(twice, pd.concat([stories(2, range(2)), stories(2, range(1))]), TOLD)
    assert complaint([twice]).startswith(f"{twice}: holds a story twice")


def test_a_shard_of_two_seeds_or_another_than_its_name_says_is_refused(tmp_path: Path) -> None:
    mixed = tmp_path / "1-00000.parquet"
    write_table(mixed, pd.concat([stories(1, range(2)), stories(3, range(2))]), TOLD)
    assert complaint([mixed]).startswith(f"{mixed}: holds stories of seed 3, but its name says 1; a shard is of one")
    renamed = shard(tmp_path, 2, 0, range(2)).rename(tmp_path / "4-00000.parquet")
    assert "holds stories of seed 2, but its name says 4" in complaint([renamed])


def test_a_shard_with_another_name_is_refused(tmp_path: Path) -> None:
    path = shard(tmp_path, 1, 0, range(2)).rename(tmp_path / "stories.parquet")
    assert complaint([path]).startswith(f"{path}: shards are named SEED-SHARD.parquet")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop(columns="ended"), r"columns differ from this version's (ended)"),
        (lambda frame: frame.assign(mood="sad"), r"columns differ from this version's (mood)"),
        (lambda frame: frame[["seed", "number", "prompt", "story", "ended"]], r"columns .* (in another order)"),
        (lambda frame: frame.assign(number=frame["number"].astype(float)), "the column number has the type double"),
        (lambda frame: frame.assign(ended="yes"), "the column ended has the type string, not bool"),
    ],
)
def test_a_shard_with_other_columns_or_types_is_refused(change: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "1-00000.parquet"
    change(stories(1, range(3))).to_parquet(path, index=False)
    said = complaint([path])
    assert said.startswith(f"{path}: ")
    assert all(part in said for part in words.split(" .* "))
    assert said.endswith("fetch it again, or take it out of the directory")


@pytest.mark.parametrize("size", [0, 3, 300, -1])
def test_a_torn_shard_is_refused(size: int, tmp_path: Path) -> None:
    path = shard(tmp_path, 1, 0, range(50))
    path.write_bytes(path.read_bytes()[:size])
    assert complaint([path]).startswith(f"{path}: cannot read")


def test_no_stories_at_all_are_told() -> None:
    assert "there are no stories" in complaint([])


# --- what is told --------------------------------------------------------------------------------------


def test_so_many_shards_are_told_as_the_tokens_need() -> None:
    assert recipe().stories == 10
    assert shards_to_tell(recipe()) == [0, 1, 2]
    assert shards_to_tell(recipe(tokens="18k", shard=50)) == [0, 1]
    assert len(shards_to_tell(recipe(tokens="3M", shard=224))) == 75


def test_what_was_told_before_is_not_told_again(tmp_path: Path) -> None:
    shard(tmp_path, 5, 0, range(6))
    assert shards_to_tell(recipe(told=str(tmp_path))) == [0]
    # Under the recipe's own seed, stories 0 to 5 are there: of shards of four, the first two hold one of them.
    assert shards_to_tell(recipe(told=str(tmp_path), seed=5)) == [2]
    shard(tmp_path, 5, 1, range(6, 10))
    assert shards_to_tell(recipe(told=str(tmp_path))) == []
    assert shards_to_tell(recipe(told=str(tmp_path), teacher=None)) == []


def test_every_shard_of_a_recipe_has_its_place(tmp_path: Path) -> None:
    before = shard(tmp_path, 5, 0, range(6))
    wanted = recipe(told=str(tmp_path), seed=3)
    told = tmp_path / "results/storyteller/told" / f"{teacher_hash(TEACHER)}-4"
    assert needed(wanted, Layout(tmp_path / "results")) == [before, told / "3-00000.parquet"]


def test_lacking_stories_without_a_teacher_are_told(tmp_path: Path) -> None:
    shard(tmp_path, 5, 0, range(6))
    words = "tokens: read 1800, which takes 10 stories, but `told` holds 6 and no teacher is named"
    with pytest.raises(UserError, match=words):
        shards_to_tell(recipe(told=str(tmp_path), teacher=None))
    with pytest.raises(UserError, match=r"told: read '.*nowhere', but there is no such directory"):
        shards_to_tell(recipe(told=str(tmp_path / "nowhere")))


# --- telling once --------------------------------------------------------------------------------------


class Teller:
    def __init__(self, seed: int = 1) -> None:
        self.calls, self.seed = 0, seed

    def __call__(self) -> pd.DataFrame:
        self.calls += 1
        return stories(self.seed, range(3))


def test_a_shard_that_was_removed_is_put_back_without_telling_it_again(tmp_path: Path) -> None:
    tell, out = Teller(), tmp_path / "told/1-00000.parquet"
    assert tell_once(out, tell)
    content = out.read_bytes()
    out.unlink()
    assert not tell_once(out, tell)
    assert (out.read_bytes(), tell.calls) == (content, 1)
    assert not tell_once(out, tell)  # and one that is there is left as it is
    assert (out.read_bytes(), tell.calls) == (content, 1)
    assert [path.name for path in sorted(out.parent.iterdir())] == ["1-00000.parquet", "kept"]


def test_a_kept_shard_that_is_torn_is_told_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell, out = Teller(), tmp_path / "1-00000.parquet"
    tell_once(out, tell)
    kept = tmp_path / "kept/1-00000.parquet"
    kept.unlink()
    kept.write_bytes(b"PAR1")
    out.unlink()
    assert tell_once(out, tell)
    assert "warning: " in capsys.readouterr().err
    assert len(read_told([out])) == 3


def test_telling_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> pd.DataFrame:
        raise UserError("no teacher")

    with pytest.raises(UserError, match="no teacher"):
        tell_once(tmp_path / "1-00000.parquet", fail)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
