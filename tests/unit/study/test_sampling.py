"""Random search: which points an experiment's ranges give, and what is no range."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewardgrid.study.errors import ConfigError
from rewardgrid.study.problems import validated
from rewardgrid.study.sampling import Sample
from rewardgrid.study.study import Study, load_study

STORYTELLER = {"kind": "packaged", "path": str(Path(__file__).parents[3] / "resources/bases/storyteller")}
RANGES: dict[str, Any] = {"lr": {"log": ["1e-5", 1e-3]}, "rank": [1, 2, 4, 8], "beta": {"uniform": [0, 0.1]}}


def sample(n: int = 40, seed: int = 1, **ranges: Any) -> Sample:
    return Sample.model_validate({"n": n, "seed": seed, "ranges": ranges or RANGES})


def load(directory: Path, sample: Any, **experiment: Any) -> Study:
    block = {"title": "One", "fixed": {"method": "lora"}, "sample": sample} | experiment
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump({"bases": {"storyteller": STORYTELLER}, "experiments": {"one": block}}))
    return load_study([path])


def problem(directory: Path, sample: Any, **experiment: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, sample, **experiment)
    return "\n".join(f"{each.key}: {each.fix}" for each in caught.value.problems)


def test_points_are_the_same_everywhere() -> None:
    """Frozen: another point is another cell, which nobody has trained."""
    assert sample(3).points == [
        {"lr": 2.5e-05, "rank": 8, "beta": 0.009},
        {"lr": 2.6e-05, "rank": 8, "beta": 0.007},
        {"lr": 1.8e-05, "rank": 4, "beta": 0.09},
    ]


def test_more_points_keep_those_before_them_and_another_seed_none() -> None:
    assert sample(60).points[:40] == sample(40).points
    assert not [point for point in sample(seed=2).points if point in sample(seed=1).points]


def test_another_range_leaves_the_draws_of_the_others_alone() -> None:
    narrow = sample(lr=RANGES["lr"], beta=RANGES["beta"], rank=[16, 32])
    assert [point["lr"] for point in narrow.points] == [point["lr"] for point in sample().points]


def test_points_fill_their_ranges_at_few_digits() -> None:
    points = sample(400).points
    assert len({str(point) for point in points}) == 400
    rates = [point["lr"] for point in points]
    assert 1e-5 <= min(rates) < 1.2e-5
    assert 8e-4 < max(rates) <= 1e-3
    assert sum(rate < 1e-4 for rate in rates) == pytest.approx(200, abs=40)  # as many in each decade
    assert all(rate == float(f"{rate:.1e}") for rate in rates)
    betas = [point["beta"] for point in points]
    assert math.fsum(betas) / 400 == pytest.approx(0.05, abs=0.006)
    assert all(beta == round(beta, 3) for beta in betas)
    counts = [sum(point["rank"] == rank for point in points) for rank in (1, 2, 4, 8)]
    assert min(counts) > 70


def test_whole_numbers_stay_whole_and_reach_both_ends() -> None:
    points = sample(9, rank={"uniform": [1, 3]}, num_iterations={"log": [1, 4]}).points
    assert {point["rank"] for point in points} == {1, 2, 3}
    assert all(type(value) is int for point in points for value in point.values())
    assert {point["num_iterations"] for point in points} <= {1, 2, 3, 4}
    assert all(
        1.0 <= point["repetition_penalty"] <= 1.2 for point in sample(repetition_penalty={"uniform": [1, 1.2]}).points
    )


def test_every_cell_of_the_grids_is_trained_at_each_point(tmp_path: Path) -> None:
    spec = {"n": 4, "seed": 1, "ranges": RANGES}
    cells = load(tmp_path, spec, grids=[{"seed": [42, 123]}]).grid["one"]
    assert [cell.seed for cell in cells] == [42, 123] * 4
    assert [(cell.lr, cell.rank, cell.beta) for cell in cells[::2]] == [
        tuple(point.values()) for point in sample(4).points
    ]
    more = load(tmp_path, spec | {"n": 6}, grids=[{"seed": [42, 123]}]).grid["one"]
    assert [cell.name for cell in more[:8]] == [cell.name for cell in cells]
    assert cells[0].name.startswith("lora-r8_lr2.5e-5_beta0.009_s42-")
    alone = load(tmp_path, spec)
    assert len(alone.cells) == 4
    assert list(validated(Study, alone.model_dump_json(), "study.json").cells) == list(alone.cells)


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"lr": {"log": [0, 1e-3]}}, "sample.ranges.lr.log: write ends above 0"),
        ({"lr": {"log": [1e-3, 1e-5]}}, "sample.ranges.lr.log: write the lower end first"),
        ({"lr": {"log": [1e-5, 1e-3], "uniform": [0, 1]}}, "sample.ranges.lr.log: write one of: a list of values"),
        ({"lr": {}}, "sample.ranges.lr.uniform: write one of: a list of values, {uniform: [lowest, highest]}"),
        ({"lr": {"log": [1e-5, "x"]}}, "sample.ranges.lr.log[1]: write a valid number"),
        ({"lr": {"lgo": [1e-5, 1e-3]}}, 'sample.ranges.lr.lgo: unknown key; did you mean "log"?'),
        ({"lr": []}, "sample.ranges.lr.choices"),
        ({"lr": 1e-3}, "sample.ranges.lr: write"),
        ({"lrr": {"log": [1e-5, 1e-3]}, "rank": [1]}, 'sample.ranges.lrr: unknown key; did you mean "lr"?'),
        ({"rank": [0, 1, 2, 3, 4, 5]}, "sample.ranges.rank: write a number greater than or equal to 1"),
        ({"rank": [1, 2]}, "sample.n: write 2 or less, or wider ranges"),
        ({"rank": [1, 2, 3, 4], "seed": [1, 2]}, "sample: seed stands in grids too"),
        ({}, "sample.ranges"),
    ],
    ids=str,
)
def test_what_is_no_range_is_named_where_it_stands(ranges: Any, said: str, tmp_path: Path) -> None:
    found = problem(tmp_path, {"n": 4, "ranges": ranges}, grids=[{"seed": 1}])
    assert f"experiments.one.{said}" in found


def test_without_ranges_or_grids_there_are_no_cells(tmp_path: Path) -> None:
    assert "experiments.one.grids: missing; write this key, or sample" in problem(tmp_path, None)
    assert "sample.n: missing" in problem(tmp_path, {"ranges": RANGES})
