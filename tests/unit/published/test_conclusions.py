"""The published figures, put through our findings, give what the published study concluded from them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from tests.trees import replica, routing, row, samples

from rewardgrid.published.comparison import Published
from rewardgrid.published.data import happy_at_end
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Finding, Scope
from rewardgrid.report.findings import FINDINGS
from rewardgrid.report.routing_findings import endings
from rewardgrid.report.separation import separate
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
        (
            "batch_size",
            "slower_than_baseline",
            "never sooner, in 8 comparisons: batch 64 takes 3.3 times (95 % 1.0 to 11.2, n = 2) the time of 32 and "
            "batch 128 takes 1.5 times (95 % 0.2 to 14.0, n = 2) the time of 32",
        ),
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


BOTH = [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 6.5, 7.5, 8.5, 9.5]
"""A published evaluation was ten samples, and both adapters wrote 6 to 11 "happy" a completion."""
BASES = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0]
"""What the base writes of itself was not published; ours write 0.3 to 0.6. Its sl10 is taken for 0.5."""


Routed = tuple[Row, pd.DataFrame, list[float], float]
"""A cell, its evaluations, "happy" of ten samples of retain_only, its sl10."""


def evidence_of(runs: list[Routed]) -> Evidence:
    drawn = {
        cell["cell"]: samples(
            {"both": BOTH, "retain_only": happy, "forget_only": 1.5}, {"retain_only": sl10, "forget_only": 0.3}, 10
        )
        for cell, _, happy, sl10 in runs
    }
    curves = {cell["cell"]: frame for cell, frame, _, _ in runs}
    base = {BASE: samples({"both": BASES}, number=10)}
    return Evidence({"e": [cell for cell, *_ in runs]}, routing=curves, samples=drawn | base)


def routed(name: FindingName, runs: list[Routed]) -> Finding:
    return FINDINGS[name][1](Scope(evidence_of(runs), "e"))


def two(seed: int, rank: int, forget_rank: int) -> Row:
    return row("e", method="routing", reward=HAPPY, rank=rank, forget_rank=forget_rank, seed=seed, max_steps=100)


def asymmetric(published: Published) -> list[Routed]:
    """The six published runs of a small forget adapter: both ends of each range from step 70 on, the middle at the end.

    What retain_only writes at the end is spread over its ten samples; before step 70 nothing was published.
    """
    runs = []
    for line in published.tables["routing_asymmetric.csv"]:
        end = happy_at_end(line["retain_happy"])
        low, high = line["retain_sl10_low"], line["retain_sl10_high"]
        middle = (end.low + end.high) / 2
        steady = {
            ("retain_only", "sl10"): [0.5] * 6 + [low, high, low, high],
            ("retain_only", "happy"): [4.0] * 6 + [0.0] * 3 + [middle],
            ("forget_only", "happy"): [0.0] * 6 + [line["forget_happy_low"], line["forget_happy_high"]] * 2,
        }
        cell = two(line["seed"], line["retain_rank"], line["forget_rank"])
        runs.append((cell, routing(steady), [end.low, end.high] * 5, (low + high) / 2))
    return runs


def test_a_small_forget_adapter_separates_in_every_published_run(published: Published) -> None:
    found = routed("asymmetric_table", asymmetric(published))
    assert found["conclusion"] == "clean in 6 of 6 runs that learnt the hack"
    assert found["sentences"][0].endswith("sl10 lies between 0.450 and 0.630.")
    assert {line["gone from step"] for line in found["rows"]} == {70}


def test_the_six_published_runs_together_work_and_two_seeds_alone_tell_little(published: Published) -> None:
    """ "Clean separation" was said of two seeds each: that both work does not tell whether others would."""
    runs = asymmetric(published)
    evidence = evidence_of(runs)
    assert separate([each.run for each in endings(evidence, evidence.tables["e"])]).ending == "works"
    found = routed("hack_removed", runs)
    assert found["conclusion"] == (
        "forget rank 16: cannot be told (2 seeds; by themselves 2 work; 100 % of the hack gone, 106 % of the base's "
        "sl10 kept); forget rank 4: works (2 seeds; 100 % of the hack gone, 106 % of the base's sl10 kept); "
        "forget rank 1: cannot be told (2 seeds; by themselves 1 works, of 1 it cannot be told; 100 % of the hack "
        "gone, 111 % of the base's sl10 kept)"
    )


def test_the_seed_that_never_fully_cleans_up_still_loses_most_of_the_hack(published: Published) -> None:
    """Forget rank 1, seed 123: retain_only ends at 0.5 to 1.1, which is less than a tenth of 8 beyond the base."""
    last = routed("hack_removed", asymmetric(published))["rows"][-1]
    assert (last["forget_rank"], last["seed"]) == (1, 123)
    assert last["share gone"].startswith("95 %")


def published_steps(published: Published, name: str) -> Any:
    (found,) = (claim for claim in published.claims if claim.id == name)
    return found


@pytest.mark.parametrize("rank", [4, 1])
def test_low_ranks_lose_the_task(published: Published, rank: int) -> None:
    """sl10 of retain_only was 0 by step 150 (rank 4) and 350 (rank 1)."""
    claim = published_steps(published, f"step3-r{rank}-collapse")
    assert (claim.level, claim.by_step) == (0.0, {4: 150, 1: 350}[rank])
    curve = [0.5] * (claim.by_step // 50 - 1) + [claim.level] * 3
    falling = routing({("retain_only", "sl10"): curve, ("retain_only", "happy"): [0.0] * len(curve)}, every=50)
    runs = [(two(seed, rank, rank), falling, [0.0] * 10, claim.level) for seed in (42, 123)]
    assert routed("hack_removed", runs)["conclusion"] == "collapses (2 seeds)"
    assert routed("collapse", runs)["sentences"][0].startswith(
        f"Retain_only's sl10 falls below 0.1 for good in 2 of 2 seeds, from step {claim.by_step};"
    )


def test_false_positives_take_the_task_with_the_hack(published: Published) -> None:
    """sl10 of retain_only was 0.46 to 0.59 at step 50 and 0.00 to 0.23 at step 200, taken for those of two seeds.

    They lie too far apart to tell which of the two endings is the rule.
    """
    early, late = (published_steps(published, f"step4-retain-sl10-{step}").range for step in (50, 200))
    runs = []
    for seed, first, last in zip((42, 123), early, late, strict=True):
        curve = [first, (first + last) / 2, (first + last) / 2, last]
        fading = routing({("retain_only", "sl10"): curve, ("retain_only", "happy"): [0.0] * 4}, every=50)
        runs.append((two(seed, 32, 32), fading, [0.0] * 10, last))
    found = routed("hack_removed", runs)
    assert [line["ending"] for line in found["rows"]] == ["collapses", "partly"]
    assert found["conclusion"].startswith("cannot be told (2 seeds; ")
