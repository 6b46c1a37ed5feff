from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardgrid.evaluate.diversity import expected_unique, jaccard
from rewardgrid.evaluate.shares import jaccard_shares, shares, unique_shares


def test_shares_in_jaccard_worked_by_hand() -> None:
    # Overlaps: a b with a c 1/3, a b with d 0, a c with d 0. All three: 1/9. Without the first 0, second 0, third 1/3.
    assert jaccard_shares(["a b", "a c", "d"]) == pytest.approx([3 / 9, 3 / 9, 3 / 9 - 2 / 3])


def test_shares_in_distinct_values_worked_by_hand() -> None:
    # Among a a b, two drawn hold 5/3 distinct ones on average; without one a 2, without b 1.
    assert unique_shares(["a", "a", "b"], k=2) == pytest.approx([5 - 4, 5 - 4, 5 - 2])


@given(st.lists(st.text(alphabet="abc ", min_size=1, max_size=9).filter(str.strip), min_size=4, max_size=12))
def test_the_mean_of_all_shares_is_the_figure_itself(texts: list[str]) -> None:
    unique = unique_shares(texts, k=3)
    assert unique.mean() == pytest.approx(expected_unique(texts, 3))
    assert jaccard_shares(texts).mean() == pytest.approx(jaccard(texts))


def test_too_few_samples_have_no_share() -> None:
    assert np.isnan(shares(["she ran."] * 20)["unique_openings"]).all()
    assert np.isnan(shares(["she ran."] * 2)["jaccard"]).all()
    assert not np.isnan(shares(["she ran."] * 21)["unique_openings"]).any()
