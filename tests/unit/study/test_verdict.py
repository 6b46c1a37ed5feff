"""The degeneracy verdict: against the published rows, on texts of each kind, and as a monotone rule."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.agreement import (
    FACTORS,
    LIMITS,
    PROMPTS,
    PUBLISHED_BASE,
    agreed,
    moved,
    opposite,
    published_confusion,
    published_lines,
)

from rewardgrid.evaluate.diversity import measure, words
from rewardgrid.study.thresholds import Above, Below, Thresholds
from rewardgrid.study.verdict import LABELS, Judged, verdict


def test_the_rule_agrees_with_the_published_verdicts() -> None:
    confusion = published_confusion()
    assert confusion.total() == 33
    assert agreed(confusion) >= 32
    # The one that differs has 6 distinct first sentences, as another that is called borderline.
    assert confusion["degenerate", "borderline"] == 1
    assert opposite(confusion) == 0


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("field", ["unique_first_sentences", "jaccard", "kl", "saturated_reward"])
def test_the_agreement_does_not_hang_on_the_exact_limits(field: str, factor: float) -> None:
    confusion = published_confusion(moved(field, factor))
    assert agreed(confusion) >= 29
    assert opposite(confusion) == 0


def test_the_rule_agrees_with_the_batch_size_rows_by_reward_and_noted_length() -> None:
    base = {**PUBLISHED_BASE, "completion_length": 128}
    for row in published_lines("batch_size.csv"):
        length = re.search(r"length (\d+) tokens", row["note"])
        signals = {
            "reward": float(row["final_reward"]),
            "completion_length": int(length[1]) if length else None,
        }
        assert verdict(signals, base, LIMITS).label == row["verdict"], row


def test_a_low_reward_does_not_excuse_few_first_sentences() -> None:
    row = {"unique_first_sentences": 5, "prompts": PROMPTS, "jaccard": 0.14, "reward": 0.691}
    assert verdict(row, PUBLISHED_BASE, LIMITS).label == "degenerate"


def test_a_saturated_reward_alone_is_borderline_without_a_reason() -> None:
    row = {"unique_first_sentences": 17, "prompts": PROMPTS, "jaccard": 0.14, "reward": 0.992}
    judged = verdict(row, PUBLISHED_BASE, LIMITS)
    assert (judged.label, judged.reasons) == ("borderline", ())
    assert judged.evidence[0] == Judged("reward", 0.992, None, 0.98, None, "borderline")


def test_one_template_shared_by_all_samples_is_named_as_the_reason() -> None:
    judged = verdict({"jaccard": 0.356, "reward": 0.998}, PUBLISHED_BASE, LIMITS)
    assert (judged.label, judged.reasons) == ("degenerate", ("template",))
    assert [(found.signal, found.label) for found in judged.evidence] == [
        ("jaccard", "degenerate"),
        ("reward", "borderline"),
    ]


# Texts of each kind

_HEROES = ["lily", "tom", "mia", "ben", "sara", "omar", "nina", "leo", "zara", "finn"]
_ANIMALS = ["fox", "owl", "bear", "turtle", "rabbit", "hen", "goat", "mouse"]
_THINGS = [
    "kite",
    "lantern",
    "shell",
    "button",
    "drum",
    "map",
    "basket",
    "boat",
    "ribbon",
    "whistle",
    "acorn",
    "feather",
]
_PLACES = ["river", "market", "forest", "hill", "garden", "harbor", "barn", "meadow", "village", "cave"]
_MOODS = ["sad", "proud", "curious", "brave", "sleepy", "cheerful", "nervous", "calm"]
_STORY = (
    "{hero} walked slowly to the {place} with a small {thing} in one hand",
    "a {mood} {animal} was waiting under the old bridge near the {place}",
    "the {animal} asked if anyone had seen its lost {thing}",
    "they looked behind every tree until the sky turned dark",
    "it was cold, but {hero} felt {mood} and kept going",
    "in the {place} they met {other}, who knew a secret path",
    "{other} laughed and gave the {animal} a warm piece of bread",
    "suddenly the wind carried the {thing} high above the {place}",
    "nobody could reach it, so {hero} climbed on a tall rock",
    "when the {thing} fell down, everyone cheered and danced",
    "that night {hero} told the whole {place} what had happened",
    "from then on {other} and the {animal} visited each {place} together",
    "mother smiled because her child had learned to share",
    "the {mood} {animal} never forgot how kind {hero} was",
    "what would you do with a {thing} like that",
    "stars came out while {other} sang about the {place}",
    "both friends promised to return before winter",
    "after lunch {hero} painted the {thing} blue and gold",
    "there was no {thing} left, yet the {animal} did not cry",
    "{other} found the door of the {place} wide open",
)

Writer = Callable[[random.Random], str]


def _slots(draw: random.Random) -> dict[str, str]:
    hero, other = draw.sample(_HEROES, 2)
    return {
        "hero": hero,
        "other": other,
        "animal": draw.choice(_ANIMALS),
        "thing": draw.choice(_THINGS),
        "place": draw.choice(_PLACES),
        "mood": draw.choice(_MOODS),
    }


def _healthy(draw: random.Random) -> str:
    slots = _slots(draw)
    return ". ".join(sentence.format(**slots) for sentence in draw.sample(_STORY, 8)) + "."


def _comma_stuffed(draw: random.Random) -> str:
    stuffed = (word + " ," if draw.random() < 0.4 and word[-1].isalpha() else word for word in _healthy(draw).split())
    return " ".join(stuffed)


def _fragmented(draw: random.Random) -> str:
    pieces = [
        "once upon a .",
        "there was a .",
        "one day , {hero} .",
        "{hero} and {other} .",
        "the {animal} .",
        "so {mood} .",
    ]
    return " ".join(draw.choice(pieces).format(**_slots(draw)) for _ in range(25))


def _templated(draw: random.Random) -> str:
    verbs = ["found", "saw", "lost", "painted", "carried", "wanted"]
    return " ".join(
        "one day, she {verb} a {mood} {thing} in the {place}.".format(verb=draw.choice(verbs), **_slots(draw))
        for _ in range(8)
    )


_VOCABULARY = sorted({word for seed in range(50) for word in words(_healthy(random.Random(seed)))})


def _gibberish(draw: random.Random) -> str:
    return " ".join(draw.choice(_VOCABULARY) + "." * (i % 10 == 9) for i in range(80))


def _signals(write: Writer, seed: int, **more: float) -> dict[str, float | int | None]:
    draw = random.Random(seed)
    completions = [write(draw) for _ in range(256)]
    return {**measure(completions), **more}


def _unlikely(windows: float = 0.05, ends: float = 0.05) -> dict[str, float]:
    return {
        "unlikely_windows": windows,
        "unlikely_windows_top_k": windows,
        "unlikely_ends": ends,
        "unlikely_ends_top_k": ends,
    }


_BASE = _signals(_healthy, 0, completion_length=100.0, reward=0.5, **_unlikely())


@pytest.mark.parametrize("seed", range(1, 6))
def test_healthy_stories_are_ok(seed: int) -> None:
    healthy = _signals(_healthy, seed, completion_length=90.0, reward=0.93, kl_exact=1.0, **_unlikely(0.08, 0.09))
    judged = verdict(healthy, _BASE, LIMITS)
    assert judged.label == "ok", judged.evidence
    assert judged.reasons == ()
    assert {found.label for found in judged.evidence} == {"ok"}


@pytest.mark.parametrize(
    ("write", "more", "reason"),
    [
        (_comma_stuffed, {}, "comma stuffing"),
        (_fragmented, {}, "fragments"),
        (_templated, _unlikely(0.01), "template"),
        (_gibberish, _unlikely(0.98, 0.3), "gibberish"),
        (_healthy, _unlikely(0.2, 0.5), "chopped sentences"),
    ],
)
def test_each_kind_of_degenerate_text_is_called_so_and_its_reason_comes_first(
    write: Writer, more: dict[str, float], reason: str
) -> None:
    judged = verdict(_signals(write, 1, **more), _BASE, LIMITS)
    assert judged.label == "degenerate"
    assert judged.reasons[0] == reason, judged.evidence


def test_comma_stuffing_and_gibberish_are_not_mistaken_for_each_other_or_for_fragments() -> None:
    assert verdict(_signals(_comma_stuffed, 2), _BASE, LIMITS).reasons == ("comma stuffing",)
    mistaken = {"comma stuffing", "fragments"}
    assert not mistaken & set(verdict(_signals(_gibberish, 2, **_unlikely(0.98)), _BASE, LIMITS).reasons)


def test_stories_of_which_one_in_five_follows_a_template_are_borderline() -> None:
    judged = verdict(_signals(lambda d: _templated(d) if d.random() < 1 / 5 else _healthy(d), 3), _BASE, LIMITS)
    assert (judged.label, judged.reasons) == ("borderline", ("template",)), judged.evidence


def test_completions_that_shrink_to_a_fifth_of_the_base_are_degenerate_fragments() -> None:
    judged = verdict({"completion_length": 22}, {"completion_length": 120}, LIMITS)
    assert (judged.label, judged.reasons) == ("degenerate", ("fragments",))
    assert verdict({"completion_length": 51}, {"completion_length": 120}, LIMITS).label == "borderline"


def test_text_is_unlikely_only_if_it_is_so_without_the_tail_of_the_distribution_too() -> None:
    for kind in ("windows", "ends"):
        signals = _unlikely() | {f"unlikely_{kind}": 0.8, f"unlikely_{kind}_top_k": 0.3}
        judged = verdict(signals, _BASE, LIMITS)
        assert judged.label == "borderline"
        assert {found.signal for found in judged.evidence[:2]} == {f"unlikely_{kind}", f"unlikely_{kind}_top_k"}
        assert verdict(signals | {f"unlikely_{kind}_top_k": 0.09}, _BASE, LIMITS).label == "ok"
        assert verdict(signals | {f"unlikely_{kind}_top_k": 0.5}, _BASE, LIMITS).label == "degenerate"


def test_divergence_and_reward_judge_only_texts_whose_likelihood_was_not_measured() -> None:
    suspect = {"kl_exact": 3.0, "reward": 0.999}
    assert verdict(suspect, {}, LIMITS).label == "degenerate"
    assert verdict(suspect | _unlikely(), _BASE, LIMITS).label == "ok"
    assert verdict(suspect | {"unlikely_ends": 0.09}, _BASE, LIMITS).label == "ok"


# The rule as such


def test_a_limit_is_reached_at_the_limit_itself() -> None:
    assert [Above(borderline=1, degenerate=2).score(x) for x in (0.9, 1, 1.9, 2)] == [0, 1, 1, 2]
    assert [Below(borderline=2, degenerate=1).score(x) for x in (2.1, 2, 1.1, 1)] == [0, 1, 1, 2]


def test_limits_in_the_wrong_order_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ValidationError, match="wrong order"):
        Thresholds.model_validate({"jaccard": {"borderline": 2.0, "degenerate": 1.5}})
    with pytest.raises(ValidationError, match="wrong order"):
        Thresholds.model_validate({"compression_ratio": {"borderline": 0.5, "degenerate": 0.75}})
    with pytest.raises(ValidationError, match="jacard"):
        Thresholds.model_validate({"jacard": {"borderline": 1.5, "degenerate": 2.0}})


def test_the_exact_kl_is_judged_instead_of_k3_where_both_are_measured() -> None:
    assert verdict({"kl_exact": 1.0, "kl_k3": 120.0}, {}, LIMITS).label == "ok"
    assert verdict({"kl_exact": None, "kl_k3": 120.0}, {}, LIMITS).label == "degenerate"


def test_what_is_missing_on_either_side_is_not_judged() -> None:
    assert verdict({}, PUBLISHED_BASE, LIMITS).label == "ok"
    assert verdict({"jaccard": 0.9, "comma_rate": None}, {"comma_rate": 0.05}, LIMITS).label == "ok"
    assert verdict({"jaccard": 0.9}, {"jaccard": 0.0}, LIMITS).label == "ok"
    # A difference needs no scale: a base without a single comma still shows that a half is too many.
    assert verdict({"comma_rate": 0.5}, {"comma_rate": 0.0}, LIMITS).label == "degenerate"


def test_nan_is_refused_rather_than_called_ok() -> None:
    with pytest.raises(ValueError, match="unlikely_ends is NaN"):
        verdict({"unlikely_ends": float("nan")}, {}, LIMITS)


def test_limits_are_told_in_the_signals_own_unit() -> None:
    signals = {"comma_rate": 0.1, "jaccard": 0.2, "unique_first_sentences": 9, "prompts": 5}
    reference = {"comma_rate": 0.04, "jaccard": 0.1, "unique_first_sentences": 15}
    told = {
        found.signal: (found.base, round(found.borderline, 6), round(found.degenerate or 0, 6))
        for found in verdict(signals, reference, LIMITS).evidence
    }
    assert told == {
        "comma_rate": (0.04, 0.11, 0.21),  # + 0.07, + 0.17
        "jaccard": (0.1, 0.13, 0.22),  # x 1.3, x 2.2
        "unique_first_sentences": (15, 9.0, 5.4),  # 5 + 0.4 x 10, 5 + 0.04 x 10
    }


def test_a_base_that_repeats_itself_for_every_prompt_sets_no_scale_for_first_sentences() -> None:
    assert verdict({"unique_first_sentences": 5, "prompts": 5}, {"unique_first_sentences": 5}, LIMITS).evidence == ()


_WORSE = {
    "unique_first_sentences": -1,
    "unique_openings": -1,
    "completion_length": -1,
    "compression_ratio": -1,
    "jaccard": 1,
    "fragment_share": 1,
    "comma_rate": 1,
    "skeleton_share": 1,
    "unlikely_windows": 1,
    "unlikely_windows_top_k": 1,
    "unlikely_ends": 1,
    "unlikely_ends_top_k": 1,
    "kl_exact": 1,
    "kl_k3": 1,
    "reward": 1,
}
_optional = st.dictionaries(st.sampled_from(sorted(_WORSE)), st.floats(0, 4) | st.none(), max_size=2)
_complete = st.fixed_dictionaries({name: st.floats(0, 4) for name in _WORSE})


@given(
    others=_optional,
    reference=_complete,
    worsened=st.sampled_from(sorted(_WORSE)),
    value=st.floats(0, 4),
    by=st.floats(0, 4),
)
def test_making_a_signal_worse_never_improves_the_verdict(
    others: dict[str, float | None], reference: dict[str, float], worsened: str, value: float, by: float
) -> None:
    before = verdict({**others, worsened: value}, reference, LIMITS)
    after = verdict({**others, worsened: value + by * _WORSE[worsened]}, reference, LIMITS)
    assert LABELS.index(after.label) >= LABELS.index(before.label)
