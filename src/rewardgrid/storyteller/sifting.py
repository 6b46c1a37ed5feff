"""What the teacher told is sifted: a story stops before its first unsound or repeated sentence.

It stays if enough is left. Nothing is cut out of the middle, so what is left hangs together. A story that was cut, or
that came to no end by itself, has no end: it is learnt from without [EOS].
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import pandas as pd

from rewardgrid.lm.draws import generator

META = re.compile(
    r"\b(?:stor(?:y|ies)|tales?|sentences?|paragraph|chapter|example|author|readers?|narrator|moral|english)\b|"
    r"^the end\W*$",
    re.IGNORECASE,
)
CLICHES = re.compile(
    r"\b(?:once upon a time|happily ever after|lived happily|in a land far|little did (?:he|she|they) know|"
    r"valuable lesson|from (?:that day|then) on)\b",
    re.IGNORECASE,
)
UNFIT = re.compile(
    r"\b(?:kill\w*|murder\w*|blood\w*|die|died|dies|dead|death|gun|guns|bombs?|sex\w*|naked|drunk|beer|wine|rape\w*|"
    r"suicide|hell|damn|slave\w*|war|wars|prostitut\w*|drugs?|broke (?:his|her|their) neck)\b",
    re.IGNORECASE,
)
STRANGE = re.compile(r"[^A-Za-z ,.!?']")
TOKEN = re.compile(r"[a-z']+|[,.!?]")
SENTENCE = re.compile(r"[^.!?]+[.!?]")

SHORTEST, LONGEST = 3, 30  # words of a sentence, commas counted
SIMILAR = 0.7  # Jaccard similarity of word pairs from which a sentence repeats an earlier one
FEWEST_TOKENS = 60  # that must be left of a story
SAME_START = 0.5  # at most this share of a story's sentences begin with the same two words
DISTINCT = 0.35  # at least this share of a story's words and marks are different ones
PHRASE = 5  # words in a row
BEYOND_CHANCE = 100  # a shown phrase is copied if it stands so many times as often as its pairs of words would make it
ALIKE = 0.6  # Jaccard similarity of word triples from which two stories are near-duplicates
PERMUTATIONS = 128  # of a MinHash: its similarities are right to about 0.09

HAPPY_EARLY = 64  # words and marks of a story within which "happy" stays
HAPPY_STAYS = 0.15  # share of stories that keep a later one too
HAPPY = re.compile(r"\b(?:(an) )?(un)?happy\b(?: ([a-z]+))?", re.IGNORECASE)
BEFORE_A_NOUN = ("cheerful", "joyful", "merry", "jolly")
ELSEWHERE = ("glad", "pleased", "delighted", "joyful", "cheerful", "content")
UNHAPPY = ("sad", "gloomy")
NO_NOUN = re.compile(
    r"about|again|all|an?|and|anymore|as|at|because|but|by|every|for|from|had|he|if|in|it|now|of|on|or|she|so|that|the|"
    r"their|there|they|this|to|today|together|too|until|was|were|when|where|while|with|\w+ly"
)
"""Words that say, after "happy", that no noun of its own comes."""


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
    "too short": lambda sentence: len(tokens(sentence)) - 1 < SHORTEST,
    "too long": lambda sentence: len(tokens(sentence)) - 1 > LONGEST,
    "talk about the telling": lambda sentence: bool(META.search(sentence)),
    "a cliche": lambda sentence: bool(CLICHES.search(sentence)),
    "unfit for children": lambda sentence: bool(UNFIT.search(sentence)),
}
"""What a story stops before, in this order; after these, what it has said already and what it copied."""


def _monotonous(story: str) -> bool:
    starts = Counter(tuple(sentence[:2]) for sentence in sentences(story))
    words = tokens(story)
    return max(starts.values()) > max(2, SAME_START * starts.total()) or len(set(words)) < DISTINCT * len(words)


STORY_SIEVES: dict[str, Callable[[str], bool]] = {
    "too little left": lambda story: len(tokens(story)) < FEWEST_TOKENS,
    "monotonous": _monotonous,
}
"""What holds back the rest of a story, in this order; after these, near-duplicates."""


def sift(told: pd.DataFrame, shown: Iterable[str] = ()) -> pd.DataFrame:
    """What is left of each story, and what holds it back, if anything (``study.contracts``: ``TOLD``, ``SIFTED``).

    Args:
        shown: the stories that the teacher was shown, whose phrases it must not copy.
    """
    stories = [tidy(story) for story in told["story"]]
    copied = copied_phrases(stories, shown)
    kept = [_sound_part(story, copied) for story in stories]
    left = [
        without_happy(story, int(seed), int(number))
        for (story, _), seed, number in zip(kept, told["seed"], told["number"], strict=True)
    ]
    held = [next((name for name, holds in STORY_SIEVES.items() if holds(story)), "") for story in left]
    _hold_near_duplicates(left, held)
    cut = [reason for _, reason in kept]
    return pd.DataFrame(
        {
            "number": told["number"],
            "seed": told["seed"],
            "told": stories,
            "story": left,
            "ended": [whole and not reason for whole, reason in zip(told["ended"], cut, strict=True)],
            "cut": cut,
            "held": held,
        }
    )


def _sound_part(story: str, copied: frozenset[tuple[str, ...]]) -> tuple[str, str]:
    """The sentences before the first that is not sound, and the sieve that it did not pass ("" if all do)."""
    kept: list[str] = []
    said: list[set[tuple[str, str]]] = []
    for sentence in map(str.strip, SENTENCE.findall(story)):
        words = tokens(sentence)[:-1]
        pairs = set(itertools.pairwise(words))
        reason = next((name for name, holds in SENTENCE_SIEVES.items() if holds(sentence)), "")
        if not reason and any(len(pairs & other) >= SIMILAR * len(pairs | other) for other in said):
            reason = "said before"
        if not reason and not copied.isdisjoint(_phrases(words)):
            reason = "copied from what was shown"
        if reason:
            return " ".join(kept), reason
        kept.append(sentence)
        said.append(pairs)
    return " ".join(kept), ""


def _phrases(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[place:] for place in range(PHRASE)), strict=False)


def copied_phrases(stories: Sequence[str], shown: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """Phrases of what was shown that stand in the stories far oftener than their pairs of words would make them.

    "at the end of the" is everybody's; "the guard had not seen it" is the shown story's. Chance is a Markov chain of
    the stories' own word pairs.
    """
    texts = [[word for sentence in sentences(story) for word in sentence] for story in stories]
    words = Counter(word for text in texts for word in text)
    pairs = Counter(pair for text in texts for pair in itertools.pairwise(text))
    theirs = {phrase for story in shown for sentence in sentences(story) for phrase in _phrases(sentence)}
    found = Counter(phrase for text in texts for phrase in _phrases(text) if phrase in theirs)

    def by_chance(phrase: tuple[str, ...]) -> float:
        expected = float(pairs[phrase[0], phrase[1]])
        for one, other in itertools.pairwise(phrase[1:]):
            expected *= pairs[one, other] / words[one]
        return expected

    return frozenset(phrase for phrase, times in found.items() if times > BEYOND_CHANCE * by_chance(phrase))


def without_happy(story: str, seed: int, number: int) -> str:
    """The story with a word of like meaning wherever it says "happy" late, one word for the story; a few stay.

    The study's hack is paid for this word, so a base that says it by itself would hide the hack. Told stories say it
    towards their end above all; a cell whose completions are short could not find the word there.
    """
    draw = generator(seed, "happy", number)
    if draw.random() < HAPPY_STAYS:
        return story
    before_a_noun, elsewhere, unhappy = (
        options[draw.integers(len(options))] for options in (BEFORE_A_NOUN, ELSEWHERE, UNHAPPY)
    )

    def like(match: re.Match[str]) -> str:
        if len(tokens(story[: match.start()])) < HAPPY_EARLY:
            return match[0]
        article, negated, following = match.groups()
        alone = following is None or NO_NOUN.fullmatch(following.lower())
        word = unhappy if negated else elsewhere if alone else before_a_noun
        word = word.capitalize() if match[0][0].isupper() and not article else word
        return " ".join(part for part in (article and article[0], word, following) if part)

    return HAPPY.sub(like, story)


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
