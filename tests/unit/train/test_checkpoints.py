"""Checkpoints: a killed run goes on bit for bit, and a damaged checkpoint is passed over, not believed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.durability import flushed_before_renamed
from tests.runs import OFTEN, assert_same_run, killed_at, run
from tests.tiny import CELLS, SHORT, make_cell

from rewardgrid.base.load import Base
from rewardgrid.study import files
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.train import checkpoint
from rewardgrid.train.checkpoint import Checkpoint, load, save
from rewardgrid.train.engines.native import train
from rewardgrid.train.record import Record


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"parameters/embed": torch.full((3, 2), value), "steps": torch.tensor([value])}


SPEC = SHORT | {"max_steps": 6, "seed": 2}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Cell]:
    """Checkpoints of steps 2 and 4."""
    cell = make_cell()
    for step in (2, 4):
        save(tmp_path, cell, Checkpoint(step, tensors(step), Record()))
    return tmp_path, cell


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- files -----------------------------------------------------------------------------------------------------


def test_the_newest_checkpoint_comes_back_as_it_was(saved: tuple[Path, Cell]) -> None:
    found = load(*saved)
    assert found is not None
    assert found.step == 4
    assert found.tensors.keys() == tensors(4).keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in tensors(4).items())


def test_without_checkpoints_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(tmp_path / "none", make_cell()) is None
    assert capsys.readouterr().err == ""


def test_two_are_kept_and_nothing_temporary(saved: tuple[Path, Cell]) -> None:
    directory, cell = saved
    save(directory, cell, Checkpoint(6, tensors(6), Record()))
    assert names(directory) == ["step-000004", "step-000006"]


def test_a_step_can_be_saved_again(saved: tuple[Path, Cell]) -> None:
    directory, cell = saved
    save(directory, cell, Checkpoint(4, tensors(9), Record()))
    found = load(directory, cell)
    assert found is not None
    assert found.tensors["steps"].item() == 9


def test_a_checkpoint_has_its_name_only_when_all_of_it_is_flushed_and_its_manifest_was_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[set[str]] = []

    def renamed(source: Path, target: Path) -> None:
        if target.name.startswith("step-"):
            manifest = json.loads((source / "manifest.json").read_text())
            moved.append({*manifest["files"], "manifest.json"})
            assert moved[-1] == {path.name for path in source.iterdir()}

    with flushed_before_renamed(monkeypatch, renamed) as given:
        save(tmp_path, make_cell(), Checkpoint(2, tensors(2), Record()))
    assert len(moved) == 1
    assert "state.safetensors" in moved[0]
    assert given[-2:] == ["manifest.json", "step-000002"]


def truncate(path: Path) -> None:
    state = path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    state = path / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(bytes(content))


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def empty_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


def garble_the_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"files": None}))


def list_for_a_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[1, 2]")


def lose_a_table(path: Path) -> None:
    (path / "history.parquet").unlink()


def tear_a_table(path: Path) -> None:
    (path / "history.parquet").write_bytes(b"PAR1")


def belong_to_another(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"spec": make_cell(lr=0.5).identity()}))


def become_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


def nest_deeply(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 200_000)


def become_a_pipe(path: Path) -> None:
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")


def name_a_file_elsewhere(path: Path) -> None:
    shutil.copy(path / "state.safetensors", path.parent.parent)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../state.safetensors"] = manifest["files"].pop("state.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))


def vouch_for_nothing(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))
    (path / "state.safetensors").unlink()
    os.mkfifo(path / "state.safetensors")


def tell_another_step(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"step": 10**30}))


DAMAGES = (
    nest_deeply,
    become_a_pipe,
    name_a_file_elsewhere,
    vouch_for_nothing,
    tell_another_step,
    truncate,
    flip_a_bit,
    lose_the_manifest,
    empty_the_manifest,
    garble_the_manifest,
    list_for_a_manifest,
    lose_a_table,
    tear_a_table,
    belong_to_another,
    become_a_file,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    damage: Callable[[Path], None], saved: tuple[Path, Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, cell = saved
    damage(directory / "step-000004")
    found = load(directory, cell)
    assert found is not None
    assert found.step == 2
    assert torch.equal(found.tensors["steps"], torch.tensor([2.0]))
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {directory / 'step-000004'}: passed over: ")


@pytest.mark.parametrize("name", ["step-\u00b2", "step-x", "step-", "step-99999999999999999999", "step-00000\u0664"])
def test_a_directory_that_is_named_like_no_checkpoint_is_none(
    name: str, saved: tuple[Path, Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, cell = saved
    (directory / name).mkdir()
    found = load(directory, cell)
    assert found is not None
    assert found.step == 4
    assert capsys.readouterr().err == ""


def test_with_all_of_them_damaged_the_run_starts_anew(
    saved: tuple[Path, Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, cell = saved
    for path in directory.iterdir():
        truncate(path)
    assert load(directory, cell) is None
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_another_cells_checkpoints_are_not_used(saved: tuple[Path, Cell], capsys: pytest.CaptureFixture[str]) -> None:
    directory, _ = saved
    assert load(directory, make_cell(seed=8)) is None
    assert "another spec" in capsys.readouterr().err


def _full_in_tensors(patch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(checkpoint, "save_file", full)


def _full_in_tables(patch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(files, "sync", full)


@pytest.mark.parametrize("fill", [_full_in_tensors, _full_in_tables])
def test_a_full_disk_is_said_so_and_costs_no_older_checkpoint(
    fill: Callable[[pytest.MonkeyPatch], None], saved: tuple[Path, Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, cell = saved
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(UserError, match=r"No space left on device.*free some space"):
            save(directory, cell, Checkpoint(6, tensors(6), Record()))
    assert names(directory) == ["step-000002", "step-000004"]
    found = load(directory, cell)
    assert found is not None
    assert found.step == 4


def test_a_full_disk_ends_training_with_a_message_and_the_next_run_goes_on(
    base: Base, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make_cell(**SPEC)
    real, calls = checkpoint.save_file, []

    def fills_up(*arguments: Any, **keywords: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fills_up)
        with pytest.raises(UserError, match="free some space and run the same command again"):
            run(train, [cell], base, tmp_path / "cut", OFTEN)
    directory = tmp_path / "cut" / cell.name
    assert names(directory / "checkpoints") == ["history.jsonl", "step-000002"]
    assert_same_run(whole["full"], *run(train, [cell], base, tmp_path / "cut", OFTEN))


# --- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    return {method: run(train, [make(**SPEC)], base, root)[0] for method, make in CELLS.items()}


@pytest.mark.parametrize("method", CELLS)
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_killed_run_goes_on_bit_for_bit(
    method: str,
    step: int,
    base: Base,
    whole: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cell = CELLS[method](**SPEC)
    with killed_at(step, monkeypatch):
        run(train, [cell], base, tmp_path / "killed", OFTEN)
    assert not (tmp_path / "killed" / cell.name / "train" / "status.json").exists()
    capsys.readouterr()
    (resumed,) = run(train, [cell], base, tmp_path / "killed", OFTEN)
    newest = (step - 1) // 2 * 2
    message = capsys.readouterr().err
    assert (f"continues after step {newest}" in message) == (newest > 0)
    assert_same_run(whole[method], resumed)
    assert not (resumed / "checkpoints").exists()


def test_a_run_killed_again_and_again_is_still_the_same(
    base: Base, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = CELLS["routing"](**SPEC)
    for step in (3, 4, 5, 6):
        with killed_at(step, monkeypatch):
            run(train, [cell], base, tmp_path / "killed", OFTEN)
    assert_same_run(whole["routing"], *run(train, [cell], base, tmp_path / "killed", OFTEN))


def test_a_run_with_a_torn_checkpoint_goes_on_from_the_one_before(
    base: Base,
    whole: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cell = CELLS["lora"](**SPEC)
    with killed_at(6, monkeypatch):
        run(train, [cell], base, tmp_path / "killed", OFTEN)
    truncate(tmp_path / "killed" / cell.name / "checkpoints" / "step-000004")
    (resumed,) = run(train, [cell], base, tmp_path / "killed", OFTEN)
    message = capsys.readouterr().err
    assert "step-000004: passed over: 'state.safetensors' is torn or corrupt" in message
    assert "continues after step 2" in message
    assert_same_run(whole["lora"], resumed)
