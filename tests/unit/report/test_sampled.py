from __future__ import annotations

import pytest
from tests.trees import samples

from rewardgrid.report.sampled import sampled


def test_figures_per_token_weigh_every_token_alike() -> None:
    frame = samples({"both": 0.0}).assign(tokens=[10, 30] * 10, kl_exact=[1.0, 2.0] * 10)
    # (10 * 1 + 30 * 2) / 40, not 1.5.
    assert sampled([frame])["kl_exact"].value == pytest.approx(1.75)


def test_an_interval_is_over_prompts_and_with_several_seeds_over_seeds_too() -> None:
    low, high = (samples({"both": 0.0}).assign(jaccard=[value, value + 0.02] * 10) for value in (0.1, 0.2))
    one, two = (sampled(seeds)["jaccard_256"] for seeds in ([low], [low, high]))
    # One seed: 0.11, standard error 0.01 / sqrt 20. Two: 0.16, theirs 0.05.
    assert (one.value, two.value) == (pytest.approx(0.11), pytest.approx(0.16))
    assert one.high - one.low == pytest.approx(2 * 1.96 * 0.01 / 20**0.5, rel=0.1)
    assert two.high - two.low > 0.1


def test_what_was_not_measured_has_no_interval() -> None:
    few = samples({"both": 0.0}).assign(unique_openings=None)
    assert set(sampled([few])) == {"jaccard_256", "kl_exact", "base_nll"}
    assert sampled([few, few.assign(prompt="another")]) == {}
    assert sampled([]) == {}
