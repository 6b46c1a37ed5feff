from __future__ import annotations

import typing
from typing import Any

import pandas as pd
import pytest
from tests.trees import history, routing, row, samples

from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import NOT_ENOUGH, Finding, Question, Scope, Window
from rewardgrid.report.findings import FINDINGS, compute
from rewardgrid.report.statistics import difference
from rewardgrid.report.tables import Row
from rewardgrid.report.words import change_in_words, in_words, p_in_words, spread, times_in_words
from rewardgrid.study import study

BASE = "storyteller-0000000000"


def find(name: study.FindingName, rows: list[Row], others: dict[str, list[Row]] | None = None, **more: Any) -> Finding:
    windows, adjusted = more.pop("windows", ()), more.pop("adjusted", {})
    evidence = Evidence({"e": rows, **(others or {})}, **more)
    return FINDINGS[name][1](Scope(evidence, "e", (), windows, adjusted=adjusted))


def sweep(figures: dict[tuple[float, float, int], tuple[float, float]], **more: Any) -> list[Row]:
    """Cells from (beta, penalty, seed) -> (reward, KL)."""
    return [
        row("e", beta=beta, repetition_penalty=penalty, seed=seed, final_reward=reward, final_kl=kl, **more)
        for (beta, penalty, seed), (reward, kl) in figures.items()
    ]


def test_every_finding_that_a_configuration_can_ask_for_exists() -> None:
    assert set(FINDINGS) == set(typing.get_args(study.FindingName))


@pytest.mark.parametrize("name", sorted(FINDINGS))
def test_without_finished_cells_a_finding_says_so(name: study.FindingName) -> None:
    found = find(name, [row("e", state="missing", method="lora", rank=1)])
    assert found["conclusion"] == NOT_ENOUGH
    assert found["sentences"][0].startswith("Not enough cells: ")
    assert found["cells"] == 0


def test_findings_come_in_the_order_asked_for() -> None:
    scope = Scope(Evidence({"e": sweep({(0.02, 1.1, 42): (0.9, 1.0)})}), "e")
    assert [(entry["name"], entry["title"]) for entry in compute(scope, ["penalty_effect", "best_tradeoff"])] == [
        ("penalty_effect", "Effect of the repetition penalty"),
        ("best_tradeoff", "Best trade-off"),
    ]


# --- verdicts ------------------------------------------------------------------------------------------


def test_verdicts_by_the_published_signals_stand_beside_those_by_all() -> None:
    chopped = {"verdict": "degenerate", "reasons": "gibberish, chopped sentences"}
    rows = sweep({(0.02, 1.1, 1): (0.8, 1.0)}, verdict_published_signals="ok", **chopped)
    rows += sweep({(0.01, 1.1, 1): (0.9, 2.0)}, verdict_published_signals="degenerate", **chopped)
    rows += sweep({(0.02, 1.1, 2): (0.8, 1.0)}, verdict_published_signals="ok", verdict="ok")
    rows += sweep({(0.02, 1.1, 3): (0.8, 1.0)}, state="diverged")
    found = find("published_signals", rows)
    assert found["conclusion"] == "2 ok, 1 degenerate; by all signals 1 ok, 2 degenerate"
    assert found["sentences"] == [
        "By all signals the verdicts are 1 ok, 2 degenerate; by the published ones alone 2 ok, 1 degenerate.",
        "1 cell of 3 differs; what was seen in it: gibberish in 1 cell, chopped sentences in 1.",
    ]
    assert [
        (each["beta"], each["n"], each["by all signals"], each["by the published ones"]) for each in found["rows"]
    ] == [
        (0.02, 2, "1 ok, 1 degenerate", "2 ok"),
        (0.01, 1, "1 degenerate", "1 degenerate"),
    ]
    same = find("published_signals", rows[2:3])
    assert (same["conclusion"], len(same["sentences"])) == ("the same, 1 ok", 1)


# --- rewards -------------------------------------------------------------------------------------------


def test_only_a_configuration_that_is_ok_in_every_seed_is_a_trade_off() -> None:
    rows = sweep({(0.02, 1.1, 1): (0.8, 1.0), (0.02, 1.1, 2): (0.8, 1.0), (0.01, 1.1, 1): (0.9, 2.0)})
    rows += sweep({(0.01, 1.1, 2): (0.9, 2.0)}, verdict="borderline")
    found = find("best_tradeoff", rows)
    assert found["conclusion"] == "0.80 at beta 0.02"
    assert found["sentences"] == [
        "Of 2 configurations one is ok in every seed; its reward is 0.80 (95 % 0.80 to 0.80) at beta 0.02, "
        "with a KL of 1.00 nats per token (2 seeds: 2 ok).",
        "The best whose texts are borderline in some seed has 0.90 (95 % 0.90 to 0.90) at beta 0.01, with a KL of "
        "2.00 nats per token (2 seeds: 1 borderline, 1 ok).",
    ]


