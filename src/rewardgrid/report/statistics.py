"""What can be said of a few seeds and many prompts: pure functions of numbers.

Cells that differ in one setting share their seed's draws, so what is judged are differences between such cells.
Whatever rests on one seed has no interval and no P: None, and not 0 or 1. scipy is loaded where it is used, for the
workflow imports this module before it runs anything.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rewardgrid.report.columns import known

CONFIDENCE = 0.95
ALPHA = 0.05
"""A P below this counts; intervals are the 95 % ones that go with it."""

SIGNS_FROM = 6
"""Pairs from which the signs of the differences are shuffled: with fewer, no P of that test can be below 0.05."""

SHUFFLES = 9999
"""Resamples of a permutation test with too many permutations to try all."""


class Mean(NamedTuple):
    """A mean over n values; sd (n-1) and a t-based 95 % interval of the mean need two or more."""

    n: int
    mean: float | None
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, if there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def mean_of(values: Sequence[float | None]) -> Mean:
    """Mean, sd and interval of the values that there are."""
    present = [float(value) for value in values if value is not None and known(value)]
    n = len(present)
    if n == 0:
        return Mean(0, None)
    mean = math.fsum(present) / n
    if n == 1:
        return Mean(1, mean)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in present) / (n - 1))
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return Mean(n, mean, sd, mean - half, mean + half)


@functools.cache
def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def mean_of_steps(values: Sequence[float], block: int) -> Mean:
    """Mean of consecutive steps with an interval that allows for neighbours being alike: that of means of blocks.

    Steps that fill no whole block count in neither. Two blocks are the least for an interval.
    """
    whole = len(values) // block
    return mean_of([math.fsum(values[i * block : (i + 1) * block]) / block for i in range(whole)])


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Standard deviation within groups that differ in their means, and its degrees of freedom.

    None unless some group has two values.
    """
    deviations = [value - math.fsum(group) / len(group) for group in groups for value in group]
    freedom = sum(len(group) - 1 for group in groups if group)
    return (math.sqrt(math.fsum(each**2 for each in deviations) / freedom), freedom) if freedom else None


# --- differences between otherwise equal cells ---------------------------------------------------------


class Difference(NamedTuple):
    """A mean of paired differences: its 95 % interval, its size in their sd (Cohen's d), and P of there being none."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    effect: float | None = None
    p: float | None = None


def difference(differences: Sequence[float]) -> Difference:
    """What paired differences say of their mean.

    The interval is Student's. P is his too for fewer than six pairs; from six on it is that of shuffling the signs of
    the differences, which asks for no normal distribution and where one outlier cannot hide what all pairs agree on.

    Raises:
        ValueError: there is no difference.
    """
    if not differences:
        raise ValueError("no pair")
    n, mean, sd, low, high = mean_of(differences)
    assert mean is not None
    if sd is None:
        return Difference(n, mean)
    # Equal differences (all 0, say) have no size in units of their sd.
    effect = mean / sd if sd > 0 else None
    return Difference(n, mean, low, high, effect, _sign_test(differences) if n >= SIGNS_FROM else _t_test(differences))


def _t_test(values: Sequence[float], limit: float = 0.0, alternative: str = "two-sided") -> float:
    """P of Student's one-sample test; of equal values the limit of what it is as they approach one another."""
    from scipy import stats

    gap = math.fsum(values) / len(values) - limit
    if max(values) - min(values) > 1e-12 * max(1.0, abs(limit), abs(gap)):
        return float(stats.ttest_1samp(values, limit, alternative=alternative).pvalue)
    if abs(gap) <= 1e-12:
        return 1.0 if alternative == "two-sided" else 0.5
    beyond = {"two-sided": True, "less": gap < 0, "greater": gap > 0}[alternative]
    return 0.0 if beyond else 1.0


