"""Text and tables as GitHub's Markdown, safe whatever a model or a configuration wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

_SPECIAL = frozenset("&<>`*[]|\\~$#@")
_UNSAFE = re.compile(r"(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?i:(?<=www)\.)")
"""Special in some places only: an underscore that is not inside a word, what makes a link by itself."""


def md(text: str) -> Markup:
    """Text that shows as it is, on one line: nothing in it is markup, HTML, a link or a table cell.

    Special characters become HTML entities, which need no regard for context; white space becomes one space, and
    characters that do not print (among them those that turn the direction of writing) become U+FFFD.
    """
    from markupsafe import Markup

    line = " ".join(text.split())
    unsafe = {match.start() for match in _UNSAFE.finditer(line)}

    def shown(i: int, letter: str) -> str:
        if letter in _SPECIAL or i in unsafe:
            return f"&#{ord(letter)};"
        return letter if letter.isprintable() else "\ufffd"

    return Markup("".join(shown(i, letter) for i, letter in enumerate(line)))


def code(text: str) -> Markup:
    """A name in a code span; what cannot stand in one (in a table) is replaced."""
    from markupsafe import Markup

    safe = "".join(letter if letter.isprintable() and letter not in "`|<>&" else "?" for letter in text)
    return Markup(f"`{safe}`") if safe else Markup("")


def cut(text: str, length: int) -> str:
    """The beginning of a text, cut between words, with an ellipsis if there was more."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[:length].rsplit(" ", 1)[0] + " …"


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> Markup:
    """A table.

    Args:
        headings: plain text.
        rows: cells, Markup as it is and anything else as plain text.
        numeric: which columns to align to the right.
    """
    from markupsafe import Markup

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell if isinstance(cell, Markup) else md(cell) for cell in cells)} |"

    rule = f"|{'|'.join('--:' if right else ':--' for right in numeric)}|"
    return Markup("\n".join([line(headings), rule, *(line(row) for row in rows)]))