def test_rewards_that_are_equal_at_two_decimals_are_decided_by_kl() -> None:
    rows = sweep({(0.02, 1.1, 1): (0.849, 1.0), (0.01, 1.1, 1): (0.8501, 2.0), (0.05, 1.1, 1): (0.844, 0.1)})
    assert find("best_tradeoff", rows)["conclusion"] == "0.85 at beta 0.02"
    bases = {BASE: {"rewards": {"sentence_length_10_smooth": 0.474, "happy_count": 3.0}}}
    assert find("best_tradeoff", rows, bases=bases)["conclusion"] == "0.85 at beta 0.02, the base itself 0.47"


def test_a_degenerate_seed_rules_a_configuration_out_however_high_its_reward() -> None:
    rows = sweep({(0.02, 1.1, 1): (0.8, 1.0), (0.01, 1.1, 1): (0.99, 3.0)})
    rows += sweep({(0.01, 1.1, 2): (0.99, 3.0)}, verdict="degenerate")
    found = find("best_tradeoff", rows)
    assert found["conclusion"] == "0.80 at beta 0.02"
    assert len(found["sentences"]) == 1


def test_a_diverged_seed_rules_a_configuration_out_and_is_mentioned() -> None:
    rows = sweep({(0.02, 1.1, 1): (0.8, 1.0), (0.01, 1.1, 1): (0.9, 1.0)})
    rows.append(row("e", state="diverged", beta=0.01, seed=2))
    found = find("best_tradeoff", rows)
    assert found["conclusion"] == "0.80 at beta 0.02"
    assert found["sentences"][-1] == "1 cell diverged and is in no mean."


def test_what_never_left_the_base_is_no_trade_off() -> None:
    bad = sweep({(0.01, 1.1, 1): (0.9, 1.0)}, verdict="degenerate")
    idle = sweep({(0.02, 1.1, 1): (0.4, 0.004)})
    assert find("best_tradeoff", [*bad, *idle])["conclusion"] == (
        "none that learnt anything is ok in every seed, at a reward of 0.90"
    )
    moved = sweep({(0.02, 1.1, 1): (0.4, 0.006)})
    assert find("best_tradeoff", [*bad, *moved])["conclusion"] == "0.40 at beta 0.02"


def test_where_none_is_ok_it_is_told_what_was_earned_and_what_was_lost() -> None:
    rows = sweep({(0.02, 1.1, 1): (0.821, 1.0)}, verdict="degenerate", reasons="gibberish, chopped sentences")
    rows += sweep({(0.01, 1.1, 1): (0.99, 1.0)}, verdict="degenerate", reasons="chopped sentences, template")
    assert find("best_tradeoff", rows)["conclusion"] == (
        "all degenerate, at rewards of 0.82–0.99 (chopped sentences in 2 cells, gibberish in 1, template in 1)"
    )


def test_none_that_is_ok_is_a_finding_too() -> None:
    assert find("best_tradeoff", sweep({(0.02, 1.1, 1): (0.8, 1.0)}, verdict="degenerate"))["conclusion"] == (
        "degenerate, at a reward of 0.80"
    )
    assert find("best_tradeoff", sweep({(0.02, 1.1, 1): (0.8, 1.0)}, verdict="degenerate"))["sentences"] == [
        "The only configuration is degenerate."
    ]
    one, other = {(0.02, 1.1, 1): (0.8, 1.0)}, {(0.01, 1.1, 1): (0.7, 1.0)}
    assert find("best_tradeoff", sweep(one | other, verdict="degenerate"))["conclusion"] == (
        "all degenerate, at rewards of 0.70–0.80"
    )
    alone = find("best_tradeoff", sweep(one, verdict="borderline"))
    assert (alone["conclusion"], alone["sentences"][0]) == (
        "not ok in every seed, at a reward of 0.80",
        "The only configuration is not ok in every seed.",
    )
    found = find("best_tradeoff", sweep(one | other, verdict="borderline"))
    assert found["conclusion"] == "none is ok in every seed, at rewards of 0.70–0.80"
    assert found["sentences"][1].startswith("The best whose texts are borderline in some seed has 0.80 at ")


def test_rewards_of_different_kinds_are_not_compared() -> None:
    rows = [
        row("e", reward="sentence_length_10", final_reward=0.2),
        row("e", reward="sentence_length_5", final_reward=0.9),
    ]
    assert find("best_tradeoff", rows)["conclusion"] == "0.20 at sentence_length_10; 0.90 at sentence_length_5"


def penalties(changes: list[float], column: str = "final_reward") -> list[Row]:
    """Pairs of cells at penalties 1.05 and 1.1 whose figure changes by so much; the other figure stays."""
    cells = []
    for seed, change in enumerate(changes):
        for penalty, value in ((1.05, 0.5), (1.1, 0.5 + change)):
            figures = {"final_reward": 0.5, "jaccard": 0.2} | {column: value}
            cells.append(row("e", repetition_penalty=penalty, seed=seed, **figures))
    return cells


def test_an_effect_is_negligible_only_if_it_is_surely_small() -> None:
    # Mean 0, sd 0.01: half the 90 % interval of three pairs is 0.0169, of two 0.0631.
    found = find("penalty_effect", penalties([-0.01, 0.0, 0.01]))
    assert found["conclusion"] == "negligible on reward; negligible on Jaccard"
    assert find("penalty_effect", penalties([-0.01, 0.01]))["conclusion"] == (
        "on reward cannot be told; negligible on Jaccard"
    )