def _sign_test(values: Sequence[float]) -> float:
    from scipy import stats

    def mean(sample: Any, axis: int) -> Any:
        return np.mean(sample, axis=axis)

    shuffled = stats.permutation_test(
        (np.asarray(values),),
        mean,
        permutation_type="samples",
        n_resamples=SHUFFLES,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(shuffled.pvalue)


def below(values: Sequence[float], limit: float) -> float | None:
    """P that values with a mean of ``limit`` or more would lie as low as these (Student's t, one-sided)."""
    return _t_test(values, limit, "less") if len(values) > 1 else None


def equivalence(differences: Sequence[float], limit: float) -> float | None:
    """P that differences with a mean of ``limit`` or more, either way, would look as small as these.

    Two one-sided t tests (Schuirmann 1987): the larger of their P. Below 0.05 the 90 % interval of the mean lies
    within the limits.
    """
    if len(differences) < 2:
        return None
    return max(_t_test(differences, -limit, "greater"), _t_test(differences, limit, "less"))


def unpaired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of a minus mean of b, for cells that share no draws (Welch); the effect is in their pooled sd."""
    from scipy import stats

    gap = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    within = pooled_sd([a, b])
    if min(len(a), len(b)) < 2 or within is None or within[0] == 0:
        return Difference(min(len(a), len(b)), gap)
    found = stats.ttest_ind(a, b, equal_var=False)
    low, high = found.confidence_interval(CONFIDENCE)
    return Difference(min(len(a), len(b)), gap, float(low), float(high), gap / within[0], float(found.pvalue))


# --- order and rank ------------------------------------------------------------------------------------


def slope(values: Sequence[float]) -> float:
    """Change from the first to the last of equally spaced values, along the straight line that fits them best.

    Of two values it is their difference.
    """
    places = np.arange(len(values)) - (len(values) - 1) / 2
    return float(places @ np.asarray(values) / (places @ places) * (len(values) - 1))


class Correlation(NamedTuple):
    """Spearman's rank correlation and P that shuffled pairs show one as large (one-sided)."""

    rho: float
    p: float


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> Correlation | None:
    """Whether b grows with a; None if either side is constant."""
    from scipy import stats

    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    ranks_a, ranks_b = stats.rankdata(a), stats.rankdata(b)
    # With the ranks fixed, rho grows with the sum of their products.
    centred = ranks_a - ranks_a.mean()

    def products(sample: Any, axis: int) -> Any:
        return np.sum(sample * centred, axis=axis)

    shuffled = stats.permutation_test(
        (ranks_b,),
        products,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=SHUFFLES,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return Correlation(float(stats.spearmanr(a, b).statistic), float(shuffled.pvalue))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """P adjusted for having asked all these questions (Holm 1979); a question without a P is not counted."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    worst = 0.0
    for rank, (p, i) in enumerate(order):
        worst = max(worst, min(1.0, p * (len(order) - rank)))
        adjusted[i] = worst
    return adjusted


# --- shares --------------------------------------------------------------------------------------------


def more_often(first: tuple[int, int], second: tuple[int, int]) -> float:
    """P that two equal shares would differ as much as ``hits of n`` here (Fisher's exact test, one-sided)."""
    from scipy import stats

    table = [[hits, n - hits] for hits, n in (first, second)]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def largest_share(hits: int, n: int) -> float:
    """The share that ``hits of n`` is still compatible with (Clopper and Pearson's one-sided 95 % limit)."""
    from scipy import stats

    return float(stats.binomtest(hits, n, alternative="less").proportion_ci(CONFIDENCE).high)


# --- seeds and prompts ---------------------------------------------------------------------------------


Bounds = tuple[float, float]
"""The smallest and the largest value that a quantity can have."""

UNBOUNDED: Bounds = (-math.inf, math.inf)


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(values: ArrayLike, bounds: Bounds = UNBOUNDED) -> Estimate:
    """The mean of values (S seeds, P prompts) with its interval, for seeds and prompts that others might have been.

    All seeds share the prompts, so the mean varies by both: each has a Student interval, with S - 1 and P - 1 degrees
    of freedom, and the squares of their half-widths add up (Howe 1974). One seed has an interval of prompts alone.

    Args:
        bounds: what lies beyond them is cut off.
    """
    array = np.asarray(values, dtype=np.float64)
    value = float(array.mean())
    sides = [array.mean(axis=other) for other, number in ((1, array.shape[0]), (0, array.shape[1])) if number > 1]
    half = math.sqrt(math.fsum((t_quantile(len(side) - 1) * side.std(ddof=1)) ** 2 / len(side) for side in sides))
    return Estimate(*clipped((value, value - half, value + half), bounds))


def clipped(values: Sequence[float], bounds: Bounds) -> list[float]:
    """Values moved into what is possible."""
    return [min(max(value, bounds[0]), bounds[1]) for value in values]


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Values whose mean is ``above.mean() / below.mean()``, and that vary as this ratio does (to the first order)."""
    whole = above.mean() / below.mean()
    found: np.ndarray = whole + (above - whole * below) / below.mean()
    return found
