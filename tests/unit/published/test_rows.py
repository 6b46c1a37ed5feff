"""Rows of the published tables beside ours, configuration by configuration."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from tests.trees import replica, routing, row, samples

from rewardgrid.published.comparison import Published, compare
from rewardgrid.published.rows import ComparedRow, compare_rows, seed_spreads
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.tables import Row

HAPPY = "sentence_length_10_smooth_with_happy"
BASE = "storyteller-0000000000"


def compared(published: Published, tables: dict[str, list[Row]], **more: Any) -> dict[str, ComparedRow]:
    """Rows by "table: settings"; the tables hold cells of the published settings."""
    ours = Evidence(tables, **more)
    rows = compare_rows(published.tables, ours, seed_spreads(published.tables, ours))
    return {f"{found['table']}: {found['settings']}": found for found in rows}


def test_every_published_configuration_stands_there_once(published: Published) -> None:
    rows = compare(published, Evidence(replica(published)), "storyteller")["rows"]
    assert len({(found["table"], found["settings"]) for found in rows}) == len(rows)
    assert {name: sum(found["table"] == name for found in rows) for name in published.tables} == {
        "reward_sweep.csv": 6,
        "lora_rank.csv": 13,
        "lora_rank_summary.csv": 4,
        "batch_size.csv": 6,
        "routing_asymmetric.csv": 3,
    }
    assert sum(found["seeds"] for found in rows if found["table"] == "lora_rank.csv") == 21


def test_a_study_that_got_the_published_figures_agrees_with_every_row_it_ran(published: Published) -> None:
    rows = compare(published, Evidence(replica(published)), "storyteller")["rows"]
    ran = [found for found in rows if found["table"] != "routing_asymmetric.csv"]
    assert {found["answer"] for found in ran} == {"agrees"}
    assert {found["answer"] for found in rows if found not in ran} == {"not run"}


@pytest.mark.parametrize("mine", [42, 123])
def test_one_published_seed_agrees_with_the_other(published: Published, mine: int) -> None:
    """Of the 14 configurations with two published seeds one seed is taken as published, the other as ours."""
    tables = {name: list(lines) for name, lines in published.tables.items()}
    ours = replica(published)
    for name, experiment in (("reward_sweep.csv", "reward_sweep"), ("lora_rank.csv", "lora_rank")):
        tables[name] = [line for line in tables[name] if line["seed"] != mine]
        ours[experiment] = [cell for cell in ours[experiment] if cell["seed"] == mine]
    # How far seeds lie apart is known from both.
    both = seed_spreads(published.tables, Evidence(replica(published)))
    rows = compare_rows(tables, Evidence(ours), both)
    items = [
        f"{found['settings']}: {item['metric']}"
        for found in rows
        if found["table"] in ("reward_sweep.csv", "lora_rank.csv")
        for item in found["items"]
        if item["answer"] == "differs" and item["ours"] != "–"
    ]
    # A Jaccard of 0.209 beside one of 0.356.
    assert items == ["beta 0.003, penalty 1.05: Jaccard"]


def test_how_far_seeds_lie_apart_is_pooled_over_configurations(published: Published) -> None:
    spreads = seed_spreads(published.tables, Evidence({}))
    # Two seeds of 14 configurations; one of them has no published count.
    assert (spreads["reward"].freedom, spreads["Jaccard"].freedom, spreads["unique/20"].freedom) == (14, 14, 7)
    # Of two values the variance is half the square of their difference: 4, 9, 0, 0, 9, 1, 9 over 2 and 7.
    assert spreads["unique/20"].sd == pytest.approx(math.sqrt((4 + 9 + 0 + 0 + 9 + 1 + 9) / 2 / 7))
    # KL by factors: the seeds at beta 0.003 and penalty 1.05 alone differ by log(3.17 / 2.13).
    assert spreads["KL"].sd > math.log(3.17 / 2.13) / math.sqrt(2 * 6)


def cell(seed: int, reward: float, kl: float = 1.0, jaccard: float = 0.131, **more: Any) -> Row:
    figures = {"final_reward": reward, "final_kl": kl, "jaccard": jaccard} | more
    return row("reward_sweep", beta=0.02, repetition_penalty=1.1, seed=seed, **figures)


def test_seeds_are_compared_together_and_not_one_by_one(published: Published) -> None:
    """Ours are the published two with their seeds exchanged."""
    rows = {"reward_sweep": [cell(42, 0.910), cell(123, 0.903)]}
    found = compared(published, rows)["reward_sweep.csv: beta 0.02, penalty 1.1"]
    assert (found["answer"], found["seeds"], found["cells"]) == ("agrees", 2, 2)


def test_one_figure_apart_makes_the_row_differ(published: Published) -> None:
    rows = {"reward_sweep": [cell(42, 0.86), cell(123, 0.86)]}
    found = compared(published, rows)["reward_sweep.csv: beta 0.02, penalty 1.1"]
    assert {item["metric"]: item["answer"] for item in found["items"]} == {
        "reward": "differs",
        "Jaccard": "agrees",
        "KL": "agrees",
        "verdict": "agrees",
    }
    assert found["answer"] == "differs"


def test_a_missing_cell_is_not_run_and_a_diverged_one_differs(published: Published) -> None:
    settings = {"beta": 0.02, "repetition_penalty": 1.1}
    gone = row("reward_sweep", state="diverged", seed=123, steps_done=77, **settings)
    missing = row("reward_sweep", state="missing", seed=42, **settings)
    for cells, answer, ours in (([missing], "not run", "–"), ([gone, missing], "differs", "diverged at step 77")):
        found = compare(published, Evidence({"reward_sweep": cells}), "storyteller")["rows"][5]
        assert found["answer"] == answer
        assert found["items"][0]["ours"] == ours


@pytest.mark.parametrize(
    ("other", "base"), [({"max_steps": 150}, "storyteller"), ({"lr": 1e-3}, "storyteller"), ({}, "simplestories")]
)
def test_cells_of_other_settings_or_another_base_are_not_compared(
    published: Published, other: dict[str, Any], base: str
) -> None:
    found = compare(published, Evidence({"reward_sweep": [row("reward_sweep", **other)]}), base)
    assert {entry["answer"] for entry in found["rows"]} == {"not run"}
    assert found["base"] == base


def test_figures_are_compared_wherever_the_cell_stands(published: Published) -> None:
    mine = {**cell(42, 0.9), "experiment": "mine"}
    found = compare(published, Evidence({"mine": [mine]}), "storyteller")
    assert found["rows"][5]["answer"] == "agrees"


def test_verdicts_are_compared_as_steps_between_ok_and_degenerate(published: Published) -> None:
    """Rank 2 at 3e-4 was once borderline and once degenerate; two of the 14 published configurations were like that."""

    def answer(*verdicts: str) -> str:
        cells = [
            row("lora_rank", method="lora", rank=2, lr=3e-4, seed=seed, final_reward=0.985, verdict=verdict)
            for seed, verdict in enumerate(verdicts)
        ]
        items = compared(published, {"lora_rank": cells})["lora_rank.csv: rank 2, lr 3e-4"]["items"]
        return items[-1]["answer"]

    assert answer("borderline", "borderline") == "agrees"
    assert answer("degenerate") == "agrees"
    assert answer("ok", "ok") == "differs"
    assert answer("ok") == "differs"


def test_a_published_verdict_stands_beside_ours_by_its_own_signals_too(published: Published) -> None:
    cells = [
        row("lora_rank", method="lora", rank=8, lr=1e-4, seed=seed, verdict=verdict, verdict_published_signals=alone)
        for seed, verdict, alone in ((42, "degenerate", "ok"), (123, "borderline", "ok"))
    ]
    found = compared(published, {"lora_rank": cells})["lora_rank.csv: rank 8, lr 1e-4"]
    assert [(item["metric"], item["published"], item["ours"], item["answer"]) for item in found["items"][-2:]] == [
        ("verdict", "ok", "1 borderline, 1 degenerate", "differs"),
        ("verdict (published signals)", "ok", "ok", "agrees"),
    ]


def test_a_published_figure_of_two_decimals_is_no_surer_than_that(published: Published) -> None:
    cells = [row("lora_rank", method="lora", rank=2, lr=1e-4, seed=seed, final_reward=0.8495) for seed in (1, 2)]
    found = compared(published, {"lora_rank": cells})["lora_rank_summary.csv: rank 2, lr 1e-4"]
    assert found["items"][0]["answer"] == "agrees"


def test_seconds_agree_within_a_factor_and_never_reaching_a_threshold_differs(published: Published) -> None:
    def items(at_085: float | None) -> list[str]:
        mine = row(
            "batch_size", method="lora", rank=1, lr=3e-4, batch_size=64, seconds_to_085=at_085, seconds_to_095=751.0
        )
        found = compared(published, {"batch_size": [mine]})["batch_size.csv: rank 1, lr 3e-4, batch 64"]["items"]
        return [found[0]["ours"].partition(" ")[0], found[0]["answer"], found[1]["answer"]]

    assert items(494 * 1.49) == ["736", "agrees", "agrees"]
    assert items(494 * 1.51) == ["746", "differs", "agrees"]
    assert items(None) == ["never", "differs", "agrees"]


def test_a_field_that_was_not_published_is_not_compared(published: Published) -> None:
    found = compared(published, replica(published))["lora_rank.csv: rank 8, lr 1e-4"]
    assert [item["metric"] for item in found["items"]] == ["reward", "unique/20", "Jaccard", "verdict"]
    summary = compared(published, replica(published))["lora_rank_summary.csv: rank 8, lr 1e-4"]
    assert [item["metric"] for item in summary["items"]] == ["reward", "KL"]


def asymmetric(
    seed: int, forget_rank: int, sl10: float, happy: float, forget: float
) -> tuple[Row, dict[str, Any], dict[str, Any]]:
    """A run whose retain_only writes so much "happy" at the end; its base writes 0.3, both adapters 8.3."""
    settings = {"rank": 32, "forget_rank": forget_rank, "lr": 3e-4, "beta": 0.05, "batch_size": 128, "max_steps": 100}
    mine = row("routing_asymmetric", method="routing", reward=HAPPY, seed=seed, **settings)
    curves = routing(
        {
            ("retain_only", "sl10"): [sl10] * 10,
            ("retain_only", "happy"): [4.0] * 6 + [happy] * 4,
            ("forget_only", "happy"): [forget] * 10,
        }
    )
    drawn = samples({"both": 8.3, "retain_only": happy, "forget_only": forget}, {"retain_only": sl10})
    return mine, {mine["cell"]: curves}, {mine["cell"]: drawn}


def test_ranges_of_routing_runs_are_those_of_all_seeds_near_the_end(published: Published) -> None:
    runs = [
        asymmetric(42, 16, 0.50, 0.3, 1.5),  # published 0.49-0.55, 0 from step 70, 1.3-1.9
        asymmetric(123, 16, 0.52, 0.4, 1.9),  # 0.51-0.58, 0 from step 70, 1.5-2.0
        asymmetric(42, 4, 0.30, 0.3, 0.5),  # 0.48-0.57: too low
        asymmetric(42, 1, 0.50, 3.3, 0.5),  # 0 or up to 1.1 of the hack left: far too much
    ]
    tables = {"routing_asymmetric": [mine for mine, _, _ in runs]}
    routing_of = {name: frame for _, curves, _ in runs for name, frame in curves.items()}
    drawn = {name: frame for _, _, frames in runs for name, frame in frames.items()}
    rows = compared(published, tables, routing=routing_of, samples=drawn | {BASE: samples({"both": 0.3})})
    found = [rows[f"routing_asymmetric.csv: rank 32, forget rank {rank}"] for rank in (16, 4, 1)]
    assert [entry["answer"] for entry in found] == ["agrees", "differs", "differs"]
    assert [item["answer"] for item in found[1]["items"]] == ["differs", "agrees", "agrees"]
    assert [item["answer"] for item in found[2]["items"]] == ["agrees", "differs", "agrees"]
    # "happy" beyond the base: 0 to 0.1.
    assert found[0]["items"][1]["ours"] == "0.00–0.10"


def test_no_interval_reaches_beyond_what_a_figure_can_be(published: Published) -> None:
    ours = Evidence(replica(published))
    rows = compare_rows(published.tables, ours, seed_spreads(published.tables, ours))
    largest = {"reward": 1.0, "Jaccard": 1.0, "unique/20": 20.0}
    shown = [(item["metric"], item[side]) for row in rows for item in row["items"] for side in ("published", "ours")]
    ends = [
        (metric, float(end))
        for metric, text in shown
        if metric in largest
        for found in re.findall(r"\(([-\d.]+) to ([-\d.]+)\)", text)
        for end in found
    ]
    assert len(ends) > 100
    assert all(0 <= end <= largest[metric] for metric, end in ends)
    assert ("reward", 1.0) in ends
