"""Edit something, and exactly what depends on it runs again; above all, nothing trains a cell twice."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rewardgrid.study.cell import METRICS_VERSION, Cell
from rewardgrid.study.layers import merge
from rewardgrid.study.study import Study
from tests.workflow.project import MICRO, Project, make_project

REPORT = {"table": 2, "figures": 2, "findings": 1, "published": 1, "page": 1, "results": 1}
RENDER = {"study": 1, "index": 1, **REPORT}
MEASURE = {"evaluate_base": 1, "evaluate": 2}


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A micro study that has been run; every test but the last leaves it as it was."""
    project = make_project(root, tmp_path_factory.mktemp("reruns") / "a checkout")
    project.run("--cores", "2")
    return project


@pytest.fixture
def study(project: Project) -> Study:
    return project.study


@pytest.fixture
def cell(study: Study) -> Cell:
    """The cell of the sweep that no other experiment shares; the native engine trains it, TRL the other."""
    (cell,) = set(study.grid["sweep"]) - set(study.grid["shared"])
    return cell


@contextlib.contextmanager
def configured(project: Project, overlay: dict[str, Any]) -> Iterator[None]:
    """The configuration with this laid over it, for a while."""
    project.configure(merge(deepcopy(MICRO), overlay))
    try:
        yield
    finally:
        project.configure(MICRO)


