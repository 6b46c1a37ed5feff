"""Short stories for small children, each a pure function of a seed and a number: no corpus file is needed."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from rewardgrid.base import grammar
from rewardgrid.base.themes import THEMES, Plot, Theme

# The sentences of each phase, in order, and how many of them a story has: at least, at most.
PHASES: tuple[tuple[tuple[str, ...], int, int], ...] = (
    (grammar.OPEN, 1, 1),
    (grammar.FRIEND, 1, 1),
    (grammar.INTRO, 0, 2),
    (grammar.INCITE, 1, 1),
    (grammar.PLAN, 1, 4),
    (grammar.TRY, 1, 1),
    (grammar.DOUBT, 1, 1),
    (grammar.MEET, 1, 1),
    (grammar.ADVICE, 1, 2),
    (grammar.TRY, 1, 1),
    (grammar.DOUBT, 0, 1),
    (grammar.CLIMAX, 1, 1),
    (grammar.RESULT, 1, 1),
    (grammar.JOY, 0, 1),
    (grammar.END, 1, 3),
)
ALONE = 0.25  # share of stories in which nobody helps: neither MEET nor ADVICE
OPTIONAL = {"when": (grammar.WHEN, 0.45, "{} "), "how": (grammar.HOW, 0.5, " {}")}

SHE = {"he": "she", "him": "her", "his": "her"}
HE = {"he": "he", "him": "him", "his": "his"}

Uniform = Callable[[], float]  # the next draw from [0, 1)
T = TypeVar("T")


def story(seed: int, index: int) -> str:
    """The story with this number under this seed: one paragraph of about 165 words.

    Draws only ``random.Random(text).random()``, which Python promises to keep the same across versions.
    """
    uniform = random.Random(f"rewardgrid/{seed}/{index}").random
    draw = _Draw(uniform, _pick(uniform, THEMES))
    alone = uniform() < ALONE
    sentences = [
        draw.fill(draw.unused(templates))
        for templates, least, most in PHASES
        if not (alone and templates in (grammar.MEET, grammar.ADVICE))
        for _ in range(least + int(uniform() * (most - least + 1)))
    ]
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", " ".join(sentences))
    return re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda first: first[0].upper(), text)


class _Draw:
    """The words of one story: what is settled at its start, and which phrases it has used."""

    def __init__(self, uniform: Uniform, theme: Theme) -> None:
        self.uniform = uniform
        self.used: dict[int, set[int]] = {}  # by identity of the sequence drawn from
        plot = _pick(uniform, theme.plots)
        self.phrases = {**_phrases(theme), "tried": plot.tries}
        self.settled = _settle(uniform, theme, plot)

    def unused(self, options: Sequence[str]) -> str:
        """An option that this story has not drawn yet; when it has had them all, any."""
        used = self.used.setdefault(id(options), set())
        if len(used) == len(options):
            used.clear()
        choice = _pick(self.uniform, [i for i in range(len(options)) if i not in used])
        used.add(choice)
        return options[choice]

    def fill(self, template: str) -> str:
        return "".join(literal + (self.slot(slot) if slot else "") for literal, slot in _parse(template))

    def slot(self, slot: str) -> str:
        if slot in self.settled:
            return _pick(self.uniform, self.settled[slot])
        if slot in OPTIONAL:
            options, rate, form = OPTIONAL[slot]
            return form.format(self.unused(options)) if self.uniform() < rate else ""
        return self.unused(self.phrases[slot])


def _settle(uniform: Uniform, theme: Theme, plot: Plot) -> dict[str, tuple[str, ...]]:
    """What stays the same through a story: for each slot the ways to say it."""
    pronouns, others = (SHE, HE) if uniform() < 0.5 else (HE, SHE)
    name, kind = _person(uniform, pronouns)
    fname, fkind = _person(uniform, others)
    while fkind == kind:  # two foxes would both be "the fox"
        fname, fkind = _person(uniform, others)
    at = _pick(uniform, theme.places)
    words = {
        **pronouns,
        "name": name,
        "kind": kind,
        "fname": fname,
        "fkind": fkind,
        "elder": _pick(uniform, grammar.ELDERS),
        "gift": _pick(uniform, grammar.GIFTS),
        "at": at,
        "place": at.split(" ", 1)[1],
        "helper": _pick(uniform, theme.helpers),
        "thing": plot.thing,
        "trouble": plot.trouble,
        "goal": plot.goal,
        "fixed": plot.fixed,
        "result": plot.result,
    }
    ways = {slot: (word,) for slot, word in words.items()}
    return {
        **ways,
        "hero": (name, name, pronouns["he"], pronouns["he"], pronouns["he"], f"the {kind}"),
        "friend": (fname, fname, f"{pronouns['his']} friend", f"{pronouns['his']} friend", f"the {fkind}"),
    }


def _person(uniform: Uniform, pronouns: dict[str, str]) -> tuple[str, str]:
    """A name and what bears it: a child, or as often an animal."""
    names, child = (grammar.GIRLS, "girl") if pronouns is SHE else (grammar.BOYS, "boy")
    return _pick(uniform, names), child if uniform() < 0.5 else _pick(uniform, grammar.ANIMALS)


def _pick(uniform: Uniform, options: Sequence[T]) -> T:
    return options[int(uniform() * len(options))]


@cache
def _phrases(theme: Theme) -> dict[str, tuple[str, ...]]:
    return {
        **grammar.PHRASES,
        "spot": theme.spots,
        "sight": theme.sights,
        "act": tuple(now for now, _ in theme.acts),
        "acted": tuple(past for _, past in theme.acts),
        "sound": theme.sounds,
        "smell": theme.smells,
    }


@cache
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """("text before", slot) pairs; the slot of a closing text is None."""
    return tuple((literal, slot) for literal, slot, _, _ in string.Formatter().parse(template))
