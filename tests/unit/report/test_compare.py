from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
import pytest

from rewardgrid.report.compare import TOLERANCES, ComparedStatement, compare, in_plain_words
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.published import Published
from rewardgrid.report.tables import Row

from .trees import history, replica, routing, row

HAPPY = "sentence_length_10_smooth_with_happy"
BASES = {"storyteller-0000000000": {"sl10": 0.5}}


def claim(published: Published, identity: str, tables: dict[str, list[Row]], **more: Any) -> ComparedStatement:
    found = compare(published, Evidence(tables, bases=BASES, **more), "storyteller")
    (one,) = [entry for entry in found["claims"] if entry["id"] == identity]
    return one


def test_every_published_row_claim_and_relation_stands_in_the_comparison_once(published: Published) -> None:
    found = compare(published, Evidence(replica(published)), "storyteller")
    rows = Counter((entry["table"], entry["number"]) for entry in found["rows"])
    assert rows == {(name, i + 1): 1 for name, lines in published.tables.items() for i in range(len(lines))}
    assert [entry["id"] for entry in found["claims"]] == [each.id for each in published.claims]
    assert [entry["id"] for entry in found["relations"]] == [each.id for each in published.relations]


def test_a_study_that_got_the_published_figures_agrees_with_every_row_it_ran(published: Published) -> None:
    found = compare(published, Evidence(replica(published)), "storyteller")
    ran = [entry for entry in found["rows"] if entry["table"] != "routing_asymmetric.csv"]
    assert {entry["outcome"] for entry in ran} == {"agrees"}
    rest = [entry for entry in found["rows"] if entry["table"] == "routing_asymmetric.csv"]
    assert {entry["outcome"] for entry in rest} == {"not run"}
    ran_claims = {entry["id"]: entry["outcome"] for entry in found["claims"] if entry["outcome"] != "not run"}
    assert ran_claims == {
        "lora-lr1e-5-fails": "agrees",
        "smallest-rank": "agrees",
        "lora-lr-ratio": "agrees",
        "larger-batch-slower": "agrees",
    }
    ran_relations = {entry["outcome"] for entry in found["relations"] if entry["experiment"] == "lora_rank"}
    assert ran_relations == {"agrees"}


def test_without_any_cell_everything_is_not_run(published: Published) -> None:
    found = compare(published, Evidence({}), "storyteller")
    outcomes = {entry["outcome"] for part in ("rows", "claims", "relations") for entry in found[part]}  # type: ignore[literal-required]
    assert outcomes == {"not run"}


def test_a_missing_cell_is_not_run_and_a_diverged_one_differs(published: Published) -> None:
    settings = {"beta": 0.02, "repetition_penalty": 1.1}
    rows = [
        row("reward_sweep", state="missing", seed=42, **settings),
        row("reward_sweep", state="diverged", seed=123, steps_done=77, **settings),
    ]
    found = compare(published, Evidence({"reward_sweep": rows}), "storyteller")
    last_two = found["rows"][10:12]
    assert [entry["outcome"] for entry in last_two] == ["not run", "differs"]
    assert {item["ours"] for item in last_two[0]["items"]} == {"–"}
    assert {item["ours"] for item in last_two[1]["items"]} == {"diverged at step 77"}


@pytest.mark.parametrize(
    ("other", "base"), [({"max_steps": 150}, "storyteller"), ({"lr": 1e-3}, "storyteller"), ({}, "simplestories")]
)
def test_cells_of_other_settings_or_another_base_are_not_compared(
    published: Published, other: dict[str, Any], base: str
) -> None:
    found = compare(published, Evidence({"reward_sweep": [row("reward_sweep", **other)]}), base)
    assert {entry["outcome"] for entry in found["rows"]} == {"not run"}
    assert found["base"] == base


