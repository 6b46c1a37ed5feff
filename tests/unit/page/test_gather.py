"""What the page shows of each cell besides its texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.page_study import make_page_study
from tests.trees import history

from rewardgrid.page.gather import cells_of, curves, evidence, history_curves, overview, plain
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.history import LiveHistory
from rewardgrid.study.own import OwnFunction
from rewardgrid.study.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_page_study(tmp_path_factory.mktemp("page"))


def test_cells_come_in_the_order_of_the_study_with_all_their_experiments(study: Study) -> None:
    found = cells_of(study, reversed(list(study.cells)))
    assert [cell.name for cell, _ in found] == list(study.cells)
    assert [experiments for _, experiments in found] == [["sweep"]] * 4 + [["routed"], ["broken"]]


def test_the_table_tells_cells_apart_by_what_differs_in_their_experiment(study: Study) -> None:
    top = overview(study, cells_of(study, study.cells))
    assert [cell["label"] for cell in top["cells"]] == [
        "beta 0.003, seed 1",
        "beta 0.003, seed 2",
        "beta 0.02, seed 1",
        "beta 0.02, seed 2",
        "routed, seed 1",
        "broken, seed 42",
    ]
    assert [cell["group"] for cell in top["cells"]] == [0, 0, 1, 1, 2, 3]
    keys = {column["key"] for column in top["columns"]}
    assert {"beta", "seed", "rank", "method", "verdict", "final_reward", "hack_onset", "kl_exact"} <= keys
    assert top["cells"][4]["row"]["retain_only_verdict"] == "borderline"
    assert "lr" not in keys  # the same in all cells: among the settings of a cell
    assert top["cells"][-1]["row"]["state"] == "diverged"
    json.dumps(top, allow_nan=False)


def test_metrics_of_ones_own_are_columns_that_the_table_starts_with(tmp_path: Path) -> None:
    study = make_page_study(tmp_path)
    path = study.layout.metrics(next(iter(study.cells)))
    write_json(path, read_json(path) | {"own": {"own_dogs": 0.25, "own_dogs_se": 0.01}})
    metrics = {"dogs": OwnFunction(python="dogs.py:share", sha256="0")}
    own = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"metrics": metrics})})
    top = overview(own, cells_of(own, own.cells))
    assert [cell["row"]["own_dogs"] for cell in top["cells"]] == [0.25, None, None, None, None, None]
    shown = {column["key"]: column["shown"] for column in top["columns"]}
    assert (shown["own_dogs"], shown["own_dogs_se"]) == (True, False)


def test_curves_of_equal_length_have_the_same_steps_so_that_seeds_can_be_averaged() -> None:
    short, long = history([0.5] * 330), history([0.25 + i / 4000 for i in range(1000)])
    (one, other) = (history_curves(frame, 1000) for frame in (short, long))
    assert one["step"][:-1] == other["step"][: len(one["step"]) - 1]
    assert (other["step"][0], other["step"][-1], len(other["step"])) == (1, 1000, 201)
    assert "happy" not in one  # 0 all along
    # A mean of 10 steps: those before step 1000 are 0.25 + 990..999 / 4000.
    assert other["reward"][-1] == pytest.approx(0.25 + 994.5 / 4000, abs=1e-4)


def test_a_running_cell_has_curves_too(study: Study) -> None:
    cell = study.grid["broken"][0].model_copy(update={"seed": 77})
    assert curves(study.layout, cell) == {}
    rows = history([0.1, 0.2, 0.3]).to_dict("records")
    LiveHistory(study.layout.live_history(cell.name), [{str(k): v for k, v in row.items()} for row in rows]).append()
    assert curves(study.layout, cell)["history"]["reward"] == pytest.approx([0.1, 0.15, 0.2])


def test_evidence_stands_beside_the_bases_own_draws(study: Study) -> None:
    cell = next(cell for cell in study.grid["sweep"] if cell.beta > 0.01)
    (judged,) = evidence(study.layout.metrics(cell.name), study.layout.base_metrics(cell.base_id))
    assert judged["draws"] == [0.05, 0.06, 0.07]
    assert (judged["value"], judged["base"], judged["borderline"], judged["degenerate"]) == (0.12, 0.05, 0.12, 0.22)
    assert judged["signal"]["label"] == "commas"
    absent = study.layout.metrics("none")
    assert evidence(absent, absent) == []


def test_figures_are_short_and_none_is_infinite_or_not_a_number() -> None:
    assert [plain(value) for value in (1 / 3, float("inf"), float("nan"), None, 7, True, "x")] == [
        0.3333,
        None,
        None,
        None,
        7,
        True,
        "x",
    ]
