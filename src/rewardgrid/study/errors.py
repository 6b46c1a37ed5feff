"""What a user did wrong, said once and clearly."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewardgrid.study.text import printable_lines


class UserError(Exception):
    """A mistake the user can mend. Programs print its message without a traceback and exit with ``status``.

    The message may quote what was read, names of files for example: it comes out as text that no terminal obeys.
    """

    status = 2

    def __str__(self) -> str:
        return printable_lines(super().__str__())


AGAIN = "delete it and run again (a cell from an archive: delete its directory, and restore it)"
"""What helps against a damaged file of a cell."""

SHOWN = 300
"""Letters of what was read."""


def quoted(read: object) -> str:
    """What was read, as Python writes it, cut off where it is long."""
    text = repr(read)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a configuration: where it stands, what was read, what to write instead."""

    file: str
    key: str
    read: object
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: read {quoted(self.read)}; {self.fix}"


class ConfigError(UserError):
    """Everything that is wrong with a configuration, reported in one go."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  {p}" for p in problems))


class Several(UserError):
    """What several checks have found, reported in one go."""

    def __init__(self, found: Sequence[str]) -> None:
        self.found = tuple(found)
        super().__init__(f"{len(found)} problems:\n" + "\n".join(f"  {each}" for each in found))


def all_of(*checks: Callable[[], Any]) -> list[Any]:
    """What each of these checks gives. All of them are made, whatever one of them finds.

    Raises:
        UserError: everything that is wrong.
    """
    given: list[Any] = []
    errors: list[UserError] = []
    for check in checks:
        try:
            given.append(check())
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    of_configuration = [error for error in errors if isinstance(error, ConfigError)]
    if errors and len(of_configuration) == len(errors):
        raise ConfigError([problem for error in of_configuration for problem in error.problems])
    if errors:
        found = list(dict.fromkeys(each for error in errors for each in _found_in(error)))
        raise Several(found) if len(found) > 1 else UserError(found[0])
    return given


def _found_in(error: UserError) -> list[str]:
    if isinstance(error, ConfigError):
        return [str(problem) for problem in error.problems]
    return list(error.found) if isinstance(error, Several) else [str(error)]


def did_you_mean(word: str, known: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """The closest known word as a hint, or an empty string: ``did you mean "beta"?``

    Args:
        others: what others call the known words.
    """
    others = others or {}
    close = difflib.get_close_matches(str(word), [*known, *others], n=1, cutoff=0.6)
    return f' did you mean "{others.get(close[0], close[0])}"?' if close else ""
