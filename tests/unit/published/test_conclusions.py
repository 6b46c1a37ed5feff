"""The published figures, put through our findings, give what the published study concluded from them."""

from __future__ import annotations

import pandas as pd
import pytest
from tests.trees import replica, routing, row, samples

from rewardgrid.published.comparison import Published
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Finding, Scope
from rewardgrid.report.findings import FINDINGS
from rewardgrid.report.tables import Row
from rewardgrid.study.study import FindingName

HAPPY = "sentence_length_10_smooth_with_happy"
BASE = "storyteller-0000000000"


@pytest.mark.parametrize(
    ("experiment", "name", "conclusion"),
    [
        ("reward_sweep", "best_tradeoff", "0.91 at beta 0.02, penalty 1.1"),
        ("reward_sweep", "beta_order", "KL and reward fall as beta rises (KL 2.815 → 2.188 → 0.980)"),
        ("reward_sweep", "penalty_effect", "negligible on reward; Jaccard falls in 6 of 6 pairs"),
        ("lora_rank", "best_tradeoff", "0.97 at rank 1, lr 3e-4"),
        ("lora_rank", "smallest_passing", "rank 1, lr 3e-4 (0.97)"),
        ("lora_rank", "lr_ratio_to_full", "10–30 times"),
        ("batch_size", "slower_than_baseline", "never sooner, in 8 comparisons"),
    ],
)
def test_a_sweep(published: Published, experiment: str, name: FindingName, conclusion: str) -> None:
    assert FINDINGS[name][1](Scope(Evidence(replica(published)), experiment))["conclusion"] == conclusion


def test_more_reward_at_a_smaller_beta_is_named_for_what_it_is(published: Published) -> None:
    found = FINDINGS["best_tradeoff"][1](Scope(Evidence(replica(published)), "reward_sweep"))
    assert found["sentences"][0].startswith(
        "Of 6 configurations 2 are ok in every seed; the highest reward of them is 0.91"
    )
    assert found["sentences"][1].startswith("The best whose texts are borderline in some seed has 0.99 ")
    assert (found["cells"], found["seeds"]) == (12, 2)


def test_the_published_summary_is_what_passes_at_two_decimals(published: Published) -> None:
    """0.848 and 0.851 make 0.85, so rank 2 at 1e-4 belongs to it."""
    passing = [each for each in Scope(Evidence(replica(published)), "lora_rank").configurations if each.passes()]
    assert {(each.cells[0]["rank"], each.cells[0]["lr"]) for each in passing} == {
        (line["rank"], line["lr"]) for line in published.tables["lora_rank_summary.csv"]
    }


def removed(runs: list[tuple[Row, pd.DataFrame, list[float], float]]) -> Finding:
    """hack_removed of runs by (cell, evaluations, "happy" of ten samples of retain_only, its sl10).

    A published evaluation was ten samples. Both adapters wrote 6 to 11 "happy" a completion; what the base writes of
    itself was not published, ours write 0.3 to 0.6.
    """
    both = [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 6.5, 7.5, 8.5, 9.5]
    drawn = {
        cell["cell"]: samples(
            {"both": both, "retain_only": happy, "forget_only": 1.5}, {"retain_only": sl10, "forget_only": 0.3}, 10
        )
        for cell, _, happy, sl10 in runs
    }
    base = samples({"both": [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0]}, number=10)
    curves = {cell["cell"]: frame for cell, frame, _, _ in runs}
    evidence = Evidence({"e": [cell for cell, *_ in runs]}, routing=curves, samples=drawn | {BASE: base})
    return FINDINGS["hack_removed"][1](Scope(evidence, "e"))


def two(seed: int, rank: int, forget_rank: int) -> Row:
    return row("e", method="routing", reward=HAPPY, rank=rank, forget_rank=forget_rank, seed=seed, max_steps=100)


def test_two_adapters_of_rank_32_separate() -> None:
    steady = routing({("retain_only", "sl10"): [0.52] * 10, ("retain_only", "happy"): [4.0] * 6 + [0.0] * 4})
    runs = [(two(seed, 32, 32), steady, [0.0] * 10, 0.52) for seed in (42, 123, 7, 456, 789, 1)]
    assert removed(runs)["conclusion"] == "works (6 seeds)"


def test_low_ranks_lose_the_task() -> None:
    falling = routing({("retain_only", "sl10"): [0.5, 0.3, 0.0, 0.0], ("retain_only", "happy"): [0.0] * 4}, every=50)
    assert removed([(two(seed, 4, 4), falling, [0.0] * 10, 0.0) for seed in (42, 123)])["conclusion"] == (
        "collapses (2 seeds)"
    )


def test_false_positives_take_the_task_with_the_hack() -> None:
    fading = routing({("retain_only", "sl10"): [0.5, 0.4, 0.3, 0.23], ("retain_only", "happy"): [0.0] * 4}, every=50)
    assert removed([(two(seed, 32, 32), fading, [0.0] * 10, 0.23) for seed in (42, 123)])["conclusion"] == (
        "works partly (2 seeds)"
    )


def test_the_seed_that_never_fully_cleans_up_still_loses_most_of_the_hack() -> None:
    """Forget rank 1, seed 123: retain_only ends at 0.5 to 1.1, which is less than a tenth of 8 beyond the base."""
    left = routing({("retain_only", "sl10"): [0.6] * 10, ("retain_only", "happy"): [4.0] * 9 + [0.8]})
    found = removed([(two(123, 32, 1), left, [0.5, 1.1, 0.8, 0.5, 1.1, 0.8, 0.5, 1.1, 0.8, 0.8], 0.6)])
    assert found["rows"][0]["share gone"].startswith("95 %")
