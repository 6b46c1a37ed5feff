"""Evaluating a base, a finished cell and a diverged one: the files and what stands in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.runs import run
from tests.tiny import CELLS, make_cell, routing_cell

from rewardgrid.base.load import Base
from rewardgrid.evaluate.cell import evaluate_base, evaluate_cell, judge, routing_table
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import ROUTING, SAMPLES, read_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Evaluation
from rewardgrid.train.engines.native import train

SETTINGS = Evaluation(samples=20, published_samples=10, published_top_k=5)
LENGTH = make_cell().max_new_tokens


@pytest.fixture(scope="module")
def reference(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base's own metrics."""
    out = tmp_path_factory.mktemp("reference")
    evaluate_base(base, SETTINGS, LENGTH, out)
    return out / "metrics.json"


def evaluated(cell: Cell, base: Base, reference: Path, root: Path) -> tuple[Path, dict[str, Any]]:
    (directory,) = run(train, [cell], base, root)
    evaluate_cell(directory, cell, base, reference, SETTINGS)
    return directory / "evaluation", read_json(directory / "evaluation" / "metrics.json")


def numbers(value: object) -> list[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_the_bases_metrics_are_those_of_its_samples(reference: Path) -> None:
    found = read_json(reference)
    assert (found["state"], found["max_new_tokens"], found["verdict"]) == ("base", LENGTH, None)
    samples = read_table(reference.parent / "samples.parquet", SAMPLES)
    assert samples.groupby("protocol").size().to_dict() == {"full": 20, "published": 10}
    full = samples[samples["protocol"] == "full"]
    assert found["full"]["sl10"] == pytest.approx(full["sl10"].mean())
    assert found["full"]["kl_exact"] == 0


@pytest.mark.parametrize("method", CELLS)
def test_a_finished_cell_has_samples_figures_and_a_verdict(
    method: str, base: Base, reference: Path, tmp_path: Path
) -> None:
    cell = CELLS[method](lr=0.05)
    out, found = evaluated(cell, base, reference, tmp_path)
    assert (found["cell"], found["state"]) == (cell.name, "done")
    assert found["verdict"] in ("ok", "borderline", "degenerate")
    assert len(numbers(found)) > 20
    assert all(map(math.isfinite, numbers(found)))
    samples = read_table(out / "samples.parquet", SAMPLES)
    modes = ["both", "retain_only", "forget_only"] if cell.is_routing else ["both"]
    full = samples[samples["protocol"] == "full"]
    assert full.groupby("mode").size().to_dict() == dict.fromkeys(modes, 20)
    both = full[full["mode"] == "both"]
    for name in ("reward", "sl10", "happy"):
        assert found["full"][name] == pytest.approx(both[name].mean())
    assert found["full"]["kl_exact"] > 1e-3
    assert full.groupby("mode")["completion"].agg(tuple).nunique() == len(modes)
    assert set(found["modes"]) == (set(modes) if cell.is_routing else set())
    for mode in found["modes"]:
        assert found["modes"][mode]["happy"] == pytest.approx(full[full["mode"] == mode]["happy"].mean())


def test_the_evaluations_of_training_become_a_row_for_each_step_and_mode(
    base: Base, reference: Path, tmp_path: Path
) -> None:
    cell = routing_cell()
    out, _ = evaluated(cell, base, reference, tmp_path)
    table = read_table(out / "routing.parquet", ROUTING)
    assert sorted(zip(table["step"], table["mode"], strict=True)) == [
        (step, mode) for step in (2, 4) for mode in ("both", "forget_only", "retain_only")
    ]
    raw = pd.read_parquet(tmp_path / cell.name / "train" / "mode_samples.parquet")
    for row in table.to_dict("records"):
        own = raw[(raw["step"] == row["step"]) & (raw["mode"] == row["mode"])]
        assert row["samples"] == len(own) == 6
        assert row["sl10"] == pytest.approx(own["sl10"].mean())
        assert row["happy"] == pytest.approx(own["happy"].mean())
        assert row["unique"] == pytest.approx(own["completion"].nunique() / 6)


def test_a_cell_without_two_adapters_has_no_evaluations_by_mode(base: Base, reference: Path, tmp_path: Path) -> None:
    out, found = evaluated(make_cell(), base, reference, tmp_path)
    assert read_table(out / "routing.parquet", ROUTING).empty
    assert found["modes"] == {}
    assert list(routing_table(pd.DataFrame({"step": [], "mode": []})).columns) == ROUTING.names


def test_a_diverged_cell_has_no_figures_and_no_verdict(base: Base, reference: Path, tmp_path: Path) -> None:
    out, found = evaluated(make_cell(kl_cap=1e-9), base, reference, tmp_path)
    assert found["state"] == "diverged"
    assert found["verdict"] is None
    assert found["published"] == found["full"] == found["modes"] == {}
    assert read_table(out / "samples.parquet", SAMPLES).empty
    assert read_table(out / "routing.parquet", ROUTING).empty


def test_an_evaluation_can_be_repeated(base: Base, reference: Path, tmp_path: Path) -> None:
    cell = make_cell()
    out, _ = evaluated(cell, base, reference, tmp_path)
    first = (out / "metrics.json").read_bytes()
    evaluate_cell(out.parent, cell, base, reference, SETTINGS)
    assert (out / "metrics.json").read_bytes() == first


def test_more_samples_than_prompts_is_an_error_that_says_what_to_write(
    base: Base, reference: Path, tmp_path: Path
) -> None:
    cell = make_cell()
    (directory,) = run(train, [cell], base, tmp_path)
    with pytest.raises(UserError, match=r"has 24 prompts, the evaluation needs 40; write evaluation.samples: 24"):
        evaluate_cell(directory, cell, base, reference, Evaluation(samples=40))


def test_an_unfinished_cell_is_not_evaluated(base: Base, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"status.json: no such file"):
        evaluate_cell(tmp_path / "none", make_cell(), base, reference, SETTINGS)


def test_another_cells_training_is_not_evaluated(base: Base, reference: Path, tmp_path: Path) -> None:
    (directory,) = run(train, [make_cell()], base, tmp_path)
    with pytest.raises(UserError, match=r"is of cell 'full_.*', not 'full_.*'; train it again"):
        evaluate_cell(directory, make_cell(seed=8), base, reference, SETTINGS)


def test_lengths_are_not_judged_against_a_base_sampled_to_another_length(reference: Path) -> None:
    figures = read_json(reference)
    short = dict(figures["full"]) | {"completion_length": figures["full"]["completion_length"] / 100}
    same, longer = (
        judge(short, figures | {"max_new_tokens": length}, make_cell(), SETTINGS) for length in (LENGTH, 2 * LENGTH)
    )
    assert any("completion_length" in line for line in same["evidence"])
    assert not any("completion_length" in line for line in longer["evidence"])
