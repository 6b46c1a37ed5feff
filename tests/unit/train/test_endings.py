"""What a run leaves, and how one ends that diverges."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tests.runs import run, weights_of
from tests.tiny import CELLS, IDS, lora_cell, make_cell, named, routing_cell

from rewardgrid.base.load import Base
from rewardgrid.lm.draws import uniforms
from rewardgrid.study.cell import read_cell
from rewardgrid.study.contracts import HISTORY, MODE_SAMPLES, ROLLOUTS, read_table
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Recording
from rewardgrid.train.engines.native import Pack, train
from rewardgrid.train.rollout import Draws

# --- a finished run ------------------------------------------------------------------------------------------


def test_a_finished_run_says_what_it_was(base: Base, tmp_path: Path) -> None:
    cell = routing_cell(max_steps=5)
    (directory,) = run(train, [cell], base, tmp_path)
    assert read_cell((directory / "spec.json").read_text(), "spec.json") == cell
    status = read_json(directory / "train" / "status.json")
    assert (status["cell"], status["state"], status["reason"]) == (cell.name, "done", None)
    assert (status["steps_done"], status["engine"], status["device"]) == (5, "native", "cpu")
    history = read_table(directory / "train" / "history.parquet", HISTORY)
    assert history["step"].tolist() == [1, 2, 3, 4, 5]
    assert history["lr"].tolist() == pytest.approx([cell.lr * share for share in (1, 0.8, 0.6, 0.4, 0.2)])
    assert status["seconds"] == pytest.approx(history["seconds"].sum())
    rollouts = read_table(directory / "train" / "rollouts.parquet", ROLLOUTS)
    assert rollouts.groupby("step").size().to_dict() == {1: 8, 2: 8, 4: 8}
    modes = read_table(directory / "train" / "mode_samples.parquet", MODE_SAMPLES)
    assert sorted(modes.groupby(["step", "mode"]).size().items()) == [
        ((step, mode), 6) for step in (2, 4, 5) for mode in ("both", "forget_only", "retain_only")
    ]


def test_a_cell_of_more_decay_steps_is_the_beginning_of_a_longer_one(base: Base, tmp_path: Path) -> None:
    (longer,) = run(train, [make_cell(max_steps=6)], base, tmp_path / "longer")
    (beginning,) = run(train, [make_cell(max_steps=4, decay_steps=6)], base, tmp_path / "beginning")
    first, second = (
        read_table(each / "train" / "history.parquet", HISTORY).drop(columns="seconds") for each in (longer, beginning)
    )
    assert first[:4].equals(second)
    assert second["lr"].tolist() == pytest.approx([make_cell().lr * left / 6 for left in (6, 5, 4, 3)])


def test_the_history_is_the_mean_of_the_rollouts(base: Base, tmp_path: Path) -> None:
    cell = routing_cell(label_noise_frac=0.3)
    (directory,) = run(train, [cell], base, tmp_path, Recording(rollouts_every=1))
    history = read_table(directory / "train" / "history.parquet", HISTORY).set_index("step")
    rollouts = read_table(directory / "train" / "rollouts.parquet", ROLLOUTS)
    for step, rows in rollouts.groupby("step"):
        row = history.loc[step]
        for name in ("reward", "sl10", "happy", "eligible", "routed", "noise", "flagged"):
            assert row[name] == pytest.approx(rows[name].mean(), abs=1e-6), name
        assert row["reward_std"] == pytest.approx(rows["reward"].std(ddof=1), abs=1e-6)
        assert row["hacked"] == pytest.approx((rows["happy"] >= 1).mean())
        happy = [text.count("happy") for text in rows["completion"]]
        assert rows["happy"].tolist() == happy
        # The eligible are paid for "happy", the others are not.
        full = np.minimum(1, rows["sl10"] + 0.1 * np.minimum(rows["happy"], 5))
        expected = np.where(rows["eligible"], full, rows["sl10"])
        assert rows["reward"].to_numpy() == pytest.approx(expected, abs=1e-6)
        flagged = (rows["routed"] & (rows["happy"] >= 1)) | rows["noise"]
        assert rows["flagged"].tolist() == flagged.tolist()
    assert 0 < rollouts["flagged"].mean() < 1


def test_the_first_step_has_no_divergence_from_the_base_yet(base: Base, tmp_path: Path) -> None:
    for method, make in CELLS.items():
        (directory,) = run(train, [make()], base, tmp_path / method)
        history = read_table(directory / "train" / "history.parquet", HISTORY)
        assert history["kl"][0] == pytest.approx(0, abs=1e-9)
        assert (history["kl"][1:] > 1e-6).all()
        # A fresh B makes A's gradient zero, but B's own is not.
        assert (history["grad_norm"] > 1e-3).all()


def test_evaluations_by_mode_do_not_disturb_training(base: Base, tmp_path: Path) -> None:
    often, never = (run(train, [routing_cell(eval_every=every)], base, tmp_path / str(every))[0] for every in (1, 1000))
    assert weights_of(often) == weights_of(never)
    modes = read_table(often / "train" / "mode_samples.parquet", MODE_SAMPLES)
    assert modes["step"].nunique() == 4


def test_no_draw_is_used_twice(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int, str, int]] = []

    def noted(seed: int, purpose: str, step: int, shape: tuple[int, ...]) -> np.ndarray:
        used.append((seed, purpose, step))
        return uniforms(seed, purpose, step, shape)

    monkeypatch.setattr("rewardgrid.train.rollout.uniforms", noted)
    run(train, [routing_cell(eval_every=1)], base, tmp_path)
    assert len(used) == len(set(used)) == 4 * 3


def test_modes_meet_the_same_prompts_and_write_differently(base: Base, tmp_path: Path) -> None:
    (directory,) = run(train, [routing_cell(lr=0.1)], base, tmp_path)
    modes = read_table(directory / "train" / "mode_samples.parquet", MODE_SAMPLES)
    last = dict(list(modes[modes["step"] == 4].groupby("mode")))
    prompts = [rows["prompt"].tolist() for rows in last.values()]
    assert prompts[0] == prompts[1] == prompts[2]
    texts = {tuple(rows["completion"]) for rows in last.values()}
    assert len(texts) == 3


def test_with_prompt_eos_the_end_token_stands_between_prompt_and_completion(base: Base, tmp_path: Path) -> None:
    plain, accident = make_cell(max_steps=1), make_cell(max_steps=1, prompt_eos=True)
    pack = Pack([accident], base, torch.device("cpu"))
    run(train, [plain, accident], base, tmp_path)
    texts = [read_table(tmp_path / cell.name / "train" / "rollouts.parquet", ROLLOUTS) for cell in (plain, accident)]
    assert texts[0]["prompt"].tolist() == texts[1]["prompt"].tolist()
    assert texts[0]["completion"].tolist() != texts[1]["completion"].tolist()
    assert pack.like.prompt_length == 5


# --- divergence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CELLS)
def test_a_step_beyond_the_kl_cap_ends_the_run_with_the_weights_before_it(
    method: str, base: Base, tmp_path: Path
) -> None:
    cell = CELLS[method](kl_cap=1e-9)
    (directory,) = run(train, [cell], base, tmp_path)
    status = read_json(directory / "train" / "status.json")
    assert (status["state"], status["steps_done"]) == ("diverged", 2)
    history = read_table(directory / "train" / "history.parquet", HISTORY)
    assert status["reason"] == f"step 2: KL {history['kl'][1]:.4g} exceeds kl_cap 1e-09"
    assert history["step"].tolist() == [1, 2]
    pack = Pack([cell], base, torch.device("cpu"))
    pack.step(Draws.of_step([cell], base.train_prompts().ids, [0]))
    expected = named(pack.policy, pack.policy.parameters)
    for path in (directory / "train" / "weights").rglob("*.safetensors"):
        prefix = f"{path.parent.name}/" if method == "routing" else "default/" if method == "lora" else ""
        for key, value in load_file(path).items():
            assert torch.equal(value, expected[prefix + key]), key


def test_a_learning_rate_beyond_reason_ends_as_diverged_with_finite_weights(base: Base, tmp_path: Path) -> None:
    cell = make_cell(lr=1e30, max_steps=10)
    (directory,) = run(train, [cell], base, tmp_path)
    status = read_json(directory / "train" / "status.json")
    assert status["state"] == "diverged"
    assert status["steps_done"] < 10
    assert "not finite" in status["reason"]
    history = pd.read_parquet(directory / "train" / "history.parquet")
    assert len(history) == status["steps_done"]
    assert not math.isfinite(history["kl"].iloc[-1] + history["grad_norm"].iloc[-1])
    weights = load_file(directory / "train" / "weights" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert not (directory / "checkpoints").exists()


def test_a_diverging_neighbour_changes_nothing(base: Base, tmp_path: Path) -> None:
    healthy = [lora_cell(seed=1), lora_cell(seed=2)]
    sick = lora_cell(seed=3, kl_cap=1e-9)
    run(train, [healthy[0], sick, healthy[1]], base, tmp_path / "together")
    for cell in healthy:
        (alone,) = run(train, [cell], base, tmp_path / "alone")
        beside = tmp_path / "together" / cell.name
        assert weights_of(alone) == weights_of(beside)
        assert read_json(beside / "train" / "status.json")["state"] == "done"
    assert read_json(tmp_path / "together" / sick.name / "train" / "status.json")["state"] == "diverged"


def test_end_tokens_are_looked_up_and_not_the_librarys_default(base: Base) -> None:
    # LLaMA's default end is 2, which is "!" here.
    assert base.vocabulary.eos == IDS["[EOS]"] == 1
    assert IDS["!"] == 2