def test_figures_are_compared_wherever_the_cell_stands(published: Published) -> None:
    cell = row("mine", beta=0.02, repetition_penalty=1.1, seed=42, final_reward=0.9, final_kl=1.0, jaccard=0.136)
    found = compare(published, Evidence({"mine": [cell]}), "storyteller")
    assert found["rows"][10]["outcome"] == "agrees"


def test_one_figure_outside_its_tolerance_makes_the_row_differ(published: Published) -> None:
    cell = row("mine", beta=0.02, repetition_penalty=1.1, seed=42, final_reward=0.86, final_kl=1.25, jaccard=0.106)
    found = compare(published, Evidence({"mine": [cell]}), "storyteller")["rows"][10]
    assert {item["metric"]: item["outcome"] for item in found["items"]} == {
        "reward": "differs",
        "Jaccard": "agrees",
        "KL": "agrees",
        "verdict": "agrees",
    }
    assert found["outcome"] == "differs"


def test_a_field_that_was_not_published_is_not_compared(published: Published) -> None:
    found = compare(published, Evidence(replica(published)), "storyteller")
    fourth = [entry for entry in found["rows"] if entry["table"] == "lora_rank.csv"][3]
    assert [item["metric"] for item in fourth["items"]] == ["reward", "Jaccard", "verdict"]


def test_a_threshold_that_is_never_reached_differs(published: Published) -> None:
    cell = row("batch_size", method="lora", rank=1, lr=3e-4, batch_size=64, final_reward=0.99, verdict="degenerate")
    found = compare(published, Evidence({"batch_size": [cell]}), "storyteller")
    (entry,) = [entry for entry in found["rows"] if entry["outcome"] != "not run"]
    assert entry["items"][0] == {"metric": "s to 0.85", "published": "494", "ours": "never", "outcome": "differs"}
    assert entry["outcome"] == "differs"


def test_a_row_without_a_seed_is_compared_with_the_mean_over_seeds(published: Published) -> None:
    cells = [
        row("lora_rank", method="lora", rank=1, lr=3e-4, seed=seed, final_reward=reward, final_kl=1.1)
        for seed, reward in ((42, 0.93), (123, 0.99))
    ]
    found = compare(published, Evidence({"lora_rank": cells}), "storyteller")
    (entry,) = [e for e in found["rows"] if e["table"] == "lora_rank_summary.csv" and e["outcome"] != "not run"]
    assert entry["items"][0]["ours"] == "0.960"
    assert entry["outcome"] == "agrees"


def test_tolerances_include_their_limit() -> None:
    assert TOLERANCES["reward"].agrees(0.9, 0.93)
    assert not TOLERANCES["reward"].agrees(0.9, 0.931)
    assert TOLERANCES["KL"].agrees(2.0, 2.5)
    assert not TOLERANCES["KL"].agrees(2.0, 1.49)
    assert TOLERANCES["seconds"].agrees(100, 150)
    assert TOLERANCES["seconds"].agrees(150, 100)
    assert not TOLERANCES["seconds"].agrees(100, 151)


# --- claims --------------------------------------------------------------------------------------------


def exact(reward: str, seed: int, value: float, verdict: str = "ok") -> Row:
    return row("exact_match", reward=reward, repetition_penalty=1.2, seed=seed, final_reward=value, verdict=verdict)


def test_a_published_mean_is_compared_with_the_mean_over_seeds(published: Published) -> None:
    rows = [exact("sentence_length_10", 1, 0.1), exact("sentence_length_10", 2, 0.3)]
    found = claim(published, "exact10-reward", {"exact_match": rows})
    assert (found["outcome"], found["cells"]) == ("agrees", 2)
    assert found["ours"] == "0.100–0.300 (mean 0.200)"
    rows[0]["final_reward"] = 0.2  # type: ignore[index]
    assert claim(published, "exact10-reward", {"exact_match": rows})["outcome"] == "differs"


