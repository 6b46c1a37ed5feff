"""Diversity measures against figures worked out by hand."""

from __future__ import annotations

import itertools
import random
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardgrid.evaluate.diversity import (
    comma_rate,
    compression_ratio,
    expected_unique,
    first_sentence,
    fragment_share,
    jaccard,
    measure,
    published,
    repeated_sentence_share,
    sentence_words,
    sentences,
    skeleton,
    skeleton_share,
    unique_first_sentences,
    vocabulary_size,
)


def test_the_first_sentence_ends_at_the_first_full_stop() -> None:
    assert first_sentence("once upon a time there was a cat. it ran.") == "once upon a time there was a cat"
    assert first_sentence("who is there? me!") == "who is there? me!"
    assert first_sentence("once upon a .") == "once upon a"
    assert first_sentence("") == ""


def test_unique_first_sentences_ignores_what_follows_and_keeps_case() -> None:
    assert unique_first_sentences(["a cat. one", " a cat . two", "A cat.", "a dog."]) == 3


def test_expected_unique_of_three_equal_and_one_other_in_pairs_is_three_halves() -> None:
    # Of the 6 pairs, 3 hold the odd one: (3*1 + 3*2) / 6.
    assert expected_unique(["a", "a", "a", "b"], k=2) == 1.5


def test_expected_unique_of_the_whole_sample_is_its_number_of_distinct_values() -> None:
    assert expected_unique(["a", "a", "b", "c", "c"], k=5) == 3


def test_expected_unique_needs_at_least_k_values() -> None:
    assert expected_unique(["a"] * 19) is None
    assert expected_unique(["a"] * 20) == 1


def test_expected_unique_of_256_distinct_values_is_exactly_20() -> None:
    assert expected_unique(range(256)) == 20


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_expected_unique_equals_the_mean_over_all_subsets(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    subsets = [len(set(subset)) for subset in itertools.combinations(values, k)]
    assert expected_unique(values, k) == float(Fraction(sum(subsets), len(subsets)))


def test_jaccard_is_the_mean_over_pairs_of_lowercase_whitespace_words() -> None:
    # {a, b}/{b, c}: 1/3; {a, b}/{d}: 0; {b, c}/{d}: 0.
    assert jaccard(["A b", "b c c", "d"]) == pytest.approx(1 / 9)
    # Punctuation stays on its word: "cat." is not "cat".
    assert jaccard(["the cat.", "the cat"]) == pytest.approx(1 / 3)


def test_jaccard_leaves_out_a_pair_of_empty_texts_but_counts_one_empty_text_as_zero() -> None:
    # Pairs: ("", "") left out; ("", "a") twice 0.
    assert jaccard(["", " ", "a"]) == 0
    assert jaccard(["", "a", "a"]) == pytest.approx(1 / 3)


def test_jaccard_has_no_value_without_a_pair() -> None:
    assert jaccard([]) is None
    assert jaccard(["a b"]) is None
    assert jaccard(["", " "]) is None


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=5).map(" ".join), max_size=7))
def test_jaccard_equals_the_loop_over_pairs(texts: list[str]) -> None:
    pairs = [(set(a.split()), set(b.split())) for a, b in itertools.combinations(texts, 2)]
    ratios = [len(a & b) / len(a | b) for a, b in pairs if a | b]
    expected = sum(ratios) / len(ratios) if ratios else None
    assert jaccard(texts) == (None if expected is None else pytest.approx(expected))


def test_256_long_texts_are_measured_in_under_two_seconds() -> None:
    draw = random.Random(0)
    texts = [" ".join(f"w{draw.randrange(4000)}" for _ in range(128)) for _ in range(256)]
    start = time.perf_counter()
    measure(texts)
    assert time.perf_counter() - start < 2


def test_a_trailing_unclosed_run_and_an_empty_run_are_no_sentences() -> None:
    assert sentences("a cat sat. ... who? , , ! and then") == ["a cat sat", "who", ", ,"]
    assert sentences("no end") == []


def test_mean_sentence_words_counts_words_and_not_commas() -> None:
    # "oh , no" has 2 words, "don't go" 2, "," 0.
    assert sentence_words(["oh , no. don't go! , .", "tail without end"]) == pytest.approx(4 / 3)
    assert sentence_words(["no end"]) is None


def test_comma_rate_is_commas_by_words_and_commas() -> None:
    # Pieces: a , big , dog | , -> 3 commas of 6; the full stop is no piece.
    assert comma_rate(["a, big , dog.", ","]) == 0.5
    assert comma_rate([",,,"]) == 1
    assert comma_rate(["", "..."]) is None