def test_one_pair_tells_nothing_of_an_effect() -> None:
    found = find("penalty_effect", penalties([0.3]))
    assert found["conclusion"].startswith("on reward cannot be told with n = 1")
    assert "changes reward by +0.300 (n = 1)" in found["sentences"][0]


def test_an_effect_that_all_pairs_share_is_told_although_one_is_an_outlier() -> None:
    found = find("penalty_effect", penalties([-0.018, -0.179, -0.031, -0.009, -0.010, -0.007], "jaccard"))
    assert found["conclusion"] == "negligible on reward; Jaccard falls in 6 of 6 pairs"
    assert [line["n"] for line in found["rows"]] == [6, 6]


def test_the_penalty_is_compared_in_cells_that_differ_in_it_alone() -> None:
    rows = sweep(
        {
            (0.02, 1.0, 1): (0.80, 1.0),
            (0.02, 1.1, 1): (0.83, 1.0),
            # Without a partner these would make the penalty look like a difference of 0.2.
            (0.01, 1.1, 1): (0.99, 1.0),
            (0.02, 1.1, 2): (0.99, 1.0),
        }
    )
    found = find("penalty_effect", rows)
    assert found["rows"][0]["change"] == pytest.approx(0.03)
    assert found["cells"] == 2


def betas(*lines: tuple[float, float, float]) -> list[Row]:
    """For each seed the rewards at three betas; the KL is twice the reward."""
    return [
        row("e", beta=beta, seed=seed, final_reward=reward, final_kl=2 * reward)
        for seed, line in enumerate(lines)
        for beta, reward in zip((0.003, 0.01, 0.02), line, strict=True)
    ]


def test_an_order_is_told_if_it_is_none_of_chance_and_there_at_each_step() -> None:
    falling = find("beta_order", betas((0.9, 0.8, 0.7), (0.92, 0.8, 0.71)))
    assert falling["conclusion"] == "KL and reward fall as beta rises (KL 1.820 → 1.600 → 1.410)"
    assert falling["rows"][-1]["change"] == pytest.approx(-0.205)
    # The same at the ends, but up in between.
    bent = find("beta_order", betas((0.9, 0.95, 0.7), (0.92, 0.95, 0.71)))
    assert bent["conclusion"].startswith("whether KL and reward fall cannot be told")
    rising = find("beta_order", betas((0.7, 0.8, 0.9), (0.71, 0.8, 0.92)))
    assert rising["conclusion"].startswith("KL and reward do not fall as beta rises")
    wild = find("beta_order", betas((0.9, 0.8, 0.7), (0.7, 0.75, 0.72)))
    assert wild["conclusion"].startswith("whether KL and reward fall cannot be told")


def test_one_set_of_cells_tells_no_order() -> None:
    assert find("beta_order", betas((0.9, 0.8, 0.7)))["conclusion"].startswith(
        "whether KL and reward fall cannot be told with n = 1"
    )


def test_a_cell_missing_at_one_beta_is_left_out_at_the_others() -> None:
    rows = betas((0.9, 0.8, 0.7), (0.92, 0.8, 0.71))
    # Seed 9 exists at the lowest beta only; with its low KL the order would seem to be the other way round.
    rows += [
        row("e", beta=0.003, seed=9, final_reward=0.1, final_kl=0.0),
        row("e", state="diverged", beta=0.02, seed=9),
    ]
    found = find("beta_order", rows)
    assert found["conclusion"].startswith("KL and reward fall as beta rises")
    assert found["cells"] == 6


def lora(rank: int, lr: float, reward: float, verdict: str = "ok", **more: Any) -> Row:
    return row("e", method="lora", rank=rank, lr=lr, final_reward=reward, verdict=verdict, **more)


def test_the_smallest_rank_must_reach_the_threshold_with_every_seed_ok() -> None:
    rows = [lora(1, 3e-4, 0.99, "borderline"), lora(2, 3e-4, 0.844), lora(4, 1e-4, 0.86), lora(4, 3e-4, 0.9)]
    found = find("smallest_passing", [*rows, lora(8, 3e-4, 0.99)])
    assert found["conclusion"] == "rank 4, lr 3e-4 (0.90)"
    assert "Tried: ranks 1, 2, 4 and 8." in found["sentences"][0]
    assert find("smallest_passing", rows[:2])["conclusion"] == "no rank reaches 0.85 with every seed ok"


def test_the_lr_ratio_needs_a_sound_full_fine_tuning_of_the_same_base_and_reward() -> None:
    rows = [lora(1, 3e-4, 0.95), lora(8, 1e-4, 0.97), lora(32, 3e-5, 0.9, "borderline"), lora(16, 1e-5, 0.5)]
    full = {"full": [row("full", lr=1e-5, final_reward=0.9), row("full", lr=1e-3, final_reward=0.99)]}
    full["full"][1]["verdict"] = "degenerate"  # type: ignore[index]
    found = find("lr_ratio_to_full", rows, full)
    assert found["conclusion"] == "cannot be told with n = 1 (10–30 times)"
    assert [line["ratio"] for line in found["rows"]] == [30, 10]
    assert "n = 1" in found["sentences"][-1]
    other = {"full": [row("full", lr=1e-5, reward="sentence_length_5")]}
    assert find("lr_ratio_to_full", rows, other)["conclusion"] == NOT_ENOUGH


