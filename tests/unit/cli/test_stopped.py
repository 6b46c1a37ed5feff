"""A cell that its stop_when has ended is said to be so wherever cells are shown, and is in no mean."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from tests.trees import SWEEP, Tree, make_study, row
from tests.unit.report.test_render import report, script

from rewardgrid.cli.board import _result
from rewardgrid.cli.cells import print_table
from rewardgrid.cli.show import compare, see, show
from rewardgrid.cli.status import look_at_all, plain
from rewardgrid.cli.track import run_of
from rewardgrid.page.gather import cells_of, overview
from rewardgrid.published.replica import is_published
from rewardgrid.report.evidence import load_evidence
from rewardgrid.report.finding import Scope
from rewardgrid.report.findings import compute
from rewardgrid.report.tables import (
    Configuration,
    configurations,
    experiment_table,
    latex_table,
    read_experiment,
    rows_of,
    write_experiment,
)
from rewardgrid.study.cell import Cell

RULE = {"verdict": "degenerate", "for": 5}
WHY = (
    "at step 60 of 2000: degenerate for 5 steps (at the last unlikely ends 0.70); then its samples are degenerate "
    "(template)"
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Of two configurations the first has a whole seed (reward 0.5) and a stopped one (0.9), the second one of each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    block = SWEEP | {
        "grids": [{"beta": [0.003, 0.02], "seed": [42, 123]}],
        "fixed": {"stop_when": RULE},
        "by": ["beta"],
    }
    made = Tree(make_study(Path("results"), {"sweep": block}))
    made.measure_bases()
    for place, cell in enumerate(made.study.grid["sweep"]):
        if place % 2:
            made.stop(cell, 60)
        else:
            made.finish(cell, [0.5] * 80)
    return made


def cells(tree: Tree) -> Sequence[Cell]:
    return tree.study.grid["sweep"]


def test_its_row_has_the_figures_that_it_came_to_and_says_that_it_was_stopped(tree: Tree, tmp_path: Path) -> None:
    table = experiment_table(tree.study, "sweep")
    write_experiment(tmp_path / "t.parquet", table)
    whole, stopped = rows_of(read_experiment(tmp_path / "t.parquet"))[:2]
    assert (stopped["state"], stopped["stopped_at"], stopped["verdict"]) == ("stopped", 60, "stopped")
    assert stopped["reasons"] == WHY
    assert stopped["final_reward"] == pytest.approx(0.9)
    assert (stopped["max_steps"], stopped["stop_when"]) == (2000, "degenerate for 5 steps")
    assert (whole["state"], whole["stopped_at"], whole["verdict"]) == ("done", None, "ok")


def test_no_mean_holds_it_and_its_configuration_counts_it(tree: Tree) -> None:
    first: Configuration = configurations(rows_of(experiment_table(tree.study, "sweep")), ["beta"])[0]
    assert (first.reward.n, first.reward.mean) == (1, 0.5)
    assert dict(first.verdicts) == {"ok": 1, "stopped": 1}
    assert not first.all_ok
    assert not first.non_degenerate
    assert not first.passes(0.1)
    assert first.figures()["verdicts"] == "1 ok, 1 stopped"


def test_a_latex_table_says_so_whatever_its_columns(tree: Tree) -> None:
    experiment = tree.study.active["sweep"].model_copy(update={"columns": ["beta", "final_reward"]})
    rows = rows_of(experiment_table(tree.study, "sweep"))
    lines = latex_table(rows, experiment).splitlines()
    assert lines[2] == r"beta & reward & verdict & stopped at \\"
    assert lines[5] == r"0.003 & 0.900 & stopped & 60 \\"
    assert r"stopped" not in latex_table(rows[:1], experiment)


def test_results_say_how_many_and_average_none_of_them(tree: Tree) -> None:
    text = report(tree.study)
    assert "4 cells: 2 done, 2 stopped" in text
    assert "4: 2 done, 2 stopped, 0 diverged, 0 missing" in text
    (line,) = re.findall(r"^\| 0.003 \| 1 of 2 \|.*", text, re.MULTILINE)
    assert "1 ok, 1 stopped" in line
    assert "0.500" in line
    assert "0.900" not in line
    assert "stopped at step 60" in text
    assert "Stopped early, and in no mean:" in text
    name = cells(tree)[1].name
    assert f"`{name}`: at step 60 of 2000: degenerate for 5 steps" in text


def test_every_finding_says_how_many_it_leaves_out(tree: Tree) -> None:
    layout = tree.study.layout
    write_experiment(layout.table("sweep"), experiment_table(tree.study, "sweep"))
    evidence = load_evidence(tree.study, layout.root / "tables", ["sweep"])
    entries = compute(Scope(evidence, "sweep", ("beta",)), ["best_tradeoff", "beta_order", "smallest_passing"])
    for entry in entries:
        assert entry["sentences"][-1] == "2 cells were stopped early and left out."
    # The whole seeds alone stand behind the order of beta: one pair.
    (order,) = (entry for entry in entries if entry["name"] == "beta_order")
    assert order["cells"] == 2
    assert {row["cell"] for row in evidence.finished()} == {cells(tree)[0].name, cells(tree)[2].name}


def test_no_claim_of_the_published_study_is_judged_by_a_cell_that_may_stop() -> None:
    whole = row("reward_sweep", beta=0.02, repetition_penalty=1.1, seed=42)
    assert is_published(whole, "reward_sweep")
    assert not is_published(row("reward_sweep", beta=0.02, seed=42, stop_when=RULE), "reward_sweep")


def test_the_index_of_cells_says_where_and_is_as_before_without_such_cells(tree: Tree) -> None:
    root = Path(tree.study.results)

    def index() -> pd.DataFrame:
        (root / "study.json").write_text(tree.study.model_dump_json())
        assert script("index", "--study", root / "study.json", "--out", root / "cells.tsv") == 0
        return pd.read_csv(root / "cells.tsv", sep="\t", dtype=str, keep_default_na=False)

    found = index()
    assert found["stopped_at"].tolist() == ["", "60", "", "60"]
    assert set(found["stop_when"]) == {"degenerate for 5 steps"}
    tree.study = make_study(Path("results"), {"sweep": SWEEP})
    with (root / "cells.tsv").open() as stream:
        assert next(csv.reader(stream, delimiter="\t"))[-1] == "stopped_at"
    assert list(index().columns)[-1] == "results_version"


def test_status_show_and_compare_say_so(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    layout, (whole, stopped, *_) = tree.study.layout, cells(tree)
    lines = plain(look_at_all(layout, cells(tree)))
    assert lines[1].split()[0] == "stopped"
    assert "step 60/2000  reward 0.900" in lines[1]
    assert lines[1].endswith("stopped early: degenerate for 5 steps (at the last unlikely ends 0.70)")
    assert lines[-1] == "4 cells: 2 stopped, 2 done"
    show(tree.study, stopped.name, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "stopped early: degenerate for 5 steps" in shown
    assert "degenerate: template, at step 60, where it stopped" in shown
    compare(tree.study, [whole.name, stopped.name], 1)
    assert "where it stopped" in " ".join(capsys.readouterr().out.split())


def test_a_cell_that_is_stopped_and_not_yet_measured_is_trained(tree: Tree) -> None:
    layout, cell = tree.study.layout, cells(tree)[1]
    layout.metrics(cell.name).unlink()
    (line, _) = plain(look_at_all(layout, [cell]))
    assert line.startswith("trained ")
    assert "stopped early: degenerate for 5 steps" in line


def test_the_table_of_cells_the_board_and_trackers_say_so(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    layout, stopped = tree.study.layout, cells(tree)[1]
    print_table(layout, cells(tree))
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:5]]
    assert states == ["done", "stopped", "done", "stopped"]

    class Job:
        rule, place = "evaluate", layout.cell(stopped.name)

    assert _result(Job) == "  measured reward 0.880  stopped early (degenerate)"  # type: ignore[arg-type]
    summary = run_of(layout, see(layout, stopped)).summary
    assert (summary["state"], summary["stopped_at"]) == ("stopped", 60)


def test_the_page_says_so_and_draws_no_band_of_whole_and_stopped_seeds(tree: Tree) -> None:
    listed = overview(tree.study, cells_of(tree.study, tree.study.cells))["cells"]
    assert [cell["row"]["verdict"] for cell in listed] == ["ok", "stopped", "ok", "stopped"]
    assert listed[1]["row"]["reasons"] == WHY
    assert len({cell["group"] for cell in listed}) == 4
    assert listed[1]["group_label"].endswith("seed 123: stopped")
    assert listed[0]["group_label"] == "beta 0.003"