def test_a_fragment_has_at_most_three_words() -> None:
    # Words per sentence: 3, 4, 0 (commas alone).
    assert fragment_share(["once upon a . once upon a time. , , ."]) == pytest.approx(2 / 3)
    assert fragment_share(["once upon a"]) is None


def test_sentences_of_one_template_have_one_skeleton_whatever_fills_its_slots() -> None:
    assert skeleton("One day, she found a big red ball") == "one _ , she _ a _"
    assert skeleton("one night , she quietly lost a hat") == "one _ , she _ a _"
    assert skeleton("one day, he found a ball") == "one _ , he _ a _"
    # Runs collapse, of commas too.
    assert skeleton("the, , , old old dog") == "the , _"
    assert skeleton("birds sang songs") == "_"
    assert skeleton("...") == ""


def test_skeleton_share_is_of_the_commonest_frame_among_all_sentences() -> None:
    texts = [
        "she saw a cat. he ran home. she had tea.",
        "she lost a big hat. birds sing. dogs bark. fish swim.",
    ]
    # "she _ a _" twice of 7; "_" thrice, but it frames nothing.
    assert skeleton_share(texts) == pytest.approx(2 / 7)
    assert skeleton_share(["birds sing. dogs bark."]) == 0
    assert skeleton_share(["no end"]) is None


def test_repeated_sentences_are_compared_word_for_word_across_texts() -> None:
    # Said: "he ran", "he ran" (other punctuation), "she ran", "he ran": 2 of 4 were said before.
    assert repeated_sentence_share(["He ran. he, ran! she ran.", "he ran."]) == 0.5
    assert repeated_sentence_share([""]) is None


def test_vocabulary_size_is_the_mean_over_whole_windows_of_a_thousand_words() -> None:
    ten = " ".join(f"w{i % 10}" for i in range(1000))
    thirty = " ".join(f"w{i % 30}" for i in range(1000))
    assert vocabulary_size([ten, thirty, "a rest that fills no window"]) == 20
    assert vocabulary_size(["too short"]) is None


def test_compression_ratio_does_not_depend_on_the_number_of_texts() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choice(["cat", "dog", "ran", "sat", "the"]) for _ in range(80)) for _ in range(400)]
    few, many = compression_ratio(texts[:50]), compression_ratio(texts)
    assert few is not None
    assert many == pytest.approx(few, rel=0.02)


def test_compression_ratio_falls_when_texts_repeat_and_is_none_for_no_text() -> None:
    draw = random.Random(0)
    looped, random_text = compression_ratio(["a" * 1000]), compression_ratio([draw.randbytes(500).hex()])
    assert looped is not None
    assert looped < 0.05
    # Hex digits carry 4 bits of 8: no compressor gets below a half.
    assert random_text is not None
    assert 0.5 < random_text < 0.65
    assert compression_ratio([]) is None
    assert compression_ratio([""]) is None


def test_the_published_figures_are_of_texts_with_their_prompts() -> None:
    found = published(["one day", "one day", "the cat", "the cat"], ["he ran. so", "he ran. no", "sat. so", "lay. so"])
    # "one day he ran" twice, "the cat sat", "the cat lay".
    assert (found["prompts"], found["unique_first_sentences"]) == (2, 3)
    # Words of the texts: {one, day, he, ran., so}, {.., no}: 4/6; with {the, cat, sat., so}: 1/8, and 0; ...
    assert found["jaccard"] == round((4 / 6 + 1 / 8 + 1 / 8 + 0 + 0 + 3 / 5) / 6, 3)


def test_one_continuation_for_each_prompt_leaves_as_many_first_sentences_as_prompts() -> None:
    prompts = [f"tale {i}" for i in range(5) for _ in range(4)]
    assert published(prompts, ["a cat. it ran."] * 20)["unique_first_sentences"] == 5


def test_measure_sees_a_repeated_continuation_whatever_the_prompts() -> None:
    signals = measure(["a cat. it ran."] * 40)
    assert signals["samples"] == 40
    assert signals["unique_openings"] == 1
    assert signals["jaccard"] == 1


def test_measure_rounds_jaccard_to_three_decimals() -> None:
    assert measure(["a b", "b c"])["jaccard"] == 0.333


def test_measure_of_no_samples_knows_nothing_but_their_number() -> None:
    signals = measure([])
    assert signals.pop("samples") == 0
    assert set(signals.values()) == {None}


def test_prompts_and_completions_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"zip\(\) argument 2"):
        published(["a"], ["b", "c"])
