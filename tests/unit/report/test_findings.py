from __future__ import annotations

import typing
from typing import Any

import pandas as pd
import pytest

from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import NOT_ENOUGH, Finding, Scope, in_words, spread
from rewardgrid.report.findings import FINDINGS, compute
from rewardgrid.report.published import Claim, Published
from rewardgrid.report.tables import Row
from rewardgrid.study import study

from .trees import history, replica, routing, row

BASE = {"embedded-0000000000": {"sl10": 0.5}}


def find(name: str, rows: list[Row], others: dict[str, list[Row]] | None = None, **more: Any) -> Finding:
    claims = more.pop("claims", ())
    return FINDINGS[name](Scope(Evidence({"e": rows, **(others or {})}, bases=BASE, **more), "e", (), claims))


def sweep(figures: dict[tuple[float, float, int], tuple[float, float]], **more: Any) -> list[Row]:
    """Cells from (beta, penalty, seed) -> (reward, KL)."""
    return [
        row("e", beta=beta, repetition_penalty=penalty, seed=seed, final_reward=reward, final_kl=kl, **more)
        for (beta, penalty, seed), (reward, kl) in figures.items()
    ]


def test_every_finding_that_a_configuration_can_ask_for_exists() -> None:
    assert set(FINDINGS) == set(typing.get_args(study.Finding))


@pytest.mark.parametrize("name", sorted(FINDINGS))
def test_without_finished_cells_a_finding_says_so(name: str) -> None:
    found = find(name, [row("e", state="missing", method="lora", rank=1)])
    assert found["conclusion"] == NOT_ENOUGH
    assert found["sentences"][0].startswith("Not enough cells: ")
    assert found["cells"] == 0


def test_findings_come_in_the_order_asked_for() -> None:
    scope = Scope(Evidence({"e": sweep({(0.02, 1.1, 42): (0.9, 1.0)})}), "e")
    assert [found["name"] for found in compute(scope, ["penalty_effect", "best_tradeoff"])] == [
        "penalty_effect",
        "best_tradeoff",
    ]


# --- the published figures give the published findings -------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "name", "conclusion"),
    [
        ("reward_sweep", "best_tradeoff", "0.987 at beta 0.01, penalty 1.1"),
        ("reward_sweep", "beta_order", "KL and reward fall as beta rises (KL 2.815 → 2.188 → 0.980)"),
        ("reward_sweep", "penalty_effect", "negligible, at most 0.004"),
        ("lora_rank", "smallest_passing", "rank 1, lr 3e-4 (0.973)"),
        ("lora_rank", "lr_ratio_to_full", "10–30 times"),
        ("batch_size", "slower_than_baseline", "never sooner, in 8 comparisons"),
    ],
)
def test_the_published_figures_give_the_published_findings(
    published: Published, experiment: str, name: str, conclusion: str
) -> None:
    assert FINDINGS[name](Scope(Evidence(replica(published)), experiment))["conclusion"] == conclusion


def test_the_best_trade_off_also_names_the_best_that_is_ok_in_every_seed(published: Published) -> None:
    found = FINDINGS["best_tradeoff"](Scope(Evidence(replica(published)), "reward_sweep"))
    assert found["sentences"][0].startswith("4 of 6 configurations are non-degenerate; the highest reward")
    assert "2 borderline" in found["sentences"][0]
    assert found["sentences"][1].startswith("Where every seed is judged ok, the best is 0.907 at beta 0.02")
    assert (found["cells"], found["seeds"]) == (12, 2)


# --- rewards -------------------------------------------------------------------------------------------


def test_a_degenerate_seed_rules_a_configuration_out_however_high_its_reward() -> None:
    rows = sweep({(0.02, 1.1, 1): (0.8, 1.0), (0.02, 1.1, 2): (0.8, 1.0)})
    rows += sweep({(0.01, 1.1, 1): (0.99, 3.0)}) + sweep({(0.01, 1.1, 2): (0.99, 3.0)}, verdict="degenerate")
    assert find("best_tradeoff", rows)["conclusion"] == "0.800 at beta 0.02"


