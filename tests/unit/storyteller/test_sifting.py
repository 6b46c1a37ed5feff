"""What each sieve holds back, and what passes them all."""

from __future__ import annotations

import pandas as pd
import pytest

from rewardgrid.storyteller.sifting import RARE, sift, tidy

GOOD = (
    "Near the river, a small dog found a red ball. He took it home with him that night. In the morning, "
    "the ball was gone. His sister had hidden it under the bed. They played with it all day long."
)


def table(*stories: str, ended: bool = True) -> pd.DataFrame:
    """Stories as they are told, with enough others that none of their words is rare."""
    words = {word for story in stories for word in story.lower().replace(".", "").replace(",", "").split()}
    others = [" ".join(sorted(words)[number:]) for number in range(RARE)] * 2  # words without an end: no stories
    rows = [*stories, *others]
    return pd.DataFrame({"number": range(len(rows)), "seed": 0, "prompt": "", "story": rows, "ended": ended})


def held(story: str, ended: bool = True) -> str:
    """What holds a story back that stands beside copies of its words."""
    variants = [story + " " + extra for extra in ("They ran to the river.", "He ran home.", "They ran home.")]
    frame = table(story, *variants)
    frame.loc[0, "ended"] = ended
    return str(sift(frame)["held"].iloc[0])


def test_a_good_story_stays() -> None:
    assert held(GOOD) == ""


@pytest.mark.parametrize(
    ("story", "sieve"),
    [
        (GOOD + ' He said, "no".', "other characters than plain English ones"),
        (GOOD.replace("red", "r\u00e9d"), "other characters than plain English ones"),
        (GOOD + " This story is about sharing.", "talk about the telling"),
        (GOOD + " They lived happily in it.", "cliches"),
        (GOOD + " The dog was killed.", "unfit for children"),
        ("Near the river, a dog ran. He went home.", "too short"),
        (GOOD + " They played with it all day long.", "repetition"),
        (GOOD.replace("red ball", "red red ball"), "repetition"),
        (GOOD.replace(". ", " and so "), "too short"),
        ("He ran. She ran home. They sat down. It was cold.", "hard to read"),
        (GOOD[:-1], "no end"),
    ],
)
def test_each_sieve_holds_back_what_it_is_for(story: str, sieve: str) -> None:
    assert held(story) == sieve


def test_a_story_that_did_not_come_to_its_end_is_held_back() -> None:
    assert held(GOOD, ended=False) == "no end"


def test_near_duplicates_of_earlier_stories_are_held_back_and_the_first_stays() -> None:
    twin = GOOD.replace("red", "blue")
    frame = table(GOOD, twin, twin, twin, GOOD, GOOD)
    assert sift(frame)["held"].tolist()[:6] == ["", *["near-duplicates"] * 5]


def test_a_word_that_hardly_any_story_uses_holds_its_story_back() -> None:
    frame = table(*[GOOD.replace("red", word) for word in ("red", "big", "old", "kinglude")])
    assert sift(frame)["held"].tolist()[:4] == ["rare words"] * 4  # each of these words occurs once
    frame = table(*[GOOD.replace("red ball", f"{word} ball") for word in ("red", "red", "red", "kinglude")])
    assert sift(frame)["held"].tolist()[3] == "rare words"


def test_stories_are_tidied() -> None:
    assert tidy(" A dog  ran ,\n home . ") == "A dog ran, home."
