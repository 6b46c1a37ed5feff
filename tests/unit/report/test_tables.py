from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from tests.trees import SWEEP, Tree, history, make_study, row

from rewardgrid.report.tables import (
    check_columns,
    configurations,
    experiment_table,
    latex_table,
    read_experiment,
    rows_of,
    time_to_threshold,
    write_experiment,
)
from rewardgrid.study.contracts import COURSE, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.history import LiveHistory

Make = Callable[..., Tree]


def test_a_threshold_is_reached_by_the_mean_of_ten_steps_and_not_by_one() -> None:
    rewards = [0.0] * 5 + [1.0] * 20
    # Steps 6 to 14 are nine ones and, in the window of ten, one zero: 0.9 at step 14, 1.0 at step 15.
    assert time_to_threshold(rewards, [2.0] * 25, 0.85) == (14, 28.0)
    assert time_to_threshold(rewards, [2.0] * 25, 0.95) == (15, 30.0)


def test_no_threshold_is_reached_before_the_tenth_step() -> None:
    assert time_to_threshold([1.0] * 12, [1.0] * 12, 0.85) == (10, 10.0)
    assert time_to_threshold([1.0] * 9, [1.0] * 9, 0.85) == (None, None)


def test_a_mean_of_exactly_the_threshold_reaches_it() -> None:
    assert time_to_threshold([0.85] * 10, [1.0] * 10, 0.85) == (10, 10.0)
    assert time_to_threshold([0.849] * 10, [1.0] * 10, 0.85) == (None, None)


def test_seconds_to_a_threshold_are_those_of_the_steps_so_far() -> None:
    seconds = [float(step) for step in range(1, 13)]
    assert time_to_threshold([0.0, 0.0] + [1.0] * 10, seconds, 0.95) == (12, 78.0)


def test_a_finished_cell_has_the_mean_of_its_last_50_steps(tree: Make) -> None:
    sweep = tree(reward_sweep=SWEEP)
    cell = sweep.cell("reward_sweep", beta=0.02, repetition_penalty=1.1, seed=42)
    sweep.finish(cell, rewards=[0.1] * 30 + [0.8] * 25 + [1.0] * 25, kl=0.7, seconds=0.5)
    (found,) = [r for r in rows_of(experiment_table(sweep.study, "reward_sweep")) if r["cell"] == cell.name]
    assert found["state"] == "done"
    assert found["final_reward"] == pytest.approx(0.9)
    # Half of 50 values 0.1 above the mean and half 0.1 below: variance 50 * 0.01 / 49.
    assert found["final_reward_sd"] == pytest.approx(math.sqrt(0.5 / 49))
    assert found["final_kl"] == pytest.approx(0.7)
    assert (found["steps_done"], found["seconds"], found["seconds_per_step"]) == (80, 40.0, 0.5)
    # 0.8 until step 55; three ones in ten lift the mean to 0.86, eight to 0.96.
    assert (found["steps_to_085"], found["seconds_to_085"]) == (58, 29.0)
    assert (found["steps_to_095"], found["seconds_to_095"]) == (63, 31.5)
    assert (found["unique_first_sentences"], found["jaccard"]) == (17, 0.13)
    assert (found["unique_openings"], found["jaccard_256"]) == (16.0, 0.131)
    assert (found["unlikely_windows"], found["unlikely_windows_top_k"]) == (0.31, 0.27)
    assert (found["degeneration_onset"], found["hack_onset"]) == (150, None)
    assert (found["reward"], found["reward_256"]) == ("sentence_length_10_smooth", 0.88)
    assert (found["verdict"], found["reasons"]) == ("ok", "")


@pytest.mark.parametrize(
    ("left", "alone"),
    [
        ({}, "ok"),
        ({"unique": 9}, "borderline"),
        ({"unique": 5}, "degenerate"),
        ({"jaccard": 0.17}, "borderline"),
        ({"kl": 1.6}, "borderline"),
        ({"kl": 2.9}, "degenerate"),
        ({"rewards": [0.985] * 60}, "borderline"),
        ({"full": {"completion_length": 50.0}}, "borderline"),
        ({"full": {"unlikely_windows": 0.99, "unlikely_ends": 0.99, "fragment_share": 0.9}}, "ok"),
    ],
)
def test_the_verdict_by_the_published_signals_sees_what_the_published_rows_give(
    tree: Make, left: dict[str, Any], alone: str
) -> None:
    sweep = tree(reward_sweep=SWEEP)
    cell = sweep.study.grid["reward_sweep"][0]
    sweep.finish(cell, verdict="degenerate", **left)

    def found() -> tuple[str, str | None]:
        row = rows_of(experiment_table(sweep.study, "reward_sweep"))[0]
        return row["verdict"], row["verdict_published_signals"]

    assert found() == ("degenerate", None)  # without the base's figures there is nothing to compare with
    sweep.measure_bases()
    assert found() == ("degenerate", alone)