def test_a_diverged_seed_rules_a_configuration_out_and_is_mentioned() -> None:
    rows = sweep({(0.02, 1.1, 1): (0.8, 1.0), (0.01, 1.1, 1): (0.9, 1.0)})
    rows.append(row("e", state="diverged", beta=0.01, seed=2))
    found = find("best_tradeoff", rows)
    assert found["conclusion"] == "0.800 at beta 0.02"
    assert found["sentences"][-1] == "1 cell diverged and is in no mean."


def test_all_degenerate_is_a_finding_too() -> None:
    found = find("best_tradeoff", sweep({(0.02, 1.1, 1): (0.8, 1.0)}, verdict="degenerate"))
    assert found["conclusion"].startswith("all degenerate")


def test_rewards_of_different_kinds_are_not_compared() -> None:
    rows = [
        row("e", reward="sentence_length_10", final_reward=0.2),
        row("e", reward="sentence_length_5", final_reward=0.9),
    ]
    assert find("best_tradeoff", rows)["conclusion"] == "0.200 at sentence_length_10; 0.900 at sentence_length_5"


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
    assert found["conclusion"] == "not negligible, at most 0.030"
    assert found["cells"] == 2


def test_the_penalty_effect_is_of_means_over_seeds() -> None:
    figures = {(0.02, 1.0, 1): 0.80, (0.02, 1.1, 1): 0.84, (0.02, 1.0, 2): 0.84, (0.02, 1.1, 2): 0.80}
    rows = sweep({key: (reward, 1.0) for key, reward in figures.items()})
    assert find("penalty_effect", rows)["conclusion"] == "negligible, at most 0.000"


def test_an_effect_of_exactly_the_limit_is_negligible() -> None:
    rows = sweep({(0.02, 1.0, 1): (0.75, 1.0), (0.02, 1.1, 1): (0.77, 1.0)})
    assert find("penalty_effect", rows)["conclusion"].startswith("negligible")


def test_the_order_of_beta_tells_kl_and_reward_apart() -> None:
    rows = sweep({(0.003, 1.1, 1): (0.8, 2.0), (0.01, 1.1, 1): (0.9, 1.5), (0.02, 1.1, 1): (0.7, 1.0)})
    found = find("beta_order", rows)
    assert found["conclusion"].startswith("KL falls as beta rises, reward does not")
    assert "KL goes 2.000 → 1.500 → 1.000" in found["sentences"][0]


def test_a_cell_missing_at_one_beta_is_left_out_at_the_others() -> None:
    rows = sweep({(0.003, 1.1, 1): (0.9, 2.0), (0.02, 1.1, 1): (0.8, 1.0)})
    # Seed 2 exists at the lower beta only; with its low KL the order would seem to be the other way round.
    rows += [*sweep({(0.003, 1.1, 2): (0.1, 0.0)}), row("e", state="diverged", beta=0.02, seed=2)]
    found = find("beta_order", rows)
    assert found["conclusion"].startswith("KL and reward fall as beta rises")
    assert found["cells"] == 2


def lora(rank: int, lr: float, reward: float, verdict: str = "ok", **more: Any) -> Row:
    return row("e", method="lora", rank=rank, lr=lr, final_reward=reward, verdict=verdict, **more)


def test_the_smallest_rank_must_reach_the_threshold_without_degenerating() -> None:
    rows = [lora(1, 3e-4, 0.99, "degenerate"), lora(2, 3e-4, 0.84), lora(4, 1e-4, 0.86), lora(4, 3e-4, 0.9)]
    found = find("smallest_passing", [*rows, lora(8, 3e-4, 0.99)])
    assert found["conclusion"] == "rank 4, lr 3e-4 (0.900)"
    assert "Ranks tried: 1, 2, 4, 8." in found["sentences"][0]
    assert find("smallest_passing", rows[:2])["conclusion"] == "no rank passes"


def test_the_lr_ratio_needs_a_sound_full_fine_tuning_of_the_same_base_and_reward() -> None:
    rows = [lora(1, 3e-4, 0.95), lora(8, 1e-4, 0.97), lora(32, 3e-5, 0.9, "borderline"), lora(16, 1e-5, 0.5)]
    full = {"full": [row("full", lr=1e-5, final_reward=0.9), row("full", lr=1e-3, final_reward=0.99)]}
    full["full"][1]["verdict"] = "degenerate"  # type: ignore[index]
    found = find("lr_ratio_to_full", rows, full)
    assert found["conclusion"] == "10–30 times"
    assert [line["ratio"] for line in found["rows"]] == [30, 10]
    other = {"full": [row("full", lr=1e-5, reward="sentence_length_5")]}
    assert find("lr_ratio_to_full", rows, other)["conclusion"] == NOT_ENOUGH


