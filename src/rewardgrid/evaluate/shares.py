"""What each sample has a share in, of figures that are no means over samples: pure functions of texts.

Jackknife pseudo-values: n times the figure of all n samples, less n - 1 times that of the others. Of the figures here
(U-statistics) their mean is the figure itself, so it can be drawn anew by prompts like any mean (Efron 1982).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rewardgrid.evaluate.diversity import expected_unique, first_sentence, overlaps


def shares(completions: Sequence[str]) -> dict[str, np.ndarray]:
    """Shares in ``jaccard`` and ``unique_openings``, a value for each completion; NaN where there is no figure."""
    openings = [first_sentence(text) for text in completions]
    return {"jaccard": jaccard_shares(completions), "unique_openings": unique_shares(openings)}


def jaccard_shares(texts: Sequence[str]) -> np.ndarray:
    """Shares in the mean overlap of all pairs of texts."""
    pairs = overlaps(texts)
    sums, counts = np.nansum(pairs, axis=1), (~np.isnan(pairs)).sum(axis=1)
    # Each pair stands in two rows.
    total, number = sums.sum() / 2, counts.sum() / 2
    if not (number > counts).all():
        return np.full(len(texts), np.nan)
    return _pseudo(total / number, (total - sums) / (number - counts))


def unique_shares(values: Sequence[str], k: int = 20) -> np.ndarray:
    """Shares in the number of distinct values that is expected among ``k``."""
    whole = expected_unique(values, k)
    if whole is None or len(values) <= k:
        return np.full(len(values), np.nan)
    counts = Counter(values)
    without = {}
    for value, count in counts.items():
        if count not in without:
            # What is left depends on how often the value that is left out occurs, and not on which it is.
            fewer = expected_unique(list((counts - Counter([value])).elements()), k)
            assert fewer is not None
            without[count] = fewer
    return _pseudo(whole, np.array([without[counts[value]] for value in values]))


def _pseudo(whole: float, without: np.ndarray) -> np.ndarray:
    n = len(without)
    return n * whole - (n - 1) * without
