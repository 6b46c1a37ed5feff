"""What a story stops before, what holds it back, and what becomes of "happy"."""

from __future__ import annotations

import pandas as pd
import pytest

from rewardgrid.storyteller import sifting
from rewardgrid.storyteller.sifting import copied_phrases, sift, tidy, without_happy

FIRST = "Near the river, a small dog found a red ball."
REST = "He took it home with him that night. In the morning, the ball was gone. His sister had hidden it there."
GOOD = f"{FIRST} {REST}"
MORE = "Then they all went out and had some cake."


@pytest.fixture(autouse=True)
def short_stories_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sifting, "FEWEST_TOKENS", 25)


def table(*stories: str, ended: bool = True) -> pd.DataFrame:
    return pd.DataFrame(
        {"number": range(len(stories)), "seed": 0, "prompt": "", "story": stories, "ended": [ended] * len(stories)}
    )


def test_a_good_story_stays_as_it_is() -> None:
    (row,) = sift(table(GOOD)).itertuples()
    assert (row.told, row.story, row.ended, row.cut, row.held) == (GOOD, GOOD, True, "", "")


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ('He said, "it is not there".', "other characters than plain English ones"),
        ("It was a very r\u00e9d ball.", "other characters than plain English ones"),
        ("They had a red red ball.", "a doubled word"),
        ("He ran.", "too short"),
        ("He ran and ran " + "and then he sat " * 7 + "down.", "too long"),
        ("This is a story about sharing.", "talk about the telling"),
        ("The end of it all.", ""),
        ("From that day on, they were friends.", "a cliche"),
        ("The small dog was dead then.", "unfit for children"),
        (FIRST, "said before"),
        (FIRST.replace("ball", "hat"), "said before"),  # all pairs of words but one
    ],
)
def test_a_story_stops_before_an_unsound_sentence_and_has_no_end_then(sentence: str, reason: str) -> None:
    (row,) = sift(table(f"{GOOD} {sentence} {MORE}")).itertuples()
    assert (row.story, row.ended, row.cut, row.held) == (
        (GOOD, False, reason, "") if reason else (f"{GOOD} {sentence} {MORE}", True, "", "")
    )


def test_a_story_that_came_to_no_end_stays_without_one_and_without_its_last_sentence() -> None:
    (row,) = sift(table(GOOD + " And then the dog ran", ended=False)).itertuples()
    assert (row.story, row.ended, row.cut, row.held) == (GOOD, False, "", "")


@pytest.mark.parametrize(
    ("story", "reason"),
    [
        (" ".join(GOOD.split(". ")[0:2]) + ".", "too little left"),
        (f"{FIRST} He ran. {REST}", "too little left"),
        ("", "too little left"),
        (
            "He was in the old house. He was by the big river. He was on a hill. He was not here at all then.",
            "monotonous",
        ),
        ("A b c d a b. D c b a d c. B d a c b d. C a d b c a.", "monotonous"),
    ],
)
def test_each_sieve_holds_back_the_story_that_it_is_for(story: str, reason: str) -> None:
    assert sift(table(story))["held"].tolist() == [reason]


def test_near_duplicates_of_earlier_stories_are_held_back_and_the_first_stays() -> None:
    twin = GOOD.replace("red", "blue")
    other = "The king had a long day. All of his men were away. A boat came up from the sea. Who could it be now, then?"
    assert sift(table(GOOD, other, twin, GOOD))["held"].tolist() == ["", "", "near-duplicates", "near-duplicates"]


def test_a_story_stops_before_what_is_copied_from_a_shown_one() -> None:
    shown = "The guard had not seen his spoon at all. He was at the end of the road."
    told = ["The guard is here. He had it. It is not far. He is seen by us. At the end of all. He is of the sea."] * 300
    told += ["The guard had not seen his spoon."] * 3 + ["They were at the end of the day."] * 3
    phrases = copied_phrases([text.lower() for text in told], [shown])
    assert ("the", "guard", "had", "not", "seen") in phrases
    assert ("at", "the", "end", "of", "the") not in phrases
    row = list(sift(table(*told, f"{GOOD} But the guard had not seen his spoon. {MORE}"), [shown]).itertuples())[-1]
    assert (row.story, row.cut) == (GOOD, "copied from what was shown")


EARLY = "Word " * sifting.HAPPY_EARLY


def late(text: str, seed: int, number: int) -> str:
    """What becomes of a text that stands late in its story."""
    return without_happy(EARLY + text, seed, number).removeprefix(EARLY)


def test_happy_becomes_one_word_of_like_meaning_that_fits_where_it_stands() -> None:
    text = "Happy and proud, he had a happy dog. It was an unhappy day. He was happy. She was happily happy to go."
    seen = {late(text, 3, number) for number in range(300)}
    assert text in seen  # a few keep it
    changed = seen - {text}
    assert not any("happy" in story.lower() for story in changed)
    assert len(changed) > 20
    for story in changed:
        first, _, _, _, _, _, before = story.split()[:7]
        assert first.lower() in sifting.ELSEWHERE
        assert before in sifting.BEFORE_A_NOUN
        assert f"He was {first.lower()}. She was happily {first.lower()} to go." in story
        assert "a sad day" in story or "a gloomy day" in story


def test_fifteen_stories_in_a_hundred_keep_a_late_happy_by_a_draw_of_their_own() -> None:
    kept = [late("He was happy.", 1, number) == "He was happy." for number in range(2000)]
    assert 0.125 < sum(kept) / len(kept) < 0.175
    assert kept[:80] == [late("He was happy.", 1, number) == "He was happy." for number in range(80)]
    assert kept[:80] != [late("He was happy.", 2, number) == "He was happy." for number in range(80)]


def test_an_early_happy_stays() -> None:
    words = sifting.HAPPY_EARLY
    number = next(number for number in range(100) if late("He was happy.", 1, number) != "He was happy.")
    early = " ".join(["word"] * (words - 1))
    assert without_happy(f"{early} happy", 1, number) == f"{early} happy"
    assert "happy" not in without_happy(f"{early} word happy", 1, number)


def test_stories_are_tidied() -> None:
    assert tidy(" A dog  ran ,\n home . ") == "A dog ran, home."
