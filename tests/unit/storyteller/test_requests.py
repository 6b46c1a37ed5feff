"""What is asked: another story each time, decided by seed and number alone."""

from __future__ import annotations

from collections import Counter

from rewardgrid.storyteller.requests import SHOWN_ALIKE, STARTS, request
from rewardgrid.storyteller.shown import SHOWN, SYSTEM


def test_requests_differ_and_repeat() -> None:
    asked = [request(0, number).prompt for number in range(500)]
    assert len(set(asked)) == 500
    assert asked == [request(0, number).prompt for number in range(500)]
    assert asked[:50] != [request(1, number).prompt for number in range(50)]


def test_a_request_is_good_english() -> None:
    for number in range(300):
        words = request(2, number).prompt.split()
        assert words[0] == "Write"
        assert words[1] == ("an" if words[2][0] in "aeiou" else "a")
        assert words[3] == "story"
    assert any(" an exciting " in request(2, number).prompt for number in range(300))


def test_a_conversation_shows_two_stories_and_then_asks() -> None:
    wanted = request(0, 7)
    (asked, told), (asked_then, told_then) = (SHOWN[place] for place in wanted.shown)
    assert [(turn["role"], turn["content"]) for turn in wanted.turns] == [
        ("system", SYSTEM),
        ("user", asked),
        ("assistant", told),
        ("user", asked_then),
        ("assistant", told_then),
        ("user", wanted.prompt),
        ("assistant", wanted.start),
    ]
    assert wanted.start in STARTS.split("|")


def test_shown_stories_take_turns_and_stay_for_as_many_requests_as_are_told_together() -> None:
    pairs = [request(0, turn * SHOWN_ALIKE).shown for turn in range(56)]
    assert len(set(pairs)) == 56
    assert all(first != second for first, second in pairs)
    assert set(Counter(first for first, _ in pairs[:8]).values()) == {1}
    assert set(Counter(second for _, second in pairs[:8]).values()) == {1}
    assert {request(0, number).shown for number in range(SHOWN_ALIKE)} == {pairs[0]}
    assert request(9, 56 * SHOWN_ALIKE).shown == pairs[0]