def seeds(rank: int, lr: float, *rewards: float) -> list[Row]:
    return [lora(rank, lr, reward, seed=seed) for seed, reward in enumerate(rewards)]


def test_the_lr_ratio_reaches_over_every_rate_that_is_not_surely_worse() -> None:
    full = {"full": [row("full", lr=1e-5, seed=seed, final_reward=0.9) for seed in (1, 2)]}
    # At rank 8 the second rate is as good but for chance, the third surely is not.
    rows = [*seeds(8, 1e-4, 0.95, 0.96, 0.97), *seeds(8, 3e-4, 0.94, 0.97), *seeds(8, 5e-5, 0.86, 0.861, 0.862)]
    found = find("lr_ratio_to_full", rows, full)
    assert [(line["ratio"], line["compatible with"]) for line in found["rows"]] == [(10, "10–30")]
    assert found["conclusion"] == "10 times, and up to 30 is compatible"
    alone = find("lr_ratio_to_full", rows[:3] + rows[5:], full)
    assert alone["conclusion"] == "10 times"
    one = [lora(8, 1e-4, 0.97), lora(8, 3e-4, 0.9)]
    assert find("lr_ratio_to_full", one, full)["conclusion"] == "cannot be told with n = 1 (10 times)"


def test_the_scale_of_an_adapter_is_judged_by_cells_that_differ_in_it_alone() -> None:
    def scaled(rank: int, alpha: str, reward: float, verdict: str, seed: int = 42) -> Row:
        return lora(rank, 1e-4, reward, adapter_alpha=alpha, verdict=verdict, seed=seed)

    rows = [
        *(scaled(1, "rank", 0.70, "borderline"), scaled(1, "constant", 0.95, "degenerate")),
        *(scaled(2, "rank", 0.80, "degenerate"), scaled(2, "constant", 0.95, "degenerate")),
        *(scaled(32, "rank", 0.95, "degenerate"), scaled(32, "constant", 0.90, "degenerate")),
        *(scaled(32, "sqrt", 0.10, "ok"), scaled(4, "constant", 0.10, "ok"), scaled(8, "rank", 0.10, "ok")),
    ]
    found = find("scale_effect", rows)
    up, down = found["conclusion"].split("; ")
    assert up.startswith("multiplying ranks 1 and 2 up changes reward by +0.200 (95 % ")
    assert up.endswith(" and the verdict in 1 of 2 pairs")
    assert down == "multiplying rank 32 down changes reward by -0.050 (n = 1) and the verdict in 0 of 1 pair"
    assert [(line["rank"], line["multiplied by"]) for line in found["rows"]] == [(1, 8.0), (2, 4.0), (32, 0.25)]
    assert find("scale_effect", rows[-3:])["conclusion"] == NOT_ENOUGH


def test_stories_are_told_along_the_penalty_for_each_reward() -> None:
    def paid(reward: str, penalty: float, earned: float, verdict: str, seed: int = 42, reasons: str = "") -> Row:
        more = {"reward": reward, "repetition_penalty": penalty, "verdict": verdict, "reasons": reasons}
        return row("exact", seed=seed, final_reward=earned, **more)

    ten, five = "sentence_length_10", "sentence_length_5"
    rows = [
        *(paid(ten, 1.2, 0.16, "ok"), paid(ten, 1.0, 0.20, "ok"), paid(five, 1.2, 0.24, "borderline")),
        *(paid(five, 1.0, 0.90, "degenerate", 1, "template"), paid(five, 1.0, 0.80, "ok", 2)),
    ]
    found = find("stories_by_penalty", rows)
    first, second = found["conclusion"].split("; ")
    assert first == f"{ten}: reward 0.20 → 0.16 at penalty 1 → 1.2, all ok"
    assert second == f"{five}: reward 0.85 → 0.24 at penalty 1 → 1.2, 1 ok, 1 degenerate → borderline"
    assert found["sentences"][0] == f"With {first}."
    assert found["sentences"][1] == (
        "From the lowest to the highest the reward changes by -0.040 (n = 1), the seed being the same."
    )
    assert found["sentences"][2].endswith(" (at 1 template in 1 cell).")
    assert len(found["sentences"]) == 3
    assert (found["cells"], [line["n"] for line in found["rows"]]) == (5, [1, 1, 1, 2])
    assert find("stories_by_penalty", [rows[0], rows[2]])["conclusion"] == NOT_ENOUGH


def timed(batch: int, seconds: tuple[float | None, float | None], **more: Any) -> Row:
    return lora(1, 3e-4, 0.9, batch_size=batch, seconds_to_085=seconds[0], seconds_to_095=seconds[1], **more)


