"""What the teacher told is sifted: first its sentences, then what is left of each story."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence

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
STRANGE = re.compile(r"[^A-Za-z ,.!?']")
TOKEN = re.compile(r"[a-z']+|[,.!?]")
SENTENCE = re.compile(r"[^.!?]+[.!?]")

WORDS = (5, 18)  # of a sentence, commas counted: what a beginner reads
RARE = 3  # a word must occur in so many stories
FEWEST_SENTENCES = 4
SAME_START = 0.5  # at most this share of a story's sentences begin with the same two words
DISTINCT = 0.4  # at least this share of a story's words and marks are different ones
ALIKE = 0.6  # Jaccard similarity of word triples from which two stories are near-duplicates
PERMUTATIONS = 128  # of a MinHash: its similarities are right to about 0.09


def tokens(text: str) -> list[str]:
    """Lowercase words and marks."""
    return TOKEN.findall(text.lower())


def sentences(text: str) -> list[list[str]]:
    """The words and commas of each closed sentence."""
    return [tokens(sentence)[:-1] for sentence in SENTENCE.findall(text)]


def tidy(story: str) -> str:
    """One line, single spaces, none before a mark."""
    return re.sub(r" (?=[,.!?])", "", re.sub(r"\s+", " ", story)).strip()


def _doubled(sentence: str) -> bool:
    return any(one == other for one, other in itertools.pairwise(tokens(sentence)))


SENTENCE_SIEVES: dict[str, Callable[[str], bool]] = {
    "other characters than plain English ones": lambda sentence: bool(STRANGE.search(sentence)),
    "a doubled word": _doubled,
    "too short": lambda sentence: len(tokens(sentence)) - 1 < WORDS[0],
    "too long": lambda sentence: len(tokens(sentence)) - 1 > WORDS[1],
    "talk about the telling": lambda sentence: bool(META.search(sentence)),
    "cliches": lambda sentence: bool(CLICHES.search(sentence)),
    "unfit for children": lambda sentence: bool(UNFIT.search(sentence)),
}
"""What is cut from a story, in this order; before these, what it has said already; after them, rare words."""


def _monotonous(story: str) -> bool:
    starts = Counter(tuple(sentence[:2]) for sentence in sentences(story))
    words = tokens(story)
    return max(starts.values()) > max(2, SAME_START * starts.total()) or len(set(words)) < DISTINCT * len(words)


STORY_SIEVES: dict[str, Callable[[str], bool]] = {
    "too little left": lambda story: len(sentences(story)) < FEWEST_SENTENCES,
    "repetition": _monotonous,
}
"""What holds the rest of a story back, in this order; before these, that it came to no end; after, near-duplicates."""


def sift(told: pd.DataFrame) -> pd.DataFrame:
    """What is left of each story, and what holds it back, if anything (``study.contracts``: ``TOLD``, ``SIFTED``)."""
    stories = [tidy(story) for story in told["story"]]
    cut: list[list[str]] = [[] for _ in stories]
    kept = [_sift_sentences(story, reasons) for story, reasons in zip(stories, cut, strict=True)]
    _cut_rare_words(kept, cut)
    left = [" ".join(sentence[0].upper() + sentence[1:] for sentence in story) for story in kept]
    held = [_held(rest, ended) for rest, ended in zip(left, told["ended"], strict=True)]
    _hold_near_duplicates(left, held)
    return pd.DataFrame({"number": told["number"], "told": stories, "story": left, "cut": cut, "held": held})


def _sift_sentences(story: str, reasons: list[str]) -> list[str]:
    kept: dict[str, None] = {}
    for sentence in map(str.strip, SENTENCE.findall(story)):
        reason = next((name for name, holds in SENTENCE_SIEVES.items() if holds(sentence)), "")
        if sentence in kept:
            reason = "said before"
        if reason:
            reasons.append(reason)
        else:
            kept[sentence] = None
    return list(kept)


def _cut_rare_words(stories: Sequence[list[str]], cut: Sequence[list[str]]) -> None:
    """Cut sentences with a word that hardly any other story has: the teacher invents some."""
    known = Counter(word for story in stories for word in {word for sentence in story for word in tokens(sentence)})
    for story, reasons in zip(stories, cut, strict=True):
        common = [sentence for sentence in story if all(known[word] >= RARE for word in tokens(sentence))]
        reasons += ["rare words"] * (len(story) - len(common))
        story[:] = common


def _held(story: str, ended: bool) -> str:
    if not ended:
        return "no end"
    return next((name for name, holds in STORY_SIEVES.items() if holds(story)), "")


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