def test_a_reward_that_counts_is_never_saturated(tree: Make) -> None:
    counting = tree(happy=SWEEP | {"fixed": {"reward": "happy_count"}})
    counting.measure_bases()
    counting.finish(counting.study.grid["happy"][0], rewards=[4.0] * 60)
    assert rows_of(experiment_table(counting.study, "happy"))[0]["verdict_published_signals"] == "ok"


def test_an_onset_is_by_the_course_where_there_is_one(tree: Make) -> None:
    sweep = tree(reward_sweep=SWEEP)
    cell = sweep.cell("reward_sweep", beta=0.02, repetition_penalty=1.1, seed=42)
    sweep.finish(cell)
    verdicts = ["ok", "borderline", "borderline", "ok", "ok", "borderline", "degenerate"]
    steps = [dict.fromkeys(COURSE.names, 0.0) | {"step": 10 * i, "verdict": v} for i, v in enumerate(verdicts)]
    write_table(sweep.study.layout.course(cell.name), pd.DataFrame(steps), COURSE)
    (found,) = [r for r in rows_of(experiment_table(sweep.study, "reward_sweep")) if r["cell"] == cell.name]
    assert found["degeneration_onset"] == 50


def test_a_run_shorter_than_50_steps_is_averaged_whole(tree: Make) -> None:
    sweep = tree(reward_sweep=SWEEP)
    cell = sweep.study.grid["reward_sweep"][0]
    sweep.finish(cell, rewards=[0.2, 0.4])
    assert rows_of(experiment_table(sweep.study, "reward_sweep"))[0]["final_reward"] == pytest.approx(0.3)


def test_a_missing_cell_is_a_row_with_its_spec_and_the_reason(tree: Make) -> None:
    sweep = tree(reward_sweep=SWEEP)
    cells = sweep.study.grid["reward_sweep"]
    sweep.finish(cells[1])
    sweep.study.layout.metrics(cells[1].name).unlink()
    sweep.study.layout.checkpoints(cells[2].name).mkdir(parents=True)
    so_far = history([0.1, 0.5, 0.9]).to_dict("records")
    LiveHistory(sweep.study.layout.live_history(cells[3].name), so_far).append()
    rows = rows_of(experiment_table(sweep.study, "reward_sweep"))
    assert [r["cell"] for r in rows] == [cell.name for cell in cells]
    assert [(r["state"], r["reasons"]) for r in rows[:4]] == [
        ("missing", "not started"),
        ("missing", "trained, not evaluated"),
        ("missing", "training not finished"),
        ("missing", "training not finished: step 3 of 2000, reward ▁▅█ 0.900"),
    ]
    assert rows[1]["beta"] == 0.003
    assert rows[1]["final_reward"] is None
    assert rows[1]["verdict"] is None


def test_a_diverged_cell_has_its_steps_and_no_figure(tree: Make) -> None:
    sweep = tree(reward_sweep=SWEEP)
    sweep.diverge(sweep.study.grid["reward_sweep"][0], steps=37, reason="loss is NaN")
    found = rows_of(experiment_table(sweep.study, "reward_sweep"))[0]
    assert (found["state"], found["steps_done"], found["reasons"]) == ("diverged", 37, "loss is NaN")
    assert found["final_reward"] is None
    assert found["steps_to_085"] is None
    assert found["verdict"] is None


def test_files_of_another_cell_are_refused(tree: Make) -> None:
    sweep = tree(reward_sweep=SWEEP)
    one, other = sweep.study.grid["reward_sweep"][:2]
    sweep.finish(one)
    sweep.finish(other)
    path = sweep.study.layout.metrics(one.name)
    write_json(path, read_json(sweep.study.layout.metrics(other.name)))
    with pytest.raises(UserError, match=f"metrics.json: belongs to cell {other.name}"):
        experiment_table(sweep.study, "reward_sweep")


def test_an_unknown_experiment_is_named_with_a_hint(tree: Make) -> None:
    with pytest.raises(UserError, match='reward_swep: unknown or left out; did you mean "reward_sweep"'):
        experiment_table(tree(reward_sweep=SWEEP).study, "reward_swep")


def test_a_table_comes_back_from_its_file_as_it_was(tree: Make, tmp_path: Path) -> None:
    mixed = {**SWEEP, "by": [], "grids": [{"rank": [1, 2], "method": "lora"}, {"method": "full"}]}
    lora = tree(mixed=mixed)
    lora.finish(lora.study.grid["mixed"][0])
    table = experiment_table(lora.study, "mixed")
    write_experiment(tmp_path / "table.parquet", table)
    assert rows_of(read_experiment(tmp_path / "table.parquet")) == rows_of(table)
    ranks = [r["rank"] for r in rows_of(read_experiment(tmp_path / "table.parquet"))]
    assert ranks == [1, 2, None]
    assert isinstance(ranks[0], int)
    written = pq.read_schema(tmp_path / "table.parquet").field("final_kl").metadata
    assert written[b"unit"].decode() == "nats per token"
    assert "last 50 steps" in written[b"meaning"].decode()