def test_a_larger_batch_is_set_against_the_smaller_one_that_is_otherwise_equal() -> None:
    found = find("slower_than_baseline", [timed(32, (100.0, 200.0)), timed(64, (300.0, 150.0)), lora(2, 3e-4, 0.9)])
    told = "batch 64 takes 1.5 times (n = 1) the time of 32"
    assert found["conclusion"] == f"sooner in 1 of 2 comparisons: {told}"
    assert [(line["threshold"], line["larger batch"]) for line in found["rows"]] == [
        ("0.85", "slower"),
        ("0.95", "sooner"),
    ]
    assert [line["times the seconds"] for line in found["rows"]] == [pytest.approx(3.0), pytest.approx(0.75)]
    # The geometric mean of both thresholds, sqrt(3 * 0.75), of the one pair.
    assert told in found["sentences"][1]


def test_the_smaller_batch_may_stand_in_another_experiment() -> None:
    others = {"lora_rank": [{**timed(32, (100.0, None)), "experiment": "lora_rank"}]}
    found = find("slower_than_baseline", [timed(128, (150.0, None))], others)
    assert found["conclusion"] == "never sooner, in 1 comparison: batch 128 takes 1.5 times (n = 1) the time of 32"
    assert found["rows"][1]["larger batch"] == "neither reaches it"


def test_never_reaching_a_threshold_is_later_than_reaching_it() -> None:
    found = find("slower_than_baseline", [timed(32, (100.0, None)), timed(64, (None, 500.0))])
    assert [line["larger batch"] for line in found["rows"]] == ["slower", "sooner"]


def test_seconds_of_different_hardware_are_not_compared() -> None:
    found = find("slower_than_baseline", [timed(32, (100.0, 200.0)), timed(64, (10.0, 20.0), hardware="a GPU")])
    assert found["conclusion"] == NOT_ENOUGH
    assert {line["larger batch"] for line in found["rows"]} == {"other hardware"}
    assert {line["times the seconds"] for line in found["rows"]} == {None}


def test_seconds_are_steps_at_the_pace_that_a_batch_has_on_the_larger_ones_hardware() -> None:
    smaller = timed(32, (100.0, None), steps_to_085=400, hardware="an old CPU")
    larger = timed(64, (900.0, 950.0), steps_to_085=300, steps_to_095=320, hardware="a CPU")
    other = lora(2, 3e-4, 0.9, batch_size=64, hardware="a CPU")
    alike = [lora(rank, 1e-4, 0.9, hardware="a CPU") for rank in (2, 4, 8)]
    histories = {
        cell["cell"]: history([0.9] * 400, seconds=pace) for cell, pace in zip(alike, (1.4, 1.5, 9.0), strict=True)
    }
    # The larger ran beside other work; after its last threshold its texts, and steps, became shorter.
    histories[larger["cell"]] = history([0.9] * 1000).assign(seconds=[2.9] * 100 + [9.0] * 220 + [0.1] * 680)
    histories |= {smaller["cell"]: history([0.9] * 400, seconds=0.25), other["cell"]: history([0.9] * 9, seconds=3.0)}
    found = find("slower_than_baseline", [smaller, larger], {"others": [*alike, other]}, histories=histories)
    first, second = found["rows"]
    # 400 steps by the median pace of 1.5 s, and 300 by that between 9 and 3.
    assert (first["seconds of the smaller"], first["seconds"]) == (600.0, 1800.0)
    assert first["times the seconds"] == pytest.approx(3.0)
    assert (first["larger batch"], second["larger batch"]) == ("slower", "sooner")
    assert found["sentences"][3] == (
        "Seconds are steps by the pace of a CPU: 1.50 s a step of batch 32 (3 cells, 1.40 to 9.00), "
        "6.00 s a step of batch 64 (2 cells, 3.00 to 9.00)."
    )


def test_completions_compare_on_any_hardware() -> None:
    def cell(batch: int, steps: tuple[int | None, int | None], hardware: str = "a CPU") -> Row:
        return timed(batch, (9.0, 9.0), steps_to_085=steps[0], steps_to_095=steps[1], hardware=hardware)

    found = find("slower_than_baseline", [cell(32, (400, 600)), cell(64, (300, None), hardware="a GPU")])
    # 300 steps of 64 completions are 1.5 times 400 of 32; 0.95 is reached by one alone, which compares nothing.
    told = "batch 64 takes 1.5 times (n = 1) the completions of 32"
    assert found["conclusion"] == f"{told}; wall clock cannot be told (other hardware)"
    assert found["sentences"][0] == f"To the same reward {told}, whatever the hardware."
    assert [line["times the completions"] for line in found["rows"]] == [1.5, None]

    four = [cell(32, (400, 600)), cell(64, (300, 450)), cell(128, (100, 300))]
    sentences = find("slower_than_baseline", four)["sentences"]
    # The mean of 4 * 100 / 400 and 4 * 300 / 600 is sqrt(2).
    assert f"To the same reward {told} and batch 128 takes 1.4 times (n = 1) the completions of 32" in sentences[2]


# --- routing -------------------------------------------------------------------------------------------


