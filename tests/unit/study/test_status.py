"""`python -m rewardgrid status`: what it makes of the files of a cell, whole or torn."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import make_cell

from rewardgrid.cli.status import CellStatus, display, look, plain, summary
from rewardgrid.study.cell import METRICS_VERSION
from rewardgrid.study.files import write_json, write_text
from rewardgrid.study.layout import Layout, done
from rewardgrid.train.lease import identity

CELL = make_cell(max_steps=100)
NOW = time.time()
RUN = {"step": 40, "max_steps": 100, "reward": 0.5, "kl": 0.25, "speed": 2.0, "left": 30.0, "stepped": NOW}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.chdir(tmp_path)
    return Layout(Path("results"))


def lease(layout: Layout, silent: float = 0.0, **changes: Any) -> Path:
    path = layout.cell(CELL.name) / "lease-3.json"
    write_json(path, {"token": "t", **identity(), "started": NOW, "beat": NOW} | RUN | changes)
    os.utime(path, (time.time() - silent,) * 2)
    return path


def log(stage: str, text: str) -> None:
    write_text(Path("logs") / stage / f"{CELL.name}.log", text)


def ended(layout: Layout, state: str = "done", **changes: Any) -> None:
    write_json(
        layout.train(CELL.name) / "status.json",
        {"cell": CELL.name, "state": state, "reason": None, "steps_done": 100, "host": "h"} | changes,
    )


def test_nothing_is_there_of_a_cell_that_waits(layout: Layout) -> None:
    assert look(layout, CELL) == CellStatus(CELL.name, "waiting", 100)


def test_a_running_cell_shows_its_job_and_how_far_it_is(layout: Layout) -> None:
    lease(layout, job="12", node="node2")
    found = look(layout, CELL)
    assert found.state == "running"
    assert (found.step, found.reward, found.kl, found.speed, found.left) == (40, 0.5, 0.25, 2.0, 30.0)
    assert plain([found]) == [
        f"running      {CELL.name}  step 40/100  reward 0.500  kl 0.250  2.00 steps/s  30s left  job 12 on node2",
        "1 cell: 1 running; 2 steps/s in all",
    ]


def test_a_cell_is_stalled_without_heartbeats_or_without_steps(layout: Layout) -> None:
    lease(layout, silent=130)
    assert (look(layout, CELL).state, look(layout, CELL).note) == ("stalled", "no heartbeat for 2:10")
    lease(layout, stepped=NOW - 300)
    assert (look(layout, CELL).state, look(layout, CELL).note) == ("stalled", "no step for 5:00")
    # A step of half a minute is no reason to worry.
    lease(layout, stepped=NOW - 300, speed=1 / 30)
    assert look(layout, CELL).state == "running"


def test_a_cell_whose_process_is_gone_is_interrupted_at_its_checkpoint(layout: Layout) -> None:
    lease(layout, birth=1)
    (layout.checkpoints(CELL.name) / "step-000020").mkdir(parents=True)
    (layout.checkpoints(CELL.name) / "step-000040").mkdir()
    log("train", "1 cells, 0 already trained\nerror: of an attempt before\n1 cells, 0 already trained\nstep 41\n")
    found = look(layout, CELL)
    assert (found.state, found.step) == ("interrupted", 40)
    assert found.note.endswith("ended without a word")


def test_a_stop_is_an_interruption_and_an_error_a_failure_with_its_line(layout: Layout) -> None:
    log("train", f"x\nerror: {CELL.name}: stopped by SIGTERM after step 3 of 100; the same command continues\n")
    assert look(layout, CELL).state == "interrupted"
    log("train", "1 cells, 0 already trained\nerror: disk: No space left on device\n")
    found = look(layout, CELL)
    assert found.state == "failed"
    assert found.note == f"disk: No space left on device (logs/train/{CELL.name}.log)"
    log(
        "train", 'Traceback (most recent call last):\n  File "x", line 1\ntorch.OutOfMemoryError: CUDA out of memory.\n'
    )
    assert look(layout, CELL).note.startswith("torch.OutOfMemoryError: CUDA out of memory.")


def test_what_slurm_said_is_found_where_the_cells_log_ends_without_a_word(layout: Layout) -> None:
    log("train", "1 cells, 0 already trained\nstep 41\n")
    directory = Path("logs/slurm/rule_train") / CELL.name
    write_text(directory / "9.log", "slurmstepd: error: of an earlier job\n")
    write_text(
        directory / "10.log", "slurmstepd: error: *** STEP 10.0 ON n1 CANCELLED AT 12:00 DUE TO TIME LIMIT ***\n"
    )
    found = look(layout, CELL)
    assert (found.state, found.note) == ("interrupted", "STEP 10.0 ON n1 CANCELLED AT 12:00 DUE TO TIME LIMIT")
    write_text(directory / "11.log", "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=11.0.\n")
    assert look(layout, CELL).state == "failed"


def test_finished_cells_are_trained_done_diverged_or_failed_in_evaluation(layout: Layout) -> None:
    ended(layout)
    assert look(layout, CELL).state == "trained"
    log("evaluate", "error: too few prompts\n")
    assert (look(layout, CELL).state, look(layout, CELL).note[:28]) == ("failed", "evaluation: too few prompts ")
    write_json(layout.metrics(CELL.name), {"version": METRICS_VERSION})
    assert look(layout, CELL).state == "done"
    ended(layout, "diverged", reason="step 3: KL 30 exceeds kl_cap 10")
    assert (look(layout, CELL).state, look(layout, CELL).note) == ("diverged", "step 3: KL 30 exceeds kl_cap 10")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 3}', '{"step": "x"}'])
def test_torn_files_never_stop_it(layout: Layout, content: str) -> None:
    path = lease(layout)
    path.write_text(content)
    write_text(layout.train(CELL.name) / "status.json", content)
    (layout.checkpoints(CELL.name) / "step-x").mkdir(parents=True)
    found = look(layout, CELL)
    assert plain([found])
    assert display([found], 20)
    path.write_text(json.dumps({"token": 1, **identity(), "started": "a", "beat": [], "step": "b"}))
    assert plain([look(layout, CELL)])


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_text("[" * 200_000),
        lambda path: path.write_text('{"version": ' + str(METRICS_VERSION) + "}"),
        lambda path: path.write_text('{"steps_done": ' + "9" * 400 + "}"),
        lambda path: path.write_text('{"steps_done": 1e999, "state": {}, "reason": [1]}'),
        lambda path: path.write_text('{"steps_done": NaN, "state": "diverged"}'),
    ],
    ids=["pipe", "directory", "device", "link", "deep", "empty", "huge", "infinite", "not a number"],
)
def test_whatever_stands_in_the_place_of_its_files_it_neither_waits_nor_breaks(make: Any, layout: Layout) -> None:
    lease(layout)
    for path in (
        layout.cell(CELL.name) / "lease-7.json",
        layout.metrics(CELL.name),
        layout.train(CELL.name) / "status.json",
        Path("logs/train") / f"{CELL.name}.log",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        assert plain([look(layout, CELL)])
        assert done(layout, CELL) in ("waiting", "trained", "done")
    for name in ("step-\u00b2", "step-99999999999999999999999", "step-000003"):
        (layout.checkpoints(CELL.name) / name).mkdir(parents=True)
    found = look(layout, CELL)
    assert plain([found])
    assert display([found], 20)


def test_no_text_of_a_host_job_or_log_can_steer_the_terminal(layout: Layout) -> None:
    steering = "\x1b]0;title\x07\x1b[2J\r\x9b31m\u202e"
    path = lease(layout)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"host": steering, "node": steering, "job": steering}))
    assert all(line.isprintable() for line in plain([look(layout, CELL)]))
    path.unlink()
    log("train", f"ValueError: {steering}\n")
    found = look(layout, CELL)
    assert found.state == "failed"
    assert all(line.isprintable() for line in plain([found]))
    ended(layout, "diverged", reason=steering)
    assert look(layout, CELL).note.isprintable()


def test_what_needs_a_look_comes_first_and_the_rest_is_counted() -> None:
    found = [CellStatus(f"cell{number}", state, 9) for number, state in enumerate(["done", "waiting", "failed"])]
    text = display(found, 4).plain
    assert text.index("cell2") < text.index("cell1")
    assert "and 1 more" in text
    assert text.endswith(summary(found))
    assert summary(found) == "3 cells: 1 failed, 1 waiting, 1 done"
