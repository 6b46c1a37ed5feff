"""Prompts cut from stories, worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewardgrid.base.corpus import read_stories
from rewardgrid.base.prompts import cut_prompts, read_prompts, write_prompts
from rewardgrid.base.tokenizer import train_tokenizer
from rewardgrid.study.contracts import PROMPTS
from rewardgrid.study.errors import UserError

TOKENIZER = train_tokenizer(["the fox ran home and the owl sang a song to him"], 80)


def cut(stories: list[str], tokens: int = 3, most: int = 10, order: int = 0) -> list[str]:
    return cut_prompts(stories, TOKENIZER, tokens, most, order).text


def test_a_prompt_is_the_first_tokens_without_the_end_token() -> None:
    prompts = cut_prompts(["The fox ran home."], TOKENIZER, 3, 10, 0)
    assert prompts.text == ["the fox ran"]
    assert prompts.ids.tolist() == [TOKENIZER.encode("the fox ran", add_special_tokens=False).ids]
    assert prompts.ids.dtype == np.int64


def test_a_story_of_just_enough_tokens_counts_and_a_shorter_one_does_not() -> None:
    assert cut(["The fox.", "The fox", "Owl"]) == ["the fox."]


def test_stories_with_the_same_beginning_give_one_prompt() -> None:
    assert cut(["The fox ran home.", "the FOX ran to him", "The owl sang."]) in (
        ["the fox ran", "the owl sang"],
        ["the owl sang", "the fox ran"],
    )


def test_reading_stops_at_the_number_wanted() -> None:
    def stories() -> object:
        yield from [f"the fox {word} home" for word in ("ran", "sang", "and", "a")] * 200
        raise AssertionError("read on")

    found = cut_prompts(stories(), TOKENIZER, 3, 3, 0)  # type: ignore[arg-type]
    assert sorted(found.text) == ["the fox and", "the fox ran", "the fox sang"]


def test_the_seed_decides_the_order_and_nothing_else() -> None:
    stories = [f"{a} {b} home" for a in ("the", "a", "fox", "owl") for b in ("ran", "sang", "song", "to", "him")]
    assert cut(stories, order=99, most=20) == cut(stories, order=99, most=20)
    assert cut(stories, order=99, most=20) != cut(stories, order=0, most=20)
    assert sorted(cut(stories, order=99, most=20)) == sorted(cut(stories, order=0, most=20))


def test_prompts_come_back_from_their_table(tmp_path: Path) -> None:
    prompts = cut_prompts(["The fox ran home.", "The owl sang."], TOKENIZER, 3, 10, 0)
    write_prompts(tmp_path / "p.parquet", prompts)
    again = read_prompts(tmp_path / "p.parquet")
    assert again.text == prompts.text
    assert again.ids.tolist() == prompts.ids.tolist()
    schema = pq.read_schema(tmp_path / "p.parquet")
    assert schema.names == ["text", "ids"]
    assert schema.field("ids").type.value_type == pa.int32()


def test_an_empty_table_of_prompts_is_refused(tmp_path: Path) -> None:
    pq.write_table(PROMPTS.empty_table(), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: no prompts"):
        read_prompts(tmp_path / "p.parquet")


def test_a_text_file_has_a_story_a_line(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("One.\n\n  Two. \nThree.", encoding="utf-8")
    assert list(read_stories(tmp_path / "s.txt", "story")) == ["One.", "Two.", "Three."]


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["One."], "topic": ["x"]}), tmp_path / "s.parquet")
    assert list(read_stories(tmp_path / "s.parquet", "text")) == ["One."]
    with pytest.raises(UserError, match="story_column: read 'txt', but the columns are text, topic; did you mean"):
        list(read_stories(tmp_path / "s.parquet", "txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", b"x", "write a .txt"),
        ("s.txt", b"\xff\xfe", "no UTF-8 text"),
        ("s.parquet", b"PAR1 no parquet", "corrupt parquet file"),
        ("missing.txt", None, "no such file of stories"),
    ],
)
def test_a_file_that_holds_no_stories_gives_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_stories(tmp_path / name, "story"))