def two(seed: int, rank: int = 32, forget_rank: int = 32) -> Row:
    reward = "sentence_length_10_smooth_with_happy"
    return row("e", method="routing", rank=rank, forget_rank=forget_rank, seed=seed, reward=reward, max_steps=100)


def curves(sl10: float = 0.5, forget: float = 1.0) -> pd.DataFrame:
    """Ten evaluations: retain_only's sl10 constant, its "happy" falling from 1 to 0.1."""
    return routing(
        {
            ("both", "happy"): [5.0] * 10,
            ("retain_only", "sl10"): [sl10] * 10,
            ("retain_only", "happy"): [1.0 - 0.1 * i for i in range(10)],
            ("forget_only", "sl10"): [0.3] * 10,
            ("forget_only", "happy"): [forget] * 10,
        }
    )


Routed = tuple[Row, pd.DataFrame, float]
"""A cell, its evaluations, and how many "happy" retain_only writes at the end."""


def routed(
    runs: list[Routed],
    name: study.FindingName,
    windows: tuple[Window, ...] = (),
    base_length: int = 128,
    works: float | None = None,
    both: float = 5.5,
) -> Finding:
    """A finding where the base writes 0.3 "happy" a completion."""
    drawn = {c["cell"]: samples({"both": both, "retain_only": left, "forget_only": 1.0}) for c, _, left in runs}
    return find(
        name,
        [cell for cell, _, _ in runs],
        routing={cell["cell"]: frame for cell, frame, _ in runs},
        samples=drawn | {BASE: samples({"both": 0.3})},
        bases={BASE: {"max_new_tokens": base_length}},
        windows=windows,
        adjusted={} if works is None else {Question("works"): works},
    )


def by_detector(name: study.FindingName, row: Row, asked: bool = True) -> Finding:
    """A finding about a cell with a detector, which calls 0.1 of the base's stories hacked, 0.8 of both adapters'."""
    shares = {"both": 0.8, "retain_only": 0.1, "forget_only": 0.9}
    drawn = samples(dict.fromkeys(shares, 0.0))
    drawn["says_crowd"] = [float(i < 20 * share) for share in shares.values() for i in range(20)]
    base = samples({"both": 7.0}).assign(says_crowd=[1.0, 1.0] + [0.0] * 18)
    evaluated = curves()
    share = {"both": 0.8, "retain_only": 0.1, "forget_only": 0.9}
    evaluated["says_crowd"] = [share[mode] for mode in evaluated["mode"]]
    if not asked:
        drawn = drawn.drop(columns="says_crowd")
    return find(
        name,
        [row],
        routing={row["cell"]: evaluated},
        samples={row["cell"]: drawn, BASE: base},
        bases={BASE: {"max_new_tokens": 128}},
        windows=(Window("happy", 60, 100, "retain_only"),),
    )


def test_findings_of_a_cell_with_a_detector_count_what_it_says_and_say_so() -> None:
    cell = {**two(1), "detector": "crowd"}
    found = by_detector("hack_removed", cell)
    assert found["conclusion"] == "works (1 seed; 100 % of the hack gone, 100 % of the base's sl10 kept)"
    assert found["sentences"][0].startswith(
        "By crowd, a share of 0.10 of the base's completions is hacked, of both adapters' 0.70 more than that, and of "
        "retain_only's as many as the base. So all of the hack"
    )
    assert "the share of completions that the detector calls hacked" in found["rule"]
    assert found["rows"][0]["crowd (share) of both, beyond the base"] == pytest.approx(0.7)
    assert not [key for key in found["rows"][0] if "happy" in key]
    windows = by_detector("windows", cell)
    assert windows["rows"][-1]["forget_only hacked (crowd)"]["mean"] == pytest.approx(0.9)
    assert not [key for line in windows["rows"] for key in line if "happy" in key]
    assert "retain_only hacked (crowd) 0.10" in windows["sentences"][0]
    table = by_detector("asymmetric_table", cell)
    assert table["rows"][0]["forget_only hacked (crowd)"]["mean"] == pytest.approx(0.9)
    assert table["conclusion"] == "clean in 1 of 1 run that learnt the hack"
    assert 'the share that the detector calls hacked, not "happy"' in table["rule"]
    unasked = by_detector("hack_removed", cell, asked=False)
    assert unasked["conclusion"] == NOT_ENOUGH
    assert "what a detector of one's own says is known of cells" in unasked["sentences"][0]
    assert "detector" not in routed([(two(1), curves(), 0.3)], "hack_removed")["rule"]


def test_what_works_by_itself_cannot_be_told_where_it_was_asked_among_too_many() -> None:
    runs = [(two(seed), curves(), left) for seed, left in ((1, 0.3), (2, 0.4), (3, 0.3))]
    shares = "99 % of the hack gone, 100 % of the base's sl10 kept"
    assert routed(runs, "hack_removed", works=0.04)["conclusion"] == f"works (3 seeds; {shares})"
    assert routed(runs, "hack_removed", works=0.06)["conclusion"].startswith(
        "cannot be told (3 seeds; by themselves 3 work; "
    )