def test_a_published_verdict_must_be_that_of_most_cells(published: Published) -> None:
    bad = [exact("sentence_length_5", seed, 0.9, "degenerate") for seed in (1, 2)]
    fine = exact("sentence_length_5", 3, 0.6)
    assert claim(published, "exact5-collapse", {"exact_match": [*bad, fine]})["outcome"] == "agrees"
    assert claim(published, "exact5-collapse", {"exact_match": [bad[0], fine]})["outcome"] == "differs"


def two(experiment: str, steps: int, seed: int = 42, forget_rank: int = 32, **more: Any) -> Row:
    ranks = {"rank": more.pop("rank", 32), "forget_rank": forget_rank}
    settings = {"lr": 3e-4, "beta": 0.05, "batch_size": 128, "max_steps": steps, "seed": seed}
    return row(experiment, method="routing", reward=HAPPY, **ranks, **settings, **more)


def symmetric(happy: list[float], seed: int = 42, sl10: float = 0.5) -> tuple[Row, pd.DataFrame]:
    curves = {("retain_only", "happy"): happy, ("retain_only", "sl10"): [sl10] * 10}
    return two("routing_symmetric", 100, seed), routing(curves)


def test_zero_from_a_step_is_judged_by_the_median_seed(published: Published) -> None:
    def outcome(*zero_from: int | None) -> str:
        runs = [
            symmetric([0.0 if zero and step >= zero else 1.0 for step in range(10, 101, 10)], seed)
            for seed, zero in enumerate(zero_from)
        ]
        tables = {"routing_symmetric": [cell for cell, _ in runs]}
        curves = {cell["cell"]: frame for cell, frame in runs}
        return claim(published, "step1-retain-happy-zero", tables, routing=curves)["outcome"]

    # Published: from step 60 to 90.
    assert outcome(20, 70, None) == "agrees"
    assert outcome(20, 30, 70) == "differs"
    assert outcome(70, None, None) == "differs"


def test_a_range_over_a_window_is_judged_by_the_mean(published: Published) -> None:
    def outcome(*values: float) -> str:
        runs = [symmetric([0.0] * 10, seed, sl10) for seed, sl10 in enumerate(values)]
        tables = {"routing_symmetric": [cell for cell, _ in runs]}
        curves = {cell["cell"]: frame for cell, frame in runs}
        return claim(published, "step1-retain-sl10", tables, routing=curves)["outcome"]

    # Published: 0.45 to 0.60 at steps 60 to 100.
    assert outcome(0.45) == "agrees"
    assert outcome(0.4, 0.6) == "agrees"
    assert outcome(0.4, 0.4) == "differs"


def test_a_window_that_the_run_did_not_reach_is_not_run(published: Published) -> None:
    cell, frame = symmetric([0.0] * 5)
    curves = {cell["cell"]: frame[frame["step"] <= 50]}
    found = claim(published, "step1-retain-sl10", {"routing_symmetric": [cell]}, routing=curves)
    assert found["outcome"] == "not run"


def test_a_collapse_must_be_for_good_and_in_time(published: Published) -> None:
    def outcome(sl10: list[float]) -> str:
        cell = two("routing_low_rank", 400, rank=4, forget_rank=4)
        curves = {cell["cell"]: routing({("retain_only", "sl10"): sl10}, every=50)}
        return claim(published, "step3-r4-collapse", {"routing_low_rank": [cell]}, routing=curves)["outcome"]

    # Published: by step 150.
    assert outcome([0.5, 0.3, 0.09, 0.0, 0.0, 0.0]) == "agrees"
    assert outcome([0.5, 0.3, 0.09, 0.2, 0.0, 0.0]) == "differs"
    assert outcome([0.5, 0.5, 0.5, 0.5, 0.5, 0.5]) == "differs"