@contextlib.contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """A file with one passage replaced, for a while."""
    before = path.read_text(encoding="utf-8")
    assert before.count(old) == 1
    path.write_text(before.replace(old, new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def test_a_run_ends_with_every_result_and_a_second_one_has_nothing_to_do(project: Project, study: Study) -> None:
    results = project.directory / "results"
    assert "Micro" in (results / "RESULTS.md").read_text(encoding="utf-8")
    assert (results / "figures/sweep/learning_curves.svg").exists()
    assert project.plan() == {}
    text = project.run("--dry-run", "--cores", "1").stdout
    assert "Micro: 2 cells (2 done)." in text
    assert "Training left" not in text


def test_snakemakes_report_carries_the_results_with_captions_and_labels(project: Project) -> None:
    project.run("--report", "report.zip")
    with zipfile.ZipFile(project.directory / "report.zip") as archive:
        kept = {Path(name).name: archive.read(name) for name in archive.namelist() if "/data/raw/" in name}
        page = archive.read("report/report.html").decode()
    figures = {"learning_curves.svg"}
    tables = {f"{name}.{kind}" for name in ("sweep", "shared") for kind in ("csv", "tex")}
    assert kept.keys() == {"RESULTS.md", "report.html"} | figures | tables
    results = project.directory / "results"
    assert kept["report.html"] == (results / "report.html").read_bytes()
    assert kept["sweep.csv"] == (results / "tables/sweep.csv").read_bytes()
    for said in ("works offline: a table that filters", "Page of runs", "LaTeX", "figure", "booktabs"):
        assert said in page
    # Every cell of RESULTS.md can be looked at, and the page has it.
    linked = re.findall(r"\]\(report\.html#cell=([^)]*)\)", (results / "RESULTS.md").read_text(encoding="utf-8"))
    assert set(linked) == set(project.study.cells)
    assert project.plan() == {}


def test_experiments_that_name_the_same_cell_share_one_run(project: Project, study: Study) -> None:
    cells = project.directory / "results/cells"
    assert {path.name for path in cells.iterdir()} == set(study.cells)
    index = pd.read_csv(project.directory / "results/cells.tsv", sep="\t", index_col="cell")
    assert sorted(index["experiments"]) == ["sweep", "sweep,shared"]
    assert index["beta"].to_dict() == {name: cell.beta for name, cell in study.cells.items()}


def test_a_deleted_cell_is_trained_alone_when_its_path_is_asked_for(project: Project, study: Study, cell: Cell) -> None:
    path = project.directory / study.layout.cell(cell.name)
    weights = "train/weights/model.safetensors"
    before = (path / weights).read_bytes()
    target = str(study.layout.metrics(cell.name))
    shutil.rmtree(path)
    assert project.plan()["train"] == 1
    assert project.plan(target) == {"train": 1, "evaluate": 1}
    project.run("--cores", "2", target)
    assert (path / weights).read_bytes() == before
    assert project.plan(target) == {}
    # Its figures are the same to the byte, so there is nothing to render either.
    assert project.plan() == {}


def test_touching_every_file_of_the_source_and_losing_logs_runs_nothing(project: Project) -> None:
    shutil.rmtree(project.directory / "logs")
    for part in ("Snakefile", "rules", "workflow", "profiles", "envs", "src", "config"):
        for path in [project.directory / part, *(project.directory / part).rglob("*")]:
            os.utime(path)
    assert project.plan() == {}


def test_a_measured_cell_is_not_measured_again_because_its_run_is_newer(project: Project, cell: Cell) -> None:
    """As after a copy that keeps no times. Without weights, which no archive has, it could not be."""
    layout = project.study.layout
    run = [project.directory / path for path in (layout.spec(cell.name), layout.train(cell.name))]
    now = time.time()
    for path in [*run, *run[1].rglob("*")]:
        os.utime(path, (now, now))
    assert project.plan() == {}
    aside = (run[1] / "weights").rename(project.directory / "weights")
    reference = project.directory / layout.base_metrics(cell.base_id)
    os.utime(reference, (now, now))
    assert project.plan(str(layout.metrics(cell.name))) == {}
    aside.rename(run[1] / "weights")


def test_switching_to_a_branch_with_other_code_and_back_runs_nothing(project: Project) -> None:
    project.git("checkout", "--quiet", "-b", "other")
    for path in ("workflow/scripts/train.py", "src/rewardgrid/train/grpo.py", "rules/train.smk", "envs/train.yaml"):
        with (project.directory / path).open("a", encoding="utf-8") as stream:
            stream.write("\n# another thought\n")
    project.git("commit", "--quiet", "--all", "--message", "Another thought")
    assert project.plan() == {}
    project.git("checkout", "--quiet", "-")
    assert project.plan() == {}


@pytest.mark.parametrize(
    "overlay",
    [
        {"title": "Another", "experiments": {"sweep": {"title": "Another", "columns": ["beta"], "figures": []}}},
        {"recording": {"rollouts_every": 1, "checkpoint_every": 1}},
    ],
    ids=["words", "recording"],
)
def test_what_changes_no_cell_only_renders_again(project: Project, overlay: dict[str, Any]) -> None:
    with configured(project, overlay):
        assert project.plan() == RENDER


@pytest.mark.parametrize(
    "overlay",
    [
        {"evaluation": {"thresholds": {"kl": {"borderline": 1.0, "degenerate": 2.0}}}},
        {"evaluation": {"samples": 24}},
    ],
    ids=["thresholds", "samples"],
)
def test_another_evaluation_measures_again_and_trains_nothing(project: Project, overlay: dict[str, Any]) -> None:
    with configured(project, overlay):
        assert project.plan() == RENDER | MEASURE


def test_another_version_of_measurements_measures_every_cell_again_and_trains_nothing(project: Project) -> None:
    cell = project.directory / "src/rewardgrid/study/cell.py"
    with edited(cell, f"METRICS_VERSION = {METRICS_VERSION}\n", f"METRICS_VERSION = {METRICS_VERSION + 1}\n"):
        assert project.plan() == REPORT | MEASURE


@pytest.mark.parametrize(
    ("overlay", "cells"),
    [
        ({"defaults": {"kl_cap": 500.0}}, 2),
        ({"experiments": {"sweep": {"grids": [{"beta": 0.01, "engine": "trl"}, {"beta": 0.2}]}}}, 1),
    ],
    ids=["cap", "grid"],
)
def test_another_hyper_parameter_is_another_path_and_trains_just_that(
    project: Project, overlay: dict[str, Any], cells: int
) -> None:
    with configured(project, overlay):
        plan = project.plan()
        assert plan["train"] == plan["evaluate"] == cells
        assert plan["base"] == plan["evaluate_base"] == 0


def test_a_cell_that_has_just_been_added_is_trained_when_its_path_is_asked_for(project: Project, study: Study) -> None:
    with configured(project, {"experiments": {"sweep": {"grids": [{"beta": [0.1, 0.3]}]}}}):
        added = project.study
        (name,) = set(added.cells) - set(study.cells)
        train, metrics = str(added.layout.train(name)), str(added.layout.metrics(name))
        assert project.plan(train) == {"study": 1, "train": 1}
        assert project.plan(metrics) == {"study": 1, "train": 1, "evaluate": 1}


def test_another_recipe_of_a_base_is_another_base_and_other_cells(project: Project) -> None:
    with configured(project, {"bases": {"tiny": {"train_prompts": 100}}}):
        assert project.plan() == RENDER | MEASURE | {"base": 1, "train": 2}


def test_an_experiment_that_is_left_out_takes_no_cell_with_it(project: Project) -> None:
    with configured(project, {"experiments": {"shared": None}}):
        plan = project.plan()
    assert plan["train"] == plan["evaluate"] == 0
    assert plan["results"] == 1


def test_other_published_figures_are_compared_again(project: Project) -> None:
    with edited(project.directory / "config/published/lora_rank.csv", "1,3e-4,123,", "1,3.0e-4,123,"):
        assert project.plan() == {"figures": 2, "findings": 1, "published": 1, "results": 1}


@pytest.mark.parametrize(("lost", "made"), [("base", {"base": 1}), ("study.json", {})])
def test_what_is_lost_and_made_again_takes_no_trained_cell_with_it(
    project: Project, lost: str, made: dict[str, int]
) -> None:
    path = project.directory / "results" / lost
    shutil.move(path, project.directory / "kept")
    try:
        assert project.plan() == {}
        with configured(project, {"evaluation": {"seed": 5}}):
            assert project.plan() == RENDER | MEASURE | made
    finally:
        shutil.move(project.directory / "kept", path)


def test_one_bad_cell_blocks_no_other_and_what_there_is_can_be_rendered(project: Project) -> None:
    train = project.directory / "workflow/scripts/train.py"
    overlay = {"experiments": {"sweep": {"grids": [{"beta": [0.5, 0.1, 0.6]}]}}}
    parse = "    arguments = parser.parse_args(argv)\n"
    sabotage = "    if '_beta0.5_' in arguments.cells[0]:\n        sys.exit('error: this cell is broken')\n"
    with configured(project, overlay), edited(train, parse, parse + sabotage):
        done = project.run("--cores", "1", check=False)
        assert done.returncode == 1
        assert re.search(r"error: train full_\S*_beta0\.5_\S*: this cell is broken\n  log: ", done.stdout)
        study = project.study
        finished = {
            cell.beta for cell in study.grid["sweep"] if (project.directory / study.layout.metrics(cell.name)).exists()
        }
        assert finished == {0.1, 0.6}

        # Nothing is trained for it, and the tables are not mistaken for whole ones afterwards.
        render = {"table": 1, "figures": 1, "findings": 1, "published": 1, "page": 1, "results": 1}
        assert project.plan("results_partial") == {**render, "results_partial": 1}
        project.run("--cores", "1", "results_partial")
        table = pd.read_parquet(project.directory / study.layout.table("sweep"))
        assert sorted(table["state"]) == ["done", "done", "missing"]
        broken = next(cell.name for cell in study.grid["sweep"] if cell.beta == 0.5)
        assert broken in (project.directory / "results/RESULTS.md").read_text(encoding="utf-8")
        plan = project.plan()
        assert (plan["train"], plan["evaluate"], plan["results"]) == (1, 1, 1)