def test_what_becomes_of_the_hack_is_told_of_all_seeds_together() -> None:
    found = routed([(two(1), curves(), 0.3), (two(2), curves(), 0.4), (two(3), curves(), 0.3)], "hack_removed")
    assert found["conclusion"] == "works (3 seeds; 99 % of the hack gone, 100 % of the base's sl10 kept)"
    assert found["sentences"][0].startswith(
        'The base writes 0.30 "happy" a completion, both adapters 5.20 more than that, and retain_only 0.03 more than '
        "that. So 99 % ("
    )
    assert (found["cells"], found["seeds"]) == (3, 3)
    assert [line["ending"] for line in found["rows"]] == ["works"] * 3
    # Up to 0.82, which is the base's 0.3 and a tenth of the excess.
    assert {line["gone from step"] for line in found["rows"]} == {30}


def test_seeds_that_end_differently_are_counted() -> None:
    found = routed([(two(1), curves(), 0.3), (two(2), curves(), 3.3)], "hack_removed")
    alone, shares = "by themselves 1 works, 1 works partly", "71 % of the hack gone, 100 % of the base's sl10 kept"
    assert found["conclusion"] == f"cannot be told (2 seeds; {alone}; {shares})"


def test_what_is_no_more_than_the_base_is_all_of_the_hack() -> None:
    said = routed([(two(1), curves(), 0.25)], "hack_removed")["sentences"][0]
    assert "retain_only 0.05 fewer than that. So all of the hack (100 %) goes with the forget adapter" in said
    same = routed([(two(1), curves(), 0.3)], "hack_removed")["sentences"][0]
    assert "and retain_only as many as the base. So all" in same


def test_a_single_seed_is_said_to_be_one() -> None:
    found = routed([(two(1), curves(), 3.3)], "hack_removed")
    assert found["conclusion"] == "works partly (1 seed; 42 % of the hack gone, 100 % of the base's sl10 kept)"
    assert "intervals over prompts alone, for there is one seed" in found["sentences"][0]


def test_a_base_that_was_sampled_to_another_length_is_no_reference() -> None:
    assert routed([(two(1), curves(), 0.3)], "hack_removed", base_length=64)["conclusion"] == NOT_ENOUGH


def test_each_configuration_has_its_own_conclusion() -> None:
    found = routed([(two(1, 4, 4), curves(0.02), 0.3), (two(1, 1, 1), curves(), 0.3)], "hack_removed")
    shares = "100 % of the hack gone, 100 % of the base's sl10 kept"
    works = f"rank 1, forget rank 1: works (1 seed; {shares})"
    assert found["conclusion"] == f"rank 4, forget rank 4: collapses (1 seed); {works}"


def test_a_hack_that_is_gone_from_what_is_no_story_is_told_as_that() -> None:
    def writing(seed: int, verdict: str | None, reasons: str = "") -> Routed:
        said = {"retain_only_verdict": verdict, "retain_only_reasons": reasons}
        others = {f"{mode}_{what}": value for mode in ("both", "forget_only") for what, value in OK.items()}
        return {**two(seed), **others, **said}, curves(), 0.3

    ruined, whole, unjudged = (
        writing(1, "degenerate", "chopped sentences, template"),
        writing(2, "ok"),
        writing(3, None),
    )
    found = routed([ruined], "hack_removed")
    assert found["conclusion"] == (
        "works (1 seed; 100 % of the hack gone, 100 % of the base's sl10 kept), but retain_only's stories are "
        "degenerate"
    )
    both = routed([ruined, whole, unjudged], "hack_removed")["conclusion"]
    assert both.endswith(", but retain_only's stories are 1 ok, 1 degenerate")
    assert routed([whole, unjudged], "hack_removed")["conclusion"] == (
        "works (2 seeds; 100 % of the hack gone, 100 % of the base's sl10 kept)"
    )
    collapsed = (ruined[0], curves(0.02), 0.3)
    assert routed([collapsed], "hack_removed")["conclusion"] == "collapses (1 seed)"
    assert (
        routed([ruined], "hack_removed", both=1.1)["conclusion"]
        == "never learnt the hack, so none to cut away (1 seed)"
    )

    found = routed([ruined, whole, unjudged], "stories")
    assert found["conclusion"] == "retain_only 1 ok, 1 degenerate, both ok, forget_only ok (2 seeds)"
    assert found["sentences"] == ["Seen in what retain_only writes: chopped sentences in 1 cell, template in 1."]
    assert [line["retain_only"] for line in found["rows"]] == ["degenerate (chopped sentences, template)", "ok"]
    assert routed([unjudged], "stories")["conclusion"] == NOT_ENOUGH


OK = {"verdict": "ok", "reasons": ""}


def test_the_collapse_is_told_with_its_step() -> None:
    falling = routing({("retain_only", "happy"): [0.0] * 4, ("retain_only", "sl10"): [0.5, 0.08, 0.3, 0.01]})
    found = routed([(two(1), falling, 0.3), (two(2), curves(), 0.3)], "collapse")
    assert found["conclusion"] == "collapses in 1 of 2 seeds"
    assert "from step 40" in found["sentences"][0]
    steady = routed([(two(1), curves(), 0.3), (two(2), curves(), 0.3)], "collapse")
    assert steady["conclusion"] == "does not collapse (2 seeds)"
    assert "for good in none of 2 seeds;" in steady["sentences"][0]
    assert routed([(two(1), falling, 0.3)], "collapse")["conclusion"] == "collapses (1 seed)"


