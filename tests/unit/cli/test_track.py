"""`python -m rewardgrid track`: cells as runs of the real trackers, on this machine."""

from __future__ import annotations

import json
import math
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.trees import SWEEP, Tree, history, make_study

from rewardgrid.cli.show import see
from rewardgrid.cli.track import run_of, track
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import ROLLOUTS, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.history import LiveHistory

TEXT = "<script>x</script>\n# the fox"


def installed(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[track-{package}]'")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """One finished cell with rollouts, one that runs, others that wait."""
    tree = Tree(make_study(tmp_path / "results", {"sweep": SWEEP}, published=None))
    layout, (cell, running) = tree.study.layout, tree.study.grid["sweep"][:2]
    tree.finish(cell, rewards=[0.25, math.nan, 0.75], verdict="degenerate", text=TEXT)
    flags = dict.fromkeys(("eligible", "routed", "noise", "flagged"), False)
    texts = [
        {"step": step, "prompt": "a fox", "completion": f"{number} of step {step}", "ids": [1]}
        | {"reward": 0.5, "sl10": 0.5, "happy": 0.0, **flags}
        for step in (1, 3)
        for number in range(6)
    ]
    write_table(layout.train(cell.name) / "rollouts.parquet", pd.DataFrame(texts), ROLLOUTS)
    LiveHistory(layout.live_history(running.name), history([0.1, 0.2]).to_dict("records")).append()
    return tree


def first(tree: Tree) -> Cell:
    return tree.study.grid["sweep"][0]


def write(tree: Tree, to: str, out: Path) -> None:
    track(tree.study.layout, tree.study.grid["sweep"], to, "a-project", out)


def test_a_run_is_a_cells_spec_history_figures_and_texts(tree: Tree) -> None:
    run = run_of(tree.study.layout, see(tree.study.layout, first(tree)))
    assert run.config["beta"] == 0.003
    assert [step for step, _ in run.history] == [1, 2, 3]
    assert run.history[0][1]["reward"] == 0.25
    assert "reward" not in run.history[1][1]  # no tracker has to know what NaN is
    assert run.summary["full/kl_exact"] == 0.97
    assert run.summary["onset/degeneration_onset"] == 150
    assert (run.summary["verdict"], run.summary["reasons"]) == ("degenerate", "template")
    assert run.rollouts["completion"].tolist() == [f"{number} of step {step}" for step in (1, 3) for number in range(4)]
    assert len(run.samples) == 20


def test_a_tracker_that_is_missing_is_named_with_how_to_install_it(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewardgrid.cli.track.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"--editable '\.\[track-wandb\]'"):
        write(tree, "wandb", tmp_path)


@pytest.mark.parametrize("project", ["../up", "", "a/b", "-x", "a b", "x\n"])
def test_a_project_is_a_name_and_no_path(tree: Tree, tmp_path: Path, project: str) -> None:
    installed("tensorboard")
    with pytest.raises(UserError, match=r"track: --project .*use a name of letters"):
        track(tree.study.layout, tree.study.grid["sweep"], "tensorboard", project, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cells_that_have_not_begun_are_no_runs(tree: Tree, tmp_path: Path) -> None:
    installed("tensorboard")
    waiting = tree.study.grid["sweep"][2:4]
    with pytest.raises(UserError, match="none of 2 cells"):
        track(tree.study.layout, waiting, "tensorboard", "p", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["tensorboard", "wandb", "trackio"])
def test_a_place_that_cannot_be_written_is_named(to: str, tree: Tree, tmp_path: Path) -> None:
    installed(to)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"--out {tmp_path}/file: cannot be written below"):
        track(tree.study.layout, list(tree.study.cells.values()), to, "p", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_tensorboard_has_curves_texts_and_the_spec(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    for _ in range(2):  # the second time in place of the first
        write(tree, "tensorboard", tmp_path)
    assert "2 of 8 cells written" in capsys.readouterr().err
    found = EventAccumulator(str(tmp_path / "tensorboard/a-project" / first(tree).name))
    found.Reload()
    rewards = [(event.step, event.value) for event in found.Scalars("history/reward")]
    assert rewards == [(1, 0.25), (3, 0.75)]
    assert found.Scalars("full/kl_exact")[-1].value == pytest.approx(0.97)
    assert [event.step for event in found.Tensors("rollouts/text_summary")] == [1, 3]
    (samples,) = found.Tensors("samples/text_summary")
    (text,) = samples.tensor_proto.string_val
    # Indented, and so no markup: every line of the completion too.
    assert b"\n    prompt 0 | <script>x</script>\n    # the fox" in text
    start = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    spec = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
    assert spec["beta"].number_value == 0.003
    assert spec["rank"].string_value == "-"
    assert spec["verdict"].string_value == "degenerate"
    running = EventAccumulator(str(tmp_path / "tensorboard/a-project" / tree.study.grid["sweep"][1].name))
    running.Reload()
    assert [event.step for event in running.Scalars("history/reward")] == [1, 2]


def test_wandb_has_offline_runs_with_config_history_summary_and_tables(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("wandb")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for _ in range(2):
        write(tree, "wandb", tmp_path)
    digest = first(tree).name.rpartition("-")[2]
    (directory,) = (tmp_path / "wandb").glob(f"offline-run-*-{digest}")
    run = wandb_run(directory / f"run-{digest}.wandb")
    assert run["config"]["beta"] == 0.003
    assert run["config"]["rank"] is None
    assert [(row["_step"], row.get("reward")) for row in run["history"]][:3] == [(1, 0.25), (2, None), (3, 0.75)]
    assert run["summary"]["verdict"] == "degenerate"
    assert run["summary"]["full/kl_exact"] == 0.97
    (table,) = (directory / "files/media/table").glob("samples_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["prompt", "completion", "reward", "sl10", "happy"]
    assert content["data"][0][:2] == ["prompt 0", TEXT]


def wandb_run(path: Path) -> dict[str, Any]:
    """What a file of wandb says: records in LevelDB's log format after seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    def value(item: Any) -> tuple[str, Any]:
        return "/".join(item.nested_key) or item.key, json.loads(item.value_json)

    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}}
    content, place, data = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no room for a record in this block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, data = Record.FromString(data), b""
            run["config"] |= dict(map(value, record.run.config.update))
            run["summary"] |= dict(map(value, record.summary.update))
            if record.history.item:
                run["history"].append(dict(map(value, record.history.item)))
    return run


def test_trackio_has_runs_with_config_history_and_tables_where_it_was_told_to_write(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("trackio")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    study = tree.study
    command = (
        "import pickle, sys; from pathlib import Path; from rewardgrid.cli.track import track\n"
        "layout, cells = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "track(layout, cells, 'trackio', 'a-project', Path(sys.argv[2]))"
    )
    (tmp_path / "cells").write_bytes(pickle.dumps((study.layout, study.grid["sweep"])))
    for _ in range(2):  # in programs of their own: trackio reads its place once
        run = [sys.executable, "-c", command, str(tmp_path / "cells"), str(tmp_path / "out")]
        said = subprocess.run(run, check=True, timeout=120, capture_output=True, text=True).stderr
    assert f"TRACKIO_DIR={tmp_path / 'out/trackio'} trackio show --project a-project" in said
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "elsewhere").exists()

    import trackio
    from trackio import sqlite_storage, utils

    for module in (trackio, utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "out/trackio")
    runs = {run.name: run for run in trackio.Api().runs("a-project")}
    assert set(runs) == {cell.name for cell in tree.study.grid["sweep"][:2]}
    run = runs[first(tree).name]
    assert run.config["beta"] == 0.003
    assert run.config["verdict"] == "degenerate"
    rows = sqlite_storage.SQLiteStorage.get_logs("a-project", run.name)
    assert [(row["step"], row.get("reward")) for row in rows][:3] == [(1, 0.25), (2, None), (3, 0.75)]
    (samples,) = [row["samples"]["_value"] for row in rows if "samples" in row]
    assert samples[0]["completion"] == TEXT
    assert [row["full/kl_exact"] for row in rows if "full/kl_exact" in row] == [0.97]