def timed(batch: int, seconds: tuple[float | None, float | None], **more: Any) -> Row:
    return lora(1, 3e-4, 0.9, batch_size=batch, seconds_to_085=seconds[0], seconds_to_095=seconds[1], **more)


def test_a_larger_batch_is_set_against_the_smaller_one_that_is_otherwise_equal() -> None:
    found = find("slower_than_baseline", [timed(32, (100.0, 200.0)), timed(64, (300.0, 150.0)), lora(2, 3e-4, 0.9)])
    assert found["conclusion"] == "sooner in 1 of 2 comparisons"
    assert [(line["threshold"], line["ratio"], line["outcome"]) for line in found["rows"]] == [
        ("0.85", 3.0, "slower"),
        ("0.95", 0.75, "sooner"),
    ]


def test_the_smaller_batch_may_stand_in_another_experiment() -> None:
    others = {"lora_rank": [{**timed(32, (100.0, None)), "experiment": "lora_rank"}]}
    found = find("slower_than_baseline", [timed(128, (150.0, None))], others)
    assert found["conclusion"] == "never sooner, in 1 comparison"
    assert found["rows"][1]["outcome"] == "neither reaches it"


def test_never_reaching_a_threshold_is_later_than_reaching_it() -> None:
    found = find("slower_than_baseline", [timed(32, (100.0, None)), timed(64, (None, 500.0))])
    assert [line["outcome"] for line in found["rows"]] == ["slower", "sooner"]


def test_seconds_of_different_hardware_are_not_compared() -> None:
    found = find("slower_than_baseline", [timed(32, (100.0, 200.0)), timed(64, (10.0, 20.0), hardware="a GPU")])
    assert found["conclusion"] == NOT_ENOUGH
    assert {line["outcome"] for line in found["rows"]} == {"other hardware"}


# --- routing -------------------------------------------------------------------------------------------


def two(seed: int, rank: int = 32, forget_rank: int = 32) -> Row:
    reward = "sentence_length_10_smooth_with_happy"
    return row("e", method="routing", rank=rank, forget_rank=forget_rank, seed=seed, reward=reward, max_steps=100)


def curves(sl10: float, zero_from: int | None, both: float = 5.0, forget: float = 1.0) -> pd.DataFrame:
    """Ten evaluations: retain_only's sl10 constant, its "happy" 1 and from some step on 0."""
    steps = range(10, 101, 10)
    happy = [0.0 if zero_from is not None and step >= zero_from else 1.0 for step in steps]
    return routing(
        {
            ("both", "happy"): [both] * 10,
            ("retain_only", "sl10"): [sl10] * 10,
            ("retain_only", "happy"): happy,
            ("forget_only", "sl10"): [0.3] * 10,
            ("forget_only", "happy"): [forget] * 10,
        }
    )


def routed(runs: list[tuple[Row, pd.DataFrame]], name: str, claims: tuple[Claim, ...] = ()) -> Finding:
    return find(name, [cell for cell, _ in runs], routing={c["cell"]: f for c, f in runs}, claims=claims)


def test_routing_works_if_it_works_in_most_seeds_and_the_tally_is_told() -> None:
    runs = [(two(1), curves(0.5, 60)), (two(2), curves(0.5, 80)), (two(3), curves(0.5, None))]
    found = routed(runs, "hack_removed")
    assert found["conclusion"] == "works (2 of 3 seeds)"
    assert "stays at 0 in 2 of 3 seeds, from step 60–80 (mean 70)" in found["sentences"][0]
    assert (found["cells"], found["seeds"]) == (3, 3)
    assert [line["outcome"] for line in found["rows"]] == ["works", "works", "partly"]


def test_a_tie_between_outcomes_is_partly() -> None:
    runs = [(two(1), curves(0.5, 60)), (two(2), curves(0.05, 60))]
    assert routed(runs, "hack_removed")["conclusion"] == "partly (0 of 2 seeds)"