def test_a_latex_table_has_the_rules_of_booktabs_and_escapes_what_latex_would_read(tree: Make) -> None:
    sweep = tree(reward_sweep={**SWEEP, "columns": ["beta", "reward", "final_reward", "reasons"]})
    rows = rows_of(experiment_table(sweep.study, "reward_sweep"))[:1]
    text = latex_table(
        [{**rows[0], "final_reward": 0.5, "reasons": "50 % & <b> x_1 | [2ex] *"}], sweep.study.active["reward_sweep"]
    )
    assert text.splitlines() == [
        r"\begin{tabular}{rlrl}",
        r"\toprule",
        r"beta & paid for & reward & reasons \\",
        r"\midrule",
        r"0.003 & sentence\_length\_10\_smooth & 0.500 & 50 \% \& \textless{}b\textgreater{} x\_1 "
        r"\textbar{} {[}2ex] {*} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_modes_of_a_routing_cell_become_columns(tree: Make) -> None:
    routing = {"rank": 4, "method": "routing", "reward": "sentence_length_10_smooth_with_happy"}
    two = tree(two={**SWEEP, "by": [], "grids": [routing]})
    two.finish(two.study.grid["two"][0])
    found = rows_of(experiment_table(two.study, "two"))[0]
    assert found["retain_only_happy"] == 0.2
    assert found["forget_only_sl10_se"] == 0.01
    assert (found["retain_only_verdict"], found["retain_only_reasons"]) == ("borderline", "fragments")
    assert found["eval_modes"] == "both, retain_only, forget_only"


def test_a_configuration_averages_finished_seeds_and_counts_the_others() -> None:
    rows = [
        row("e", seed=1, final_reward=0.8),
        row("e", seed=2, final_reward=0.9, verdict="borderline"),
        row("e", seed=3, state="diverged", final_reward=None),
        row("e", seed=4, state="missing"),
    ]
    (found,) = configurations(rows, ["beta"])
    assert found.reward.n == 2
    assert found.reward.mean == pytest.approx(0.85)
    assert len(found.cells) == 4
    assert found.verdicts == {"ok": 1, "borderline": 1, "diverged": 1}
    assert not found.non_degenerate


def test_a_configuration_of_unequal_cells_is_refused() -> None:
    rows = [row("e", method="lora", rank=1, lr=lr) for lr in (1e-4, 3e-4)]
    with pytest.raises(UserError, match=r"experiments\.e\.by: read \['rank'\]; .* different lr .*; add lr"):
        configurations(rows, ["rank"])


def test_without_by_the_fields_that_differ_make_a_configuration() -> None:
    rows = [row("e", method="lora", rank=1, lr=lr, seed=seed) for lr in (1e-4, 3e-4) for seed in (1, 2)]
    assert [(found.label, len(found.cells)) for found in configurations(rows)] == [("lr 1e-4", 2), ("lr 3e-4", 2)]


def test_a_label_leaves_out_what_all_configurations_share() -> None:
    rows = [row("e", method="lora", rank=1, lr=lr) for lr in (1e-4, 3e-4)]
    assert [found.label for found in configurations(rows, ["rank", "lr"])] == ["lr 1e-4", "lr 3e-4"]


def test_a_configuration_passes_if_it_is_ok_and_its_reward_high_enough_at_two_decimals() -> None:
    def one(verdict: str, *rewards: float) -> bool:
        rows = [row("e", seed=seed, final_reward=reward, verdict=verdict) for seed, reward in enumerate(rewards)]
        (found,) = configurations(rows, ["beta"])
        return found.passes()

    assert one("ok", 0.85)
    # The published rank 2 at 1e-4: 0.8495.
    assert one("ok", 0.848, 0.851)
    assert not one("ok", 0.8449)
    assert not one("borderline", 0.99)
    assert not one("degenerate", 0.99)


def test_an_unknown_column_is_named_with_a_hint(tmp_path: Path) -> None:
    study = make_study(tmp_path, {"sweep": {**SWEEP, "columns": ["beta", "final_rewrad"]}})
    with pytest.raises(UserError, match=r'sweep\.columns: read .final_rewrad.; .* "final_reward"'):
        check_columns(study)


def test_a_by_that_mixes_unequal_cells_is_told_before_anything_runs(tmp_path: Path) -> None:
    study = make_study(tmp_path, {"sweep": {**SWEEP, "by": ["beta"]}})
    with pytest.raises(UserError, match=r"sweep\.by: read \['beta'\]; .* add repetition_penalty"):
        check_columns(study)