def test_about_and_from_about_are_both_needed(published: Published) -> None:
    def outcome(first: float, last: float) -> str:
        cell = two("routing_symmetric", 100)
        curves = {cell["cell"]: routing({("forget_only", "sl10"): [first] * 9 + [last]})}
        return claim(published, "step1-forget-sl10", {"routing_symmetric": [cell]}, routing=curves)["outcome"]

    # Published: about 0.3 at step 100, from about 0.5.
    assert outcome(0.45, 0.35) == "agrees"
    assert outcome(0.35, 0.35) == "differs"
    assert outcome(0.45, 0.45) == "differs"


def test_the_baseline_is_read_from_the_training_history(published: Published) -> None:
    settings = {"lr": 3e-4, "beta": 0.05, "batch_size": 128, "max_steps": 200}
    cell = row("routing_baseline", method="lora", rank=64, reward=HAPPY, **settings)
    curve = history([0.5] * 29 + [0.9] + [0.96] * 170, kl=0.7)
    more = {"histories": {cell["cell"]: curve}}
    tables = {"routing_baseline": [cell]}
    assert claim(published, "baseline-step30", tables, **more)["outcome"] == "agrees"
    assert claim(published, "baseline-stable", tables, **more)["outcome"] == "agrees"
    assert claim(published, "baseline-kl", tables, **more)["outcome"] == "differs"


def asymmetric(sl10: float, zero_from: int | None, forget: float, forget_rank: int, seed: int) -> tuple[Row, Any]:
    happy = [0.0 if zero_from and step >= zero_from else 0.7 for step in range(10, 101, 10)]
    curves = {
        ("retain_only", "sl10"): [sl10] * 10,
        ("retain_only", "happy"): happy,
        ("forget_only", "happy"): [forget] * 10,
    }
    return two("routing_asymmetric", 100, seed, forget_rank), routing(curves)


def test_the_asymmetric_rows_and_the_claim_about_them(published: Published) -> None:
    runs = [
        asymmetric(0.5, 60, 1.5, 16, 42),  # published 0.49-0.55, 0 from step 70, 1.3-1.9
        asymmetric(0.6, None, 0.5, 1, 123),  # published 0.58-0.63, 0.5-1.1 at step 100, 0.2-0.8
        asymmetric(0.5, 10, 0.5, 4, 42),  # published 0.48-0.57, 0 from step 70, 0.2-0.6: too early
        asymmetric(0.3, None, 0.5, 4, 123),  # published 0.51-0.56, 0.1 at step 100: neither
    ]
    tables = {"routing_asymmetric": [cell for cell, _ in runs]}
    curves = {cell["cell"]: frame for cell, frame in runs}
    found = compare(published, Evidence(tables, routing=curves, bases=BASES), "storyteller")
    rows = [entry for entry in found["rows"] if entry["table"] == "routing_asymmetric.csv"]
    assert [entry["outcome"] for entry in rows] == ["agrees", "not run", "differs", "differs", "not run", "agrees"]
    assert [item["outcome"] for item in rows[2]["items"]] == ["agrees", "differs", "agrees"]
    assert [item["outcome"] for item in rows[3]["items"]] == ["differs", "differs", "agrees"]
    table_claim = claim(published, "step3b-table", tables, routing=curves)
    assert (table_claim["outcome"], table_claim["ours"]) == ("differs", "2 of 6 rows agree, 4 were run")


def test_a_claim_says_in_words_what_was_published(published: Published) -> None:
    words = {each.id: in_plain_words(each) for each in published.claims}
    assert words["exact10-reward"] == "paid for sentence_length_10; reward 0.19 on average"
    assert words["step1-retain-happy-zero"] == "retain_only happy 0 from step 60–90"
    assert words["step3-r4-collapse"] == "rank 4; retain_only sl10 collapses to 0 by step 150"
    assert words["baseline-kl"] == "KL at steps 150–200, 0.58–0.68"
    assert words["smallest-rank"] == "smallest rank that passes 0.85: rank 1, lr 3e-4"
    assert all(words.values())
