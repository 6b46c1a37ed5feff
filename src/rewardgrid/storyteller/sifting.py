"""What the teacher told is sifted: a story stays if no sieve holds it back."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

META = re.compile(
    r"\b(?:stor(?:y|ies)|tales?|sentences?|paragraph|chapter|example|author|readers?|narrator|the end|moral|english)\b",
    re.IGNORECASE,
)
CLICHES = re.compile(
    r"\b(?:once upon a time|happily ever after|lived happily|in a land far|little did (?:he|she|they) know|"
    r"valuable lesson|from that day on)\b",
    re.IGNORECASE,
)
UNFIT = re.compile(
    r"\b(?:kill\w*|murder\w*|blood\w*|die|died|dies|dead|death|gun|guns|bombs?|sex\w*|naked|drunk|beer|wine|rape\w*|"
    r"suicide|hell|damn|slave\w*|war|wars|prostitut\w*|drugs?)\b",
    re.IGNORECASE,
)
PLAIN = re.compile(r"[A-Za-z ,.!?']+")
TOKEN = re.compile(r"[a-z']+|[,.!?]")
SENTENCE = re.compile(r"[^.!?]+[.!?]")

FEWEST_SENTENCES = 4
MEAN_WORDS = (6.0, 13.0)  # of a sentence: what a beginner reads
MOST_WORDS = 26
SAME_START = 0.5  # at most this share of sentences with the same first two words
DISTINCT = 0.4  # at least this share of a story's words occur in it once only, or for the first time
RARE = 3  # a word must occur in so many stories
ALIKE = 0.6  # Jaccard similarity of word triples from which two stories are near-duplicates
PERMUTATIONS = 128  # of a MinHash: its similarities are right to about 0.09


def tokens(story: str) -> list[str]:
    """Lowercase words and marks."""
    return TOKEN.findall(story.lower())


def sentences(story: str) -> list[list[str]]:
    """The words and commas of each closed sentence."""
    return [tokens(sentence)[:-1] for sentence in SENTENCE.findall(story.lower())]


def _short(story: str) -> bool:
    return len(SENTENCE.findall(story)) < FEWEST_SENTENCES


def _repeats(story: str) -> bool:
    said = [" ".join(sentence) for sentence in sentences(story)]
    starts = Counter(" ".join(sentence.split()[:2]) for sentence in said)
    words = [token for token in tokens(story) if token.isalpha()]
    doubled = any(one == other for one, other in itertools.pairwise(words))
    return (
        len(set(said)) < len(said)
        or doubled
        or max(starts.values()) > max(2, SAME_START * len(said))
        or len(set(words)) < DISTINCT * len(words)
    )


def _hard(story: str) -> bool:
    lengths = [len(sentence) for sentence in sentences(story)]
    return not MEAN_WORDS[0] <= float(np.mean(lengths)) <= MEAN_WORDS[1] or max(lengths) > MOST_WORDS


SIEVES: dict[str, Callable[[str], bool]] = {
    "other characters than plain English ones": lambda story: not PLAIN.fullmatch(story),
    "talk about the telling": lambda story: bool(META.search(story)),
    "cliches": lambda story: bool(CLICHES.search(story)),
    "unfit for children": lambda story: bool(UNFIT.search(story)),
    "too short": _short,
    "repetition": _repeats,
    "hard to read": _hard,
}
"""What each sieve holds back, in their order."""


def tidy(story: str) -> str:
    """One line, single spaces, none before a mark."""
    return re.sub(r" (?=[,.!?])", "", re.sub(r"\s+", " ", story)).strip()


def sift(told: pd.DataFrame) -> pd.DataFrame:
    """What each story is held back by, if by anything (schema: ``study.contracts.SIFTED``; told: ``TOLD``).

    The first sieve that holds a story back counts.
    """
    stories = [tidy(story) for story in told["story"]]
    held = [_held(story, ended) for story, ended in zip(stories, told["ended"], strict=True)]
    _hold_rare_words(stories, held)
    _hold_near_duplicates(stories, held)
    return pd.DataFrame({"number": told["number"], "story": stories, "held": held})


def _held(story: str, ended: bool) -> str:
    if not ended or story[-1:] not in tuple(".!?"):
        return "no end"
    return next((name for name, holds in SIEVES.items() if holds(story)), "")


def _hold_rare_words(stories: Sequence[str], held: list[str]) -> None:
    """Hold back stories that use a word which hardly any other does: the teacher invents some."""
    known = Counter(word for story, by in zip(stories, held, strict=True) if not by for word in set(tokens(story)))
    for place, story in enumerate(stories):
        if not held[place] and any(known[word] < RARE for word in tokens(story)):
            held[place] = "rare words"


def _hold_near_duplicates(stories: Sequence[str], held: list[str]) -> None:
    """Hold back near-duplicates of earlier stories, found by MinHash (Broder 1997) over word triples."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS)
    for place, story in enumerate(stories):
        if held[place]:
            continue
        words = tokens(story)
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([" ".join(triple).encode() for triple in zip(words, words[1:], words[2:], strict=False)])
        if index.query(sketch):
            held[place] = "near-duplicates"
        else:
            index.insert(place, sketch)
