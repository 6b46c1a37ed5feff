"""Text of any origin: no terminal obeys it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rewardgrid.study.errors import ConfigError, Problem, UserError
from rewardgrid.study.text import count, printable, printable_lines

STEERING = "\x1b]0;title\x07\x1b[2J\r\x9b31m\x9d0;x\x9c\u202e\u2066\u200b"


def test_escape_sequences_of_seven_and_eight_bits_are_taken_apart() -> None:
    assert printable("\x1b[31mred\x9b0m") == "\ufffd[31mred\ufffd0m"
    assert printable("a\rb\x00c\x7fd\u202ee") == "a\ufffdb\ufffdc\ufffdd\ufffde"
    assert printable("Grüße, 東京 ▁▂▃") == "Grüße, 東京 ▁▂▃"


def test_one_thing_is_not_several() -> None:
    assert [count(number, "cell") for number in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]


def test_lines_stay_lines_and_none_is_endless() -> None:
    assert printable_lines("one\r\n\ttwo\n") == "one\n        two\n"
    assert printable_lines("x" * 30, most=10) == "x" * 10 + "…"


@given(st.text(alphabet=st.characters(codec=None)))
def test_no_text_at_all_steers_a_terminal(text: str) -> None:
    assert printable(text).isprintable()
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))


def test_what_an_error_quotes_comes_out_harmless() -> None:
    assert str(UserError(f"{STEERING}: no such file")).isprintable()
    error = ConfigError([Problem(f"{STEERING}.yaml", STEERING, STEERING, "write less")])
    assert all(line.isprintable() for line in str(error).split("\n"))
    assert str(error).startswith("1 problem in the configuration:\n  ")
