"""What each sieve holds back, and what passes them all."""

from __future__ import annotations

import pandas as pd
import pytest

from rewardgrid.storyteller import sifting
from rewardgrid.storyteller.sifting import sift, tidy

FIRST = "Near the river, a small dog found a red ball."
REST = "He took it home with him that night. In the morning, the ball was gone. His sister had hidden it there."
GOOD = f"{FIRST} {REST}"


@pytest.fixture(autouse=True)
def no_word_is_rare(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "rare" not in request.node.name:
        monkeypatch.setattr(sifting, "RARE", 1)


def table(*stories: str, ended: bool = True) -> pd.DataFrame:
    return pd.DataFrame(
        {"number": range(len(stories)), "seed": 0, "prompt": "", "story": stories, "ended": [ended] * len(stories)}
    )


def test_a_good_story_stays_as_it_is() -> None:
    (row,) = sift(table(GOOD)).itertuples()
    assert (row.told, row.story, row.cut, row.held) == (GOOD, GOOD, [], "")


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ('He said, "it is not there".', "other characters than plain English ones"),
        ("It was a very r\u00e9d ball.", "other characters than plain English ones"),
        ("They had a red red ball.", "a doubled word"),
        ("He ran, too.", "too short"),
        ("He ran and ran " + "and ran and sat " * 5 + "down.", "too long"),
        ("This is a story about sharing.", "talk about the telling"),
        ("They lived happily in the house.", "cliches"),
        ("The small dog was dead then.", "unfit for children"),
        (FIRST, "said before"),
    ],
)
def test_each_sieve_cuts_the_sentence_that_it_is_for(sentence: str, reason: str) -> None:
    (row,) = sift(table(f"{GOOD} {sentence}")).itertuples()
    assert (row.story, row.cut, row.held) == (GOOD, [reason], "")


def test_a_sentence_without_an_end_is_not_kept() -> None:
    (row,) = sift(table(GOOD + " And then the dog ran")).itertuples()
    assert (row.story, row.cut) == (GOOD, [])


@pytest.mark.parametrize(
    ("story", "ended", "reason"),
    [
        (GOOD, False, "no end"),
        (" ".join(GOOD.split(". ")[0:2]) + ".", True, "too little left"),
        ("He ran. " + GOOD.replace("His sister had hidden it there.", "It was."), True, "too little left"),
        (
            "He was in the old house. He was by the big river. He was on a hill. They all sat down there.",
            True,
            "repetition",
        ),
        ("A b c d a. C d a b c. D a b c d. B c d a b. A c b d a.", True, "repetition"),
    ],
)
def test_each_sieve_holds_back_the_story_that_it_is_for(story: str, ended: bool, reason: str) -> None:
    assert sift(table(story, ended=ended))["held"].tolist() == [reason]


def test_near_duplicates_of_earlier_stories_are_held_back_and_the_first_stays() -> None:
    twin = GOOD.replace("red", "blue")
    other = "The king had a long day. All of his men were away. A boat came up from the sea. Who could it be now?"
    assert sift(table(GOOD, other, twin, GOOD))["held"].tolist() == ["", "", "near-duplicates", "near-duplicates"]


def test_a_sentence_with_a_rare_word_is_cut() -> None:
    frame = sift(table(*[GOOD.replace("small", word) for word in ("small", "small", "small", "kinglude")]))
    assert frame["cut"].tolist() == [[], [], [], ["rare words"]]
    assert frame["story"].tolist()[3] == REST
    assert frame["held"].tolist()[3] == "too little left"


def test_stories_are_tidied() -> None:
    assert tidy(" A dog  ran ,\n home . ") == "A dog ran, home."
