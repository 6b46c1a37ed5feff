"""How varied and how whole completions are: pure functions of texts.

Jaccard splits lowercase text at whitespace, as the published study did. Everything else counts *pieces*:
lowercase words without their punctuation, and commas. A *sentence* is as in the rewards: a non-empty run
closed by ``.``, ``?`` or ``!``; a trailing unclosed run is none. A function returns None where there is
nothing to measure, which is not the same as 0.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

JACCARD_DECIMALS = 3
"""Digits that are reported, as in the published tables; ``jaccard`` itself does not round."""

FRAGMENT_WORDS = 3
"""A sentence of at most this many words counts as a fragment ("once upon a.")."""

VOCABULARY_WINDOW = 1000  # words
COMPRESSION_BLOCK = 8192  # bytes

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those each every all both some any no another other such
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves themselves
    who whom whose which what when where why how there here
    of in on at by to from with without into onto over under up down out off about across after before behind
    beside between beyond during for inside near through toward towards until upon around along above below
    and or but nor so yet if then than because while as though although once
    is are was were be been being am has have had do does did will would can could shall should may might must
    not never too very just only also again one
    """.split()  # noqa: SIM905
)
"""Closed-class English words: the frame of a sentence, which a template keeps when its slots vary."""

_PIECE = re.compile(r"\w+(?:['’]\w+)*|,")
_DELIMITER = re.compile(r"[.?!]")


def first_sentence(text: str) -> str:
    """The text up to its first ``.``, stripped (the published definition)."""
    return text.partition(".")[0].strip()


def unique_first_sentences(texts: Iterable[str]) -> int:
    """Distinct first sentences among whole texts."""
    return len({first_sentence(text) for text in texts})


def expected_unique(values: Sequence[Hashable], k: int = 20) -> float | None:
    """Expected number of distinct values in a random subset of ``k``, drawn without replacement.

    A value that occurs c times among n is missed by C(n-c, k) of the C(n, k) subsets (hypergeometric); the
    sum over values is taken in integers, so that only the last division rounds. With n = k it is the number
    of distinct values. None with fewer than ``k`` values, where the figure would be on another scale.
    """
    n = len(values)
    if n < k:
        return None
    subsets = math.comb(n, k)
    return sum(subsets - math.comb(n - count, k) for count in Counter(values).values()) / subsets


def overlaps(texts: Sequence[str]) -> np.ndarray:
    """(words in both) / (words in either) of every two texts, (n, n); NaN of a text with itself and of two empty ones.

    Words are the distinct ones of the whitespace-split lowercase text.
    """
    word_sets = [set(text.lower().split()) for text in texts]
    column = {word: i for i, word in enumerate(sorted(set().union(*word_sets)))}
    incidence = np.zeros((len(texts), len(column)), dtype=np.float32)
    for row, words in zip(incidence, word_sets, strict=True):
        row[[column[word] for word in words]] = 1
    # Counts below 2^24 are exact in float32, whose matrix product is fast; the division is in float64.
    both = (incidence @ incidence.T).astype(np.float64)
    sizes = np.array([len(words) for words in word_sets], dtype=np.float64)
    union = sizes[:, None] + sizes - both
    found = np.divide(both, union, out=np.full_like(both, np.nan), where=union > 0)
    np.fill_diagonal(found, np.nan)
    return found


def jaccard(texts: Sequence[str]) -> float | None:
    """Mean overlap of all pairs of texts, between 0 and 1; None if there is no pair with a word."""
    pairs = overlaps(texts)[np.triu_indices(len(texts), k=1)]
    kept = pairs[~np.isnan(pairs)]
    return float(np.mean(kept)) if len(kept) else None


def rounded(overlap: float | None) -> float | None:
    """A Jaccard index with the digits that are reported."""
    return None if overlap is None else round(overlap, JACCARD_DECIMALS)


def pieces(text: str) -> list[str]:
    """Lowercase words and commas, in order; other punctuation is dropped."""
    return _PIECE.findall(text.lower())


def words(text: str) -> list[str]:
    """Lowercase words without punctuation, in order."""
    return [piece for piece in pieces(text) if piece != ","]


def sentences(text: str) -> list[str]:
    """Non-empty runs closed by a delimiter, without it. A trailing unclosed run is no sentence."""
    return [run.strip() for run in _DELIMITER.split(text)[:-1] if run.strip()]


def skeleton(sentence: str) -> str:
    """What a template keeps of a sentence: function words, commas, ``_`` for other words; runs collapse.

    "one day, she found a big red ball" and "one night, she lost a hat" are both ``one _ , she _ a _``.
    """
    marks = (piece if piece == "," or piece in FUNCTION_WORDS else "_" for piece in pieces(sentence))
    return " ".join(mark for mark, _ in itertools.groupby(marks))