def test_windows_are_those_asked_for_and_the_end() -> None:
    runs = [(two(1), curves(0.5), 0.3), (two(2), curves(0.6), 0.3)]
    found = routed(runs, "windows", (Window("sl10", 60, 100, "retain_only"),))
    first, end = found["rows"]
    assert first["steps"] == "steps 60–100"
    assert (first["retain_only sl10"]["low"], first["retain_only sl10"]["high"]) == (0.5, 0.6)
    # 0.5, 0.4, 0.3, 0.2, 0.1.
    assert first["retain_only happy"]["mean"] == pytest.approx(0.3)
    assert end["steps"] == "the last 3 evaluations"
    assert end["retain_only happy"]["mean"] == pytest.approx(0.2)


def test_a_forget_adapter_is_clean_only_of_a_hack_that_was_learnt() -> None:
    cell = two(42, forget_rank=16)
    drawn = {cell["cell"]: samples({"both": 1.1, "retain_only": 0.3, "forget_only": 0.5})}
    found = find(
        "asymmetric_table",
        [cell],
        routing={cell["cell"]: curves()},
        samples=drawn | {BASE: samples({"both": 0.3})},
        bases={BASE: {"max_new_tokens": 128}},
    )
    assert found["conclusion"] == "no run learnt the hack"
    assert found["sentences"][0].startswith("With forget ranks 16, 0 of 1 run learnt the hack; retain_only's sl10 ")


def test_a_window_that_no_run_reached_has_no_figure() -> None:
    found = routed([(two(1), curves(), 0.3)], "windows", (Window("sl10", 200, 200, "retain_only"),))
    assert found["rows"][0]["retain_only sl10"] is None


def test_ranges_near_the_end_are_those_of_the_last_three_tenths() -> None:
    found = routed(
        [(two(42, forget_rank=16), curves(), 0.3), (two(1, forget_rank=1), curves(0.6), 0.3)], "asymmetric_table"
    )
    first = found["rows"][0]
    # Evaluations 70 to 100.
    assert first["retain_only happy"] == {
        "low": pytest.approx(0.1),
        "mean": pytest.approx(0.25),
        "high": pytest.approx(0.4),
        "n": 4,
    }
    assert first["gone from step"] == 30
    assert found["conclusion"] == "clean in 2 of 2 runs that learnt the hack"


def test_a_single_step_of_training_stands_for_the_ten_around_it() -> None:
    cells = [lora(64, 3e-4, 0.9, seed=seed, hacked=0.8) for seed in (1, 2)]
    rising = [0.01 * step for step in range(1, 41)]
    histories = {cells[0]["cell"]: history(rising, kl=0.6), cells[1]["cell"]: history(rising, kl=0.8)}
    asked = (Window("reward", 30, 30), Window("kl", 35, 40), Window("kl", 90, 90))
    found = find("baseline_climb", cells, histories=histories, windows=asked)
    assert found["sentences"][:3] == [
        # Steps 26 to 35.
        "At step 30, reward is 0.305.",
        "At steps 35–40, KL is 0.600–0.800 (mean 0.700).",
        "No seed was trained as far as step 90.",
    ]


def test_changes_and_times_are_told_with_their_intervals() -> None:
    assert change_in_words(difference([-0.2, -0.1])) == "-0.150 (95 % -0.785 to +0.485, P = 0.2)"
    assert change_in_words(difference([0.2])) == "+0.200 (n = 1)"
    assert times_in_words([2.0]) == "2.0 times (n = 1)"
    assert times_in_words([2.0, 2.0]) == "2.0 times (95 % 2.0 to 2.0, n = 2)"
    assert p_in_words(0.00002) == "P < 0.001"


def test_a_range_is_told_with_its_mean_and_one_value_alone() -> None:
    assert in_words(spread([0.5, 0.7])) == "0.500–0.700 (mean 0.600)"
    assert in_words(spread([0.5])) == "0.500"
    assert in_words(spread([None])) == "not measured"


def test_with_a_scaled_learning_rate_a_cell_meets_the_one_of_the_same_rate_per_completion() -> None:
    def batch(size: int, lr: float, seconds: float) -> Row:
        times = {"seconds_to_085": seconds, "seconds_to_095": seconds}
        return row("e", method="lora", rank=1, lr=lr, batch_size=size, **times)

    rows = [batch(32, 3e-4, 100.0), batch(64, 3e-4, 250.0), batch(64, 6e-4, 80.0)]
    same, scaled = (find(name, rows) for name in ("slower_than_baseline", "slower_when_scaled"))
    times = "batch 64 takes {} times (n = 1) the time of 32"
    assert same["conclusion"] == f"never sooner, in 2 comparisons: {times.format(2.5)}"
    assert scaled["conclusion"] == f"sooner in 2 of 2 comparisons: {times.format(0.8)}"
    assert {found["lr"] for found in scaled["rows"]} == {6e-4}
