"""The story grammar: agreement, lengths, variety, and that a story depends on nothing but its number."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from statistics import mean, pstdev

import pytest

from rewardgrid.base import grammar
from rewardgrid.base.stories import PHASES, story
from rewardgrid.base.themes import THEMES

SAMPLE = [story(0, index) for index in range(1000)]


def sentences(text: str) -> list[list[str]]:
    """Tokens of each sentence, commas included, as the rewards count them."""
    return [re.findall(r"\w+|,", part) for part in re.split(r"[.?!]", text.lower()) if part.strip()]


def test_a_story_is_the_same_in_another_process_and_whatever_was_drawn_before() -> None:
    code = "from rewardgrid.base.stories import story; print(story(7, 123), end='')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    story(1, 1)
    assert story(7, 123) == other


def test_seed_and_number_both_choose_the_story() -> None:
    assert len({story(seed, index) for seed in range(5) for index in range(5)}) == 25


def test_no_slot_is_left_open_and_no_space_is_doubled() -> None:
    for text in SAMPLE:
        assert not re.search(r"[{}]|  | [.,?!]|,\.", text), text


def test_every_slot_of_every_sentence_can_be_filled() -> None:
    """Every template occurs in the sample's phases, so every slot has been filled at least once somewhere."""
    text = "\n".join(story(2, index) for index in range(3000)).lower()
    for template in {template for templates, _, _ in PHASES for template in templates}:
        literal = max(re.split(r"\{\w+\}", template), key=len).strip().lower()
        assert literal in text, template


def test_an_stands_before_a_vowel_and_a_before_anything_else() -> None:
    articles = re.findall(r"\b(an?) (\w)", " ".join(SAMPLE).lower())
    assert len(articles) > 1000
    assert all((article == "an") == (letter in "aeiou") for article, letter in articles)


def test_no_word_after_an_article_begins_with_a_letter_that_sounds_otherwise() -> None:
    text = " ".join(SAMPLE).lower()
    assert not re.search(r"\ban? (?:hour|hono|honest|heir|one\b|once|uni|use|usu|eu|ewe)", text)


def test_every_sentence_begins_with_a_capital() -> None:
    for text in SAMPLE:
        assert all(part[0].isupper() for part in re.split(r"(?<=[.?!]) ", text)), text


def test_hero_and_friend_have_different_pronouns_and_the_hero_keeps_his_own() -> None:
    she, he = {"she", "her"}, {"he", "him", "his"}
    female = {name.lower() for name in grammar.GIRLS}
    male = {name.lower() for name in grammar.BOYS}
    assert not female & male
    for text in SAMPLE:
        words = re.findall(r"\w+", text.lower())
        names = [word for word in words if word in female | male]
        assert len(set(names) & female) <= 1, text
        assert len(set(names) & male) <= 1, text
        found = {"she" for word in words if word in she} | {"he" for word in words if word in he}
        assert len(found) <= 1, text


def test_a_story_repeats_no_sentence() -> None:
    repeated = [text for text in SAMPLE if len(set(re.split(r"[.?!] ?", text))) < len(re.split(r"[.?!] ?", text))]
    assert len(repeated) <= 5


def test_sentences_and_stories_have_the_lengths_that_the_rewards_need_room_around() -> None:
    lengths = [len(sentence) for text in SAMPLE for sentence in sentences(text)]
    words = sorted(len(re.findall(r"\w+", text)) for text in SAMPLE)
    assert mean(lengths) == pytest.approx(10.4, abs=0.5)
    assert pstdev(lengths) == pytest.approx(3.9, abs=0.3)
    assert min(lengths) <= 2
    assert max(lengths) >= 20
    assert 150 < mean(words) < 180
    assert words[100] < 145
    assert words[900] > 180


def test_the_smooth_reward_of_the_stories_leaves_room_to_climb() -> None:
    def smooth(text: str) -> float:
        return mean(max(0.0, 1 - 0.2 * abs(10 - len(sentence))) for sentence in sentences(text))

    assert mean(map(smooth, SAMPLE)) == pytest.approx(0.48, abs=0.02)


def test_happy_is_rare_but_not_absent() -> None:
    text = " ".join(SAMPLE).lower()
    per_thousand = 1000 * text.count("happy") / len(re.findall(r"\w+|[.,?!]", text))
    assert 0.4 < per_thousand < 0.8


def test_stories_share_few_words_and_begin_differently() -> None:
    sets = [set(text.lower().split()) for text in SAMPLE[:100]]
    assert mean(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)) == pytest.approx(0.135, abs=0.015)
    firsts = [text.split(".")[0] for text in SAMPLE]
    assert [len(set(firsts[start : start + 20])) for start in range(0, 200, 20)] == [20] * 10
    prompts = {tuple(re.findall(r"\w+|[.,?!]", text.lower())[:8]) for text in SAMPLE}
    assert len(prompts) > 950


def test_every_theme_has_all_that_a_story_asks_of_it() -> None:
    assert len(THEMES) == 15
    for theme in THEMES:
        assert len(theme.spots) == len(theme.sights) == 5
        assert len(theme.plots) == len(theme.acts) == 4
        assert all(place.count(" ") >= 2 for place in theme.places)
