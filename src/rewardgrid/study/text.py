"""Text for people: numbers of things; and of any origin, for a terminal: completions, names of files, logs."""

from __future__ import annotations

MOST = 500
"""Letters of a line that are shown where nothing else is said: no text fills a terminal."""


def printable(text: object, most: int = MOST) -> str:
    """Text on one line: no escape sequences, nothing that changes the direction of writing."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in str(text)[:most])


def printable_lines(text: object, most: int = 4 * MOST) -> str:
    """Likewise line by line, each cut at ``most`` letters."""
    lines = str(text).replace("\r\n", "\n").split("\n")
    return "\n".join(printable(line.expandtabs(), most) + ("…" if len(line) > most else "") for line in lines)


def count(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
