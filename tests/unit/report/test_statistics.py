"""Statistics on figures that can be worked out by hand, or looked up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardgrid.report.statistics import (
    below,
    difference,
    equivalence,
    estimate,
    holm,
    largest_share,
    mean_of,
    more_often,
    pooled_sd,
    rank_correlation,
    ratio,
    slope,
    t_quantile,
    unpaired,
)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423)])
def test_the_t_quantile_is_the_tabled_one(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)


def test_an_interval_of_three_seeds_is_wider_than_their_standard_error_by_4_3() -> None:
    found = mean_of([0.8, 0.9, 1.0, None])
    assert (found.n, found.mean, found.sd) == (3, pytest.approx(0.9), pytest.approx(0.1))
    assert found.high == pytest.approx(0.9 + 4.3027 * 0.1 / math.sqrt(3), abs=1e-5)
    assert found.low == pytest.approx(0.9 - 4.3027 * 0.1 / math.sqrt(3), abs=1e-5)


def test_one_seed_has_no_interval() -> None:
    assert mean_of([0.8]) == (1, 0.8, None, None, None)
    assert mean_of([None]) == (0, None, None, None, None)
    assert difference([0.3]) == (1, 0.3, None, None, None, None)
    assert below([0.1], 0.5) is None
    assert equivalence([0.0], 0.1) is None
    assert unpaired([0.9], [0.5, 0.6]).p is None


def test_a_pooled_sd_leaves_the_differences_between_groups_out() -> None:
    # Deviations +-1 about 2 and +-2 about 12: (1 + 1 + 4 + 4) / 2 = 5. A group of one adds nothing.
    assert pooled_sd([[1, 3], [10, 14], [100]]) == (pytest.approx(math.sqrt(5)), 2)
    assert pooled_sd([[1], [2]]) is None


def test_a_mean_difference_of_few_pairs_is_judged_by_student() -> None:
    found = difference([1.0, 2.0, 3.0])
    # t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom: P = 1 - t / sqrt(t^2 + 2) = 1 - 3.4641 / sqrt 14.
    assert found.p == pytest.approx(1 - 3.4641 / math.sqrt(14), abs=1e-4)
    assert found.effect == pytest.approx(2.0)
    assert (found.low, found.high) == (pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4), pytest.approx(4.4841, abs=1e-4))


def test_an_outlier_does_not_hide_that_all_six_pairs_fall() -> None:
    """The published Jaccard at penalty 1.1 minus that at 1.05."""
    found = difference([-0.018, -0.179, -0.031, -0.009, -0.010, -0.007])
    # Of the 64 ways to put signs, two are as far out: all minus and all plus.
    assert found.p == pytest.approx(2 / 64)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high


def test_equal_differences_are_certain() -> None:
    assert difference([0.0, 0.0]).p == 1.0
    assert difference([0.1, 0.1]).p == 0.0
    assert difference([0.1, 0.1]).effect is None
    assert below([0.1, 0.1], 0.2) == 0.0
    assert below([0.1, 0.1], 0.0) == 1.0
    # At the limit itself nothing speaks for either side.
    assert below([0.1, 0.1], 0.1) == 0.5


def test_being_below_a_limit_is_one_sided() -> None:
    # The same t as above, on the other side and halved: 2 degrees of freedom.
    assert below([-1.0, -2.0, -3.0], 0.0) == pytest.approx((1 - 3.4641 / math.sqrt(14)) / 2, abs=1e-4)
    assert below([1.0, 2.0, 3.0], 0.0) == pytest.approx(1 - (1 - 3.4641 / math.sqrt(14)) / 2, abs=1e-4)


def test_equivalence_asks_whether_the_ninety_percent_interval_lies_within_the_limits() -> None:
    # Mean 0, sd 0.01, n = 3: half the 90 % interval is 2.92 * 0.01 / sqrt 3 = 0.01686.
    found = [equivalence([-0.01, 0.0, 0.01], limit) for limit in (0.0168, 0.0169)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[1] < 0.05 < found[0]


def test_means_of_cells_that_share_nothing_are_compared_without_equal_variances() -> None:
    # Variances 2 and 50 over two values each: standard error sqrt 26, Welch's degrees
    # of freedom 26^2 / (1 + 625) = 1.08.
    found = unpaired([1.0, 3.0], [10.0, 20.0])
    assert found.mean == -13
    assert found.effect == pytest.approx(-13 / math.sqrt(26))
    assert found.high is not None
    # The quantile lies between those of 1 and 2 degrees of freedom, 12.71 and 4.30, near the former.
    assert 8 < (found.high + 13) / math.sqrt(26) < 12.71


def test_a_slope_is_the_change_along_the_line_of_best_fit() -> None:
    assert slope([3.0, 5.0]) == pytest.approx(2.0)
    # Of three values the middle one has no weight.
    assert slope([1.0, 9.0, 2.0]) == pytest.approx(1.0)
    assert slope([0.0, 1.0, 2.0, 3.0]) == pytest.approx(3.0)


def test_ranks_of_ties_are_their_mean_and_p_counts_permutations() -> None:
    found = rank_correlation([1, 2, 3, 4], [10, 20, 20, 90])
    assert found is not None
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, sums of squares 4.5 and 5.
    assert found.rho == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    # Of the 24 permutations only this one and the one that swaps the equals are as good.
    assert found.p == pytest.approx(2 / 24)
    assert rank_correlation([1, 1], [1, 2]) is None


def test_holm_multiplies_the_smallest_by_all_and_never_orders_them_anew() -> None:
    # 0.01 * 3, 0.02 * 2, and 0.03 * 1 raised to what came before it.
    assert holm([0.03, None, 0.01, 0.02]) == [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_shares_are_compared_exactly() -> None:
    # All four of four against none of four: one of the 70 ways to place four hits among eight.
    assert more_often((4, 4), (0, 4)) == pytest.approx(1 / 70)
    assert more_often((0, 4), (4, 4)) == pytest.approx(1.0)


def test_none_of_ten_samples_is_compatible_with_a_quarter() -> None:
    # 0.7411^10 = 0.05.
    assert largest_share(0, 10) == pytest.approx(0.2589, abs=1e-4)


def test_one_seed_has_an_interval_of_its_prompts_alone() -> None:
    found = estimate(np.tile([0.0, 1.0], 200)[None, :])
    half = 1.9659 * math.sqrt(0.25 * 400 / 399) / math.sqrt(400)
    assert found == (0.5, pytest.approx(0.5 - half, abs=1e-5), pytest.approx(0.5 + half, abs=1e-5))


def test_two_seeds_are_not_taken_for_surer_than_they_are() -> None:
    found = estimate(np.array([[0.4] * 50, [0.6] * 50]))
    # The seeds' standard error is 0.1, and Student's factor with one degree of freedom 12.7.
    assert (found.low, found.high) == (pytest.approx(0.5 - 1.27062, abs=1e-4), pytest.approx(0.5 + 1.27062, abs=1e-4))
    assert estimate(np.array([[0.4] * 50, [0.6] * 50]), (0.0, 1.0)) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("seeds", [1, 2, 3, 6])
@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0])
def test_an_interval_holds_the_truth_in_95_of_100_studies(seeds: int, spread: float) -> None:
    rng, prompts, studies = np.random.default_rng(seeds), 40, 1500
    own = rng.normal(0, spread, (studies, seeds, 1)) if seeds > 1 else 0.0
    drawn = own + rng.normal(0, 1, (studies, 1, prompts)) + rng.normal(0, 0.5, (studies, seeds, prompts))
    found = [estimate(values) for values in drawn]
    held = sum(each.low <= 0 <= each.high for each in found) / studies
    # Seeds that differ much decide alone; where both count, the interval errs on the wide side.
    assert 0.935 < held <= (0.965 if seeds == 1 or spread == 3.0 else 1.0)


def test_a_ratio_holds_the_true_one_in_95_of_100_studies() -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(4, 0.25, (1500, 1, 60))
    mine = 0.8 * base * (1 + rng.normal(0, 0.05, (1500, 4, 1))) + rng.normal(0, 0.2, (1500, 4, 60))
    found = [estimate(ratio(each, np.repeat(other, 4, axis=0))) for each, other in zip(mine, base, strict=True)]
    assert 0.935 < sum(each.low <= 0.8 <= each.high for each in found) / 1500 <= 1.0
    assert found[0].value == pytest.approx(mine[0].mean() / base[0].mean())


def test_what_two_arrays_share_cancels() -> None:
    shared = np.random.default_rng(1).normal(size=(3, 100))
    gap, alone = estimate((shared + 0.2) - shared), estimate(shared)
    assert (gap.low, gap.high) == (pytest.approx(0.2), pytest.approx(0.2))
    assert alone.high - alone.low > 0.1
    whole = estimate(ratio(0.5 * (shared + 4), shared + 4))
    assert (whole.low, whole.high) == (pytest.approx(0.5), pytest.approx(0.5))
