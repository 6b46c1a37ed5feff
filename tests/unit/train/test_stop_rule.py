"""``stop_when``: at which step a cell is stopped, what it leaves, and that a kill or a pack changes neither."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests.own import own_cell, source
from tests.runs import OFTEN, Killed, assert_same_run, killed_at, run, tables_of
from tests.tiny import lora_cell, make_cell, routing_cell
from tests.unit.train.test_graphs import NothingAsked, as_on_a_gpu, draws_of

from rewardgrid.base.load import Base
from rewardgrid.evaluate.course import base_rollouts, course
from rewardgrid.study.cell import Cell
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Evaluation, Recording
from rewardgrid.study.thresholds import Thresholds
from rewardgrid.train import engines, keeper, stop_rule
from rewardgrid.train.engines import native
from rewardgrid.train.engines.native import Graph, Pack
from rewardgrid.train.lease import lease_file
from rewardgrid.train.stop_rule import StopRule, Watch
from rewardgrid.train.surprise import KINDS, usual
from rewardgrid.train.weights import base_weights

CPU = torch.device("cpu")
EVERY = Recording(rollouts_every=1, checkpoint_every=2)
RUINED: dict[str, Any] = {"lr": 0.03, "beta": 0.0, "reward": "happy_count", "max_new_tokens": 20, "max_steps": 12}
"""Degenerate from the second or third step on."""


def stopping(steps: int = 3, verdict: str = "degenerate", **changes: Any) -> Cell:
    return make_cell(stop_when={"verdict": verdict, "for": steps}, **(RUINED | changes))


def status(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(directory / "train" / "status.json")
    return found


def test_steps_are_counted_in_a_row() -> None:
    rule = StopRule(stopping(3))
    shares = [(0.5, 0.0), (0.0, 0.36), (0.34, 0.34), (0.35, 0.0), (math.nan, 0.35), (0.5, math.nan)]
    said = [rule.after({"unlikely_windows": windows, "unlikely_ends": ends}) for windows, ends in shares]
    assert said[:-1] == [None] * 5
    assert said[-1] == "degenerate for 3 steps (at the last unlikely windows 0.50)"
    assert rule.held == 3


def test_borderline_is_that_or_worse_and_without_a_rule_nothing_is_asked() -> None:
    rule = StopRule(stopping(2, "borderline"))
    assert rule.after({"unlikely_windows": 0.1, "unlikely_ends": 0.0}) is None
    assert rule.after({"unlikely_windows": 0.0, "unlikely_ends": 0.9}) is not None
    assert StopRule(make_cell()).after({}) is None


@pytest.mark.parametrize("cell", [stopping(), stopping(repetition_penalty=1.4, prompt_eos=True)], ids=["", "penalty"])
def test_what_is_unlikely_is_what_the_course_calls_so(cell: Cell, base: Base, tmp_path: Path) -> None:
    shape, weights = base_weights(base)
    own = base_rollouts(shape, weights, base, cell, Evaluation())
    watch = Watch.of([cell], base, shape, weights)
    assert {kind: float(watch.limits[kind]) for kind in KINDS} == pytest.approx(usual(own), rel=1e-5)
    seen: list[dict[str, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        sound = StopRule.after
        patch.setattr(
            StopRule, "after", lambda self, row: seen.append({key: row[key] for key in KEYS}) or sound(self, row)
        )
        (directory,) = run(native.train, [cell], base, tmp_path, EVERY)
    rollouts = pd.read_parquet(directory / "train" / "rollouts.parquet")
    measured = course(rollouts, own, shape, weights, base, cell.prompt_length, Thresholds())
    assert len(measured) == len(seen) == status(directory)["steps_done"]
    for key in KEYS:
        assert measured[key].tolist() == pytest.approx([row[key] for row in seen])


KEYS = ("unlikely_windows", "unlikely_ends")


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_stopped_cell_is_the_beginning_of_the_one_that_goes_on(engine: Any, base: Base, tmp_path: Path) -> None:
    cell = stopping(engine=engine)
    train = engines.engine(engine)
    (stopped,) = run(train, [cell], base, tmp_path, EVERY)
    found = status(stopped)
    step = found["steps_done"]
    assert (found["state"], found["stopped_at"]) == ("stopped", step)
    assert 3 <= step < cell.max_steps
    assert found["reason"].startswith("degenerate for 3 steps (at the last unlikely windows ")
    (whole,) = run(train, [cell.model_copy(update={"stop_when": None})], base, tmp_path, EVERY)
    assert status(whole)["state"] == "done"
    assert "stopped_at" not in status(whole)
    for name in ("history", "rollouts"):
        table = tables_of(whole)[name]
        pd.testing.assert_frame_equal(tables_of(stopped)[name], table[table["step"] <= step], check_exact=True)
    assert read_json(stopped / "spec.json")["max_steps"] == cell.max_steps
    assert not (stopped / "checkpoints").exists()


def test_its_last_step_is_recorded_whatever_is_recorded_else(base: Base, tmp_path: Path) -> None:
    cell = routing_cell(stop_when={"verdict": "degenerate", "for": 3}, **(RUINED | {"lr": 0.2, "eval_every": 100}))
    (directory,) = run(native.train, [cell], base, tmp_path, Recording(rollouts_every=100))
    step = status(directory)["stopped_at"]
    assert tables_of(directory)["rollouts"]["step"].unique().tolist() == [1, step]
    assert tables_of(directory)["mode_samples"]["step"].unique().tolist() == [step]


def test_a_run_that_gets_to_its_end_is_whole(base: Base, tmp_path: Path) -> None:
    (stopped,) = run(native.train, [stopping()], base, tmp_path)
    (directory,) = run(
        native.train, [stopping(max_steps=status(stopped)["stopped_at"], decay_steps=12)], base, tmp_path
    )
    assert status(directory)["state"] == "done"


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize("before", [1, 2])
def test_a_killed_run_is_stopped_at_the_same_step(
    engine: Any, before: int, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, train = stopping(engine=engine), engines.engine(engine)
    (whole,) = run(train, [cell], base, tmp_path / "whole", OFTEN)
    step = status(whole)["stopped_at"] - before + 1
    if step < 2:
        pytest.skip("there is no such step")
    with killed_at(step, monkeypatch):
        run(train, [cell], base, tmp_path / "killed", OFTEN)
    (resumed,) = run(train, [cell], base, tmp_path / "killed", OFTEN)
    assert_same_run(whole, resumed)
    assert status(resumed)["stopped_at"] == status(whole)["stopped_at"]


@pytest.mark.parametrize("where", ["save_weights", "finish", "publish"])
def test_a_kill_between_the_decision_and_the_end_changes_nothing(
    where: str, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = stopping()
    (whole,) = run(native.train, [cell], base, tmp_path / "whole", OFTEN)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(keeper, where, die)
        with pytest.raises(Killed):
            run(native.train, [cell], base, tmp_path / "killed", OFTEN)
    assert not (tmp_path / "killed" / cell.name / "train").exists()
    (resumed,) = run(native.train, [cell], base, tmp_path / "killed", OFTEN)
    assert_same_run(whole, resumed)
    for key in ("state", "stopped_at", "reason"):
        assert status(resumed)[key] == status(whole)[key]
    capsys.readouterr()
    run(native.train, [cell], base, tmp_path / "killed", OFTEN)
    assert f"is trained already (stopped after step {status(whole)['stopped_at']})" in capsys.readouterr().err


def test_in_a_pack_one_cell_is_stopped_and_the_others_go_on(base: Base, tmp_path: Path) -> None:
    cells = [stopping(), stopping(lr=1e-6, repetition_penalty=1.3), stopping(seed=8, max_steps=9)]
    together = [tmp_path / "together" / cell.name for cell in cells]
    assert len({native.pack_key(cell) for cell in cells}) == 1
    outcomes = native._Run(cells, base, together, EVERY, CPU).finish_all()
    assert [outcome.state for outcome in outcomes] == ["stopped", "done", "stopped"]
    alone = run(native.train, cells, base, tmp_path / "alone", EVERY)
    for one, other in zip(together, alone, strict=True):
        assert status(one)["steps_done"] == status(other)["steps_done"]
        for name in ("reward", "kl"):
            assert tables_of(one)["history"][name].tolist() == pytest.approx(
                tables_of(other)["history"][name].tolist(), rel=1e-3, abs=1e-5
            )
    assert all(lease_file(directory) is None for directory in together)


def test_code_of_ones_own_is_not_asked_about_a_cell_that_is_stopped(base: Base, tmp_path: Path) -> None:
    text = """
