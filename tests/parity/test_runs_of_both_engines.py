"""Whole runs: the two engines from the same spec, and the TRL engine's own resumes, endings and files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tests.own import own_cell, own_routing, source
from tests.parity.trl_side import CPU, watch
from tests.runs import OFTEN, assert_same_run, killed_at, run, tables_of
from tests.tiny import CELLS, FAMILIES, make_cell, named, routing_cell

from rewardgrid.base.load import Base
from rewardgrid.lm.model import logits
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import HISTORY, read_table
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Recording
from rewardgrid.train.engines import native, trl
from rewardgrid.train.engines.native import Pack
from rewardgrid.train.rollout import Draws
from rewardgrid.train.stopping import Stopped
from rewardgrid.train.weights import load_policy


def both(cell: Cell, base: Base, root: Path, **changes: Any) -> tuple[Path, Path]:
    """Run a cell with TRL, and the same or a changed one natively."""
    recording = Recording(rollouts_every=1)
    twin = cell.model_copy(update={"engine": "trl"})
    (theirs,) = run(trl.train, [twin], base, root / "trl", recording)
    (ours,) = run(native.train, [cell.model_copy(update=changes)], base, root / "native", recording)
    return ours, theirs


def differences(ours: Path, theirs: Path) -> list[str]:
    """Where two runs part: columns of the history, texts, labels, weights."""
    found = []
    mine, other = tables_of(ours), tables_of(theirs)
    for column in mine["history"].columns:
        first, second = mine["history"][column], other["history"][column]
        if len(first) != len(second) or not (first - second).abs().max() <= 1e-4 * max(1e-2, second.abs().max()):
            found.append(column)
    for table in ("rollouts", "mode_samples"):
        first, second = (each[table].drop(columns=["reward", "sl10"]) for each in (mine, other))
        if not first.equals(second):
            found.append(table)
    paths = sorted(path.relative_to(ours) for path in ours.glob("train/weights/**/*.safetensors"))
    assert paths == sorted(path.relative_to(theirs) for path in theirs.glob("train/weights/**/*.safetensors"))
    for path in paths:
        second_tensors = load_file(theirs / path)
        for name, value in load_file(ours / path).items():
            if float((value - second_tensors[name]).abs().mean()) > 2e-5:
                found.append(f"{path}: {name}")
    return found


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("method", CELLS)
def test_the_engines_write_the_same_files(method: str, base: Base, tmp_path: Path) -> None:
    cell = CELLS[method]()
    ours, theirs = both(cell, base, tmp_path)
    assert differences(ours, theirs) == []
    assert [path.name for path in sorted(theirs.rglob("*")) if path.is_file() and "history" in path.name]
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) for root in (ours, theirs)]
    assert names[0] == names[1]


def test_the_engines_agree_on_the_beginning_of_a_longer_run(base: Base, tmp_path: Path) -> None:
    cell = CELLS["lora"](max_steps=4, decay_steps=9)
    assert differences(*both(cell, base, tmp_path)) == []


VARIANTS: dict[str, dict[str, Any]] = {
    "dapo": {"loss_type": "dapo", "num_iterations": 2, "epsilon": 0.05, "epsilon_high": 0.1},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "kl_estimator": "k2"},
    "schedule": {"lr_scheduler_type": "cosine", "warmup_steps": 2, "scale_rewards": "batch", "kl_estimator": "none"},
}


@pytest.mark.parametrize(("method", "changes"), zip(CELLS, VARIANTS.values(), strict=True), ids=VARIANTS)
def test_the_engines_agree_on_variants(method: str, changes: dict[str, Any], base: Base, tmp_path: Path) -> None:
    assert differences(*both(CELLS[method](**changes), base, tmp_path)) == []


def test_the_engines_agree_on_code_of_ones_own(base: Base, tmp_path: Path) -> None:
    ours, theirs = both(own_routing(source(tmp_path)), base, tmp_path)
    assert differences(ours, theirs) == []
    rollouts = tables_of(theirs)["rollouts"]
    assert 0 < rollouts["flagged"].mean() < 1
    assert rollouts["reward"].tolist() == pytest.approx(tables_of(ours)["rollouts"]["reward"].tolist())


@pytest.mark.parametrize("engine", [native, trl])
def test_a_run_of_several_updates_goes_on_bit_for_bit_from_between_two_rollouts(
    engine: Any, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = engine.__name__.rpartition(".")[2]
    cell = make_cell(num_iterations=3, max_steps=8, engine=name, loss_type="bnpo")
    (whole,) = run(engine.train, [cell], base, tmp_path / "whole", OFTEN)
    with killed_at(6, monkeypatch):
        run(engine.train, [cell], base, tmp_path / "killed", OFTEN)
    (resumed,) = run(engine.train, [cell], base, tmp_path / "killed", OFTEN)
    assert "continues after step 3" in capsys.readouterr().err
    assert_same_run(whole, resumed)
    rewards = tables_of(whole)["history"]["reward"].tolist()
    assert rewards[0] == rewards[2] != rewards[3] == rewards[5] != rewards[6] == rewards[7]


@pytest.mark.parametrize("engine", [native, trl])
def test_a_run_that_is_to_stop_first_learns_all_that_its_rollout_is_for(
    engine: Any, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make_cell(num_iterations=3, max_steps=8, engine=engine.__name__.rpartition(".")[2])
    monkeypatch.setattr(engine, "asked_to_stop", lambda: True)
    with pytest.raises(Stopped, match="after step 3 of 8"):
        run(engine.train, [cell], base, tmp_path)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"repetition_penalty": 1.5}, "rollouts"),
        ({"seed": 8}, "rollouts"),
        ({"beta": 0.2}, "loss"),
        ({"max_steps": 3}, "lr"),
        ({"decay_steps": 50}, "lr"),
        ({"prompt_eos": True}, "rollouts"),
        ({"reward": "happy_binary"}, "reward"),
        ({"rh_eligible_frac": 0.9}, "eligible"),
        ({"routing_frac": 0.2}, "routed"),
        ({"label_noise_frac": 0.8}, "noise"),
        ({"hack_threshold": 2}, "hacked"),
        ({"eval_samples": 5}, "mode_samples"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_difference_in_the_spec_shows(changes: dict[str, Any], where: str, base: Base, tmp_path: Path) -> None:
    ours, theirs = both(routing_cell(), base, tmp_path, **changes)
    assert where in differences(ours, theirs)


# --- the TRL engine by itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CELLS)
@pytest.mark.parametrize("step", [3, 5])
def test_a_killed_trl_run_goes_on_bit_for_bit(
    method: str,
    step: int,
    base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cell = CELLS[method](max_steps=6, engine="trl")
    (whole,) = run(trl.train, [cell], base, tmp_path / "whole", OFTEN)
    with killed_at(step, monkeypatch):
        run(trl.train, [cell], base, tmp_path / "killed", OFTEN)
    (resumed,) = run(trl.train, [cell], base, tmp_path / "killed", OFTEN)
    assert f"continues after step {step - 1}" in capsys.readouterr().err
    assert_same_run(whole, resumed)


def test_a_trl_resume_beyond_the_first_epoch_does_not_replay_it(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 24 prompts, two a step: the second epoch begins with step 13.
    cell = make_cell(max_steps=16, max_new_tokens=10, engine="trl")
    (whole,) = run(trl.train, [cell], base, tmp_path / "whole", OFTEN)
    with killed_at(15, monkeypatch):
        run(trl.train, [cell], base, tmp_path / "killed", OFTEN)
    (resumed,) = run(trl.train, [cell], base, tmp_path / "killed", OFTEN)
    assert_same_run(whole, resumed)


def test_trl_runs_are_repeatable_whatever_ran_before(base: Base, tmp_path: Path) -> None:
    cell = routing_cell(engine="trl")
    (first,) = run(trl.train, [cell], base, tmp_path / "first")
    torch.rand(7)
    _, second = run(trl.train, [make_cell(engine="trl", seed=1), cell], base, tmp_path / "second")
    assert_same_run(first, second)


@pytest.mark.parametrize("method", CELLS)
def test_a_diverging_trl_run_keeps_the_weights_before_it(method: str, base: Base, tmp_path: Path) -> None:
    cell = CELLS[method](engine="trl", kl_cap=1e-9)
    (directory,) = run(trl.train, [cell], base, tmp_path)
    status = read_json(directory / "train" / "status.json")
    assert status["state"] == "diverged"
    history = read_table(directory / "train" / "history.parquet", HISTORY)
    assert len(history) == status["steps_done"]
    assert f"step {status['steps_done']}: KL" in status["reason"]
    # The same as the native engine after one step less.
    pack = Pack([cell], base, CPU)
    for step in range(status["steps_done"] - 1):
        pack.step(Draws.of_step([cell], base.train_prompts().ids, [step]))
    expected = named(pack.policy, pack.policy.parameters)
    for path in (directory / "train" / "weights").rglob("*.safetensors"):
        prefix = f"{path.parent.name}/" if method == "routing" else "default/" if method == "lora" else ""
        for key, value in load_file(path).items():
            assert float((value - expected[prefix + key]).abs().mean()) < 2e-5, key


def test_a_trl_run_with_a_learning_rate_beyond_reason_diverges_with_finite_weights(base: Base, tmp_path: Path) -> None:
    cell = make_cell(engine="trl", lr=1e30, max_steps=8)
    (directory,) = run(trl.train, [cell], base, tmp_path)
    status = read_json(directory / "train" / "status.json")
    assert (status["state"], status["engine"]) == ("diverged", "trl")
    assert "not finite" in status["reason"]
    weights = load_file(directory / "train" / "weights" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_without_kl_in_the_loss_both_engines_still_record_it(base: Base, tmp_path: Path) -> None:
    ours, theirs = both(make_cell(beta=0.0), base, tmp_path)
    kl = pd.read_parquet(theirs / "train" / "history.parquet")["kl"]
    assert (kl[1:] > 1e-4).all()
    assert differences(ours, theirs) == []


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_the_trl_engines_adapters_load_as_the_native_engines_do(base: Base, tmp_path: Path) -> None:
    ids = torch.randint(0, 40, (1, 3, 12), generator=torch.Generator().manual_seed(0))
    for method in ("lora", "routing"):
        cell = CELLS[method]()
        ours, theirs = both(cell, base, tmp_path / method)
        for mode in ("both", "retain_only", "forget_only") if cell.is_routing else ("both",):
            first, second = (
                logits(*load_policy(path / "train" / "weights", cell, base, mode), ids) for path in (ours, theirs)
            )
            torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


def test_the_trl_engine_leaves_no_temporary_directories(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    run(trl.train, [make_cell(engine="trl", max_steps=1)], base, tmp_path / "runs")
    assert list(scratch.iterdir()) == []


def test_trls_own_completions_are_paid_by_code_of_ones_own_too(base: Base, tmp_path: Path) -> None:
    cell = own_cell(source(tmp_path), "tokens", engine="trl", prompt_eos=True)
    steps = watch(cell, base, torch.float32, own_rollouts=False)
    for step in steps:
        lengths = step.batch["completion_mask"].sum(1)
        assert step.rewards.tolist() == pytest.approx((lengths / 20).tolist())
        assert lengths.unique().numel() > 1


def test_every_draw_is_shared_between_the_engines() -> None:
    assert {field.name for field in dataclasses.fields(Draws)} == {"prompts", "tokens", "labels"}