def skeleton_share(texts: Iterable[str]) -> float | None:
    """Share of the commonest skeleton among all sentences; None without sentences.

    A skeleton without any function word or comma counts among the sentences but is no template: random words
    have it too.
    """
    skeletons = [skeleton(sentence) for text in texts for sentence in sentences(text)]
    if not skeletons:
        return None
    frames = Counter(shape for shape in skeletons if shape not in ("", "_"))
    return max(frames.values(), default=0) / len(skeletons)


def comma_rate(texts: Iterable[str]) -> float | None:
    """Commas by words and commas, between 0 and 1; None without any of them."""
    found = [piece for text in texts for piece in pieces(text)]
    return found.count(",") / len(found) if found else None


def sentence_words(texts: Iterable[str]) -> float | None:
    """Mean words per sentence; None without sentences."""
    lengths = _sentence_lengths(texts)
    return sum(lengths) / len(lengths) if lengths else None


def fragment_share(texts: Iterable[str]) -> float | None:
    """Share of sentences with at most ``FRAGMENT_WORDS`` words, those of commas alone among them."""
    lengths = _sentence_lengths(texts)
    return sum(length <= FRAGMENT_WORDS for length in lengths) / len(lengths) if lengths else None


def _sentence_lengths(texts: Iterable[str]) -> list[int]:
    return [len(words(sentence)) for text in texts for sentence in sentences(text)]


def repeated_sentence_share(texts: Iterable[str]) -> float | None:
    """Share of sentences that say, word for word, what an earlier sentence of any text said."""
    said = [tuple(words(sentence)) for text in texts for sentence in sentences(text)]
    return 1 - len(set(said)) / len(said) if said else None


def vocabulary_size(texts: Iterable[str]) -> float | None:
    """Distinct words per 1,000 words: the mean over whole windows of 1,000 consecutive words.

    Windows of one size keep the figure comparable between short and long completions. None below one window.
    """
    stream = [word for text in texts for word in words(text)]
    windows = len(stream) // VOCABULARY_WINDOW
    distinct = (len(set(stream[i * VOCABULARY_WINDOW : (i + 1) * VOCABULARY_WINDOW])) for i in range(windows))
    return sum(distinct) / windows if windows else None


def compression_ratio(texts: Iterable[str]) -> float | None:
    """Compressed bytes by raw bytes (zlib, level 9) of the texts joined by newlines; None without text.

    Whole blocks of 8 KiB are compressed one by one and a shorter rest is left out, unless it is all there is:
    the ratio falls with the length of what is compressed, so only equal lengths compare.
    """
    raw = "\n".join(texts).encode()
    blocks = [raw[i : i + COMPRESSION_BLOCK] for i in range(0, len(raw), COMPRESSION_BLOCK)]
    whole = [block for block in blocks if len(block) == COMPRESSION_BLOCK] or blocks
    return sum(len(zlib.compress(block, 9)) for block in whole) / sum(map(len, whole)) if whole else None


def published(prompts: Sequence[str], completions: Sequence[str]) -> dict[str, float | int | None]:
    """The two figures that the published study gives of its samples, whose texts include the prompts.

    So ``unique_first_sentences`` never falls below the number of distinct ``prompts``, as in the published tables.

    Raises:
        ValueError: not one prompt for each completion.
    """
    texts = [f"{prompt} {completion}" for prompt, completion in zip(prompts, completions, strict=True)]
    return {
        "prompts": len(set(prompts)),
        "unique_first_sentences": unique_first_sentences(texts),
        "jaccard": rounded(jaccard(texts)),
    }


def measure(completions: Sequence[str]) -> dict[str, float | int | None]:
    """Every text signal of a set of completions, without their prompts, under the names that verdict and tables use.

    ``unique_openings`` is the expected number of distinct first sentences among 20: with so many distinct prompts that
    every text is another, the completions alone show whether they begin alike.
    """
    return {
        "samples": len(completions),
        "unique_openings": expected_unique([first_sentence(completion) for completion in completions]),
        "jaccard": rounded(jaccard(completions)),
        "sentence_words": sentence_words(completions),
        "fragment_share": fragment_share(completions),
        "comma_rate": comma_rate(completions),
        "skeleton_share": skeleton_share(completions),
        "repeated_sentence_share": repeated_sentence_share(completions),
        "vocabulary_size": vocabulary_size(completions),
        "compression_ratio": compression_ratio(completions),
    }