asked = []

def words(completions, **_):
    asked.append(len(completions))
    return [text.count("happy") for text in completions]
"""
    path = source(tmp_path, text)
    rule: Any = {"verdict": "degenerate", "for": 3}
    changes = {key: value for key, value in RUINED.items() if key != "reward"}
    cells = [own_cell(path, stop_when=rule, **(changes | {"lr": lr})) for lr in (0.03, 1e-6)]
    runner = native._Run(cells, base, [tmp_path / cell.name for cell in cells], EVERY, CPU)
    outcomes = runner.finish_all()
    assert [outcome.state for outcome in outcomes] == ["stopped", "done"]
    functions = runner.pack.assessor.functions.functions
    asked = functions["words"].__globals__["asked"]
    assert len(asked) == outcomes[0].steps_done + 12


def test_several_updates_of_one_rollout_count_as_so_many_steps(base: Base, tmp_path: Path) -> None:
    (directory,) = run(native.train, [stopping(num_iterations=2)], base, tmp_path, EVERY)
    assert status(directory)["state"] == "stopped"
    assert status(directory)["stopped_at"] % 2 == 1  # three steps from the first of two


def test_the_rule_asks_the_device_nothing(base: Base) -> None:
    pack = as_on_a_gpu(Pack([stopping(), stopping(seed=8, repetition_penalty=1.3)], base, CPU))
    draws = draws_of(pack, base, 0)
    with NothingAsked():
        _, columns = pack.step(draws)
    assert all(columns[key].shape == (2,) for key in KEYS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_has_the_same_shares(base: Base) -> None:
    place = torch.device("cuda")
    eager, captured = (Pack([stopping(), stopping(seed=8)], base, place) for _ in range(2))
    graph = Graph(captured, draws_of(captured, base, 0).to(place))
    for step in range(3):
        draws = draws_of(eager, base, step).to(place)
        columns, others = eager.step(draws)[1], graph(draws)[1]
        for key in KEYS:
            torch.testing.assert_close(others[key], columns[key], equal_nan=True)


def test_a_base_without_a_window_or_an_end_judges_none(base: Base, tmp_path: Path) -> None:
    # Completions of 8 tokens hold no window of 16.
    shape, weights = base_weights(base)
    watch = Watch.of([stopping(max_new_tokens=8)], base, shape, weights)
    assert torch.isnan(watch.limits["windows"]).all()
    (directory,) = run(native.train, [stopping(1, max_new_tokens=8, lr=1e-6, max_steps=2)], base, tmp_path)
    assert status(directory)["state"] in ("done", "stopped")


def test_the_limits_of_a_study_stop_nothing() -> None:
    assert stop_rule.LIMITS["windows"] == Thresholds().unlikely_windows
    assert (Thresholds().unlikely_windows.degenerate, Thresholds().unlikely_ends.degenerate) == (0.35, 0.35)


def test_a_rule_is_a_part_of_the_cell_only_where_there_is_one() -> None:
    assert make_cell(stop_when=None).name == make_cell().name
    names = {stopping(steps, verdict).name for steps in (3, 4) for verdict in ("degenerate", "borderline")}
    assert len(names) == 4
    assert "stop-degenerate3_" in stopping(3).name
    assert '"stop_when":{"for":3,"verdict":"degenerate"}' in lora_cell(stop_when=stopping(3).stop_when).identity()