def test_each_configuration_has_its_own_conclusion() -> None:
    runs = [(two(1, 4, 4), curves(0.02, 60)), (two(1, 1, 1), curves(0.5, 60))]
    assert (
        routed(runs, "hack_removed")["conclusion"]
        == "rank 4, forget rank 4: collapses (1 of 1 seed); rank 1, forget rank 1: works (1 of 1 seed)"
    )


def test_the_collapse_is_told_with_its_step() -> None:
    falling = routing(
        {
            ("both", "happy"): [5.0] * 4,
            ("retain_only", "happy"): [0.0] * 4,
            ("retain_only", "sl10"): [0.5, 0.08, 0.3, 0.01],
        }
    )
    found = routed([(two(1), falling), (two(2), curves(0.5, 10))], "collapse")
    assert found["conclusion"] == "collapses in 1 of 2 seeds"
    assert "from step 40" in found["sentences"][0]


def test_windows_are_the_published_ones_and_the_end() -> None:
    claim = Claim(id="c", experiment="e", mode="retain_only", steps=(60, 100), metric="sl10", range=(0.4, 0.6))
    runs = [(two(1), curves(0.5, 80)), (two(2), curves(0.6, 80))]
    found = routed(runs, "windows", (claim,))
    first, end = found["rows"]
    assert first["steps"] == "steps 60–100"
    assert (first["retain_only sl10"]["low"], first["retain_only sl10"]["high"]) == (0.5, 0.6)
    # Ones at steps 60 and 70 of five evaluations.
    assert first["retain_only happy"]["mean"] == pytest.approx(0.4)
    assert end["steps"] == "the last 3 evaluations"
    assert end["retain_only happy"]["mean"] == 0.0


def test_a_window_that_no_run_reached_has_no_figure() -> None:
    claim = Claim(id="c", experiment="e", mode="retain_only", steps=(200, 200), metric="sl10", range=(0.4, 0.6))
    found = routed([(two(1), curves(0.5, 80))], "windows", (claim,))
    assert found["rows"][0]["retain_only sl10"] is None


def test_the_asymmetric_table_has_the_published_columns() -> None:
    runs = [(two(42, forget_rank=16), curves(0.5, 70)), (two(123, forget_rank=1), curves(0.6, None, forget=0.5))]
    found = routed(runs, "asymmetric_table")
    assert found["rows"] == [
        {"retain_rank": 32, "forget_rank": 16, "seed": 42, "retain_sl10_low": 0.5, "retain_sl10_high": 0.5}
        | {"retain_happy": "0 from step 70", "forget_happy_low": 1.0, "forget_happy_high": 1.0},
        {"retain_rank": 32, "forget_rank": 1, "seed": 123, "retain_sl10_low": 0.6, "retain_sl10_high": 0.6}
        | {"retain_happy": "1.0 at step 100", "forget_happy_low": 0.5, "forget_happy_high": 0.5},
    ]
    assert found["conclusion"] == "clean in 1 of 2 runs"


def test_the_baselines_climb_is_read_at_the_published_steps() -> None:
    claims = (
        Claim(id="a", experiment="e", steps=(3, 3), metric="reward", range=(0, 1)),
        Claim(id="b", experiment="e", steps=(4, 5), metric="kl", range=(0, 1)),
        Claim(id="c", experiment="e", steps=(9, 9), metric="kl", range=(0, 1)),
    )
    cells = [lora(64, 3e-4, 0.9, seed=seed, hacked=0.8) for seed in (1, 2)]
    histories = {
        cells[0]["cell"]: history([0.1, 0.2, 0.3, 0.4, 0.5], kl=0.6),
        cells[1]["cell"]: history([0.1, 0.2, 0.5, 0.4, 0.5], kl=0.8),
    }
    found = find("baseline_climb", cells, histories=histories, claims=claims)
    assert found["sentences"][:3] == [
        "At step 3, reward is 0.300–0.500 (mean 0.400).",
        "At steps 4–5, KL is 0.600–0.800 (mean 0.700).",
        "No seed was trained as far as step 9.",
    ]


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
    assert same["conclusion"] == "never sooner, in 2 comparisons"
    assert scaled["conclusion"] == "sooner in 2 of 2 comparisons"
    assert {found["lr"] for found in scaled["rows"]} == {6e-4}
