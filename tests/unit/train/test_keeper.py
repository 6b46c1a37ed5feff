"""What is kept of a cell: a stop between two steps, a finished run that cannot be taken back, one writer."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.durability import flushed_before_renamed
from tests.runs import OFTEN, assert_same_run, run
from tests.tiny import CELLS, SHORT, lora_cell, make_cell

from rewardgrid.base.load import Base
from rewardgrid.study.errors import UserError
from rewardgrid.study.history import LiveHistory, read_history
from rewardgrid.study.layout import Layout
from rewardgrid.train import keeper as keepers
from rewardgrid.train.engines.native import train
from rewardgrid.train.keeper import Keeper, mend
from rewardgrid.train.lease import Lease, Lost, acquire
from rewardgrid.train.record import Progress
from rewardgrid.train.stopping import Stopped, stoppable

SPEC: dict[str, Any] = SHORT | {"max_steps": 6, "seed": 2}


@contextmanager
def at_step(step: int, act: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Something happens while that step is reported."""
    real = Progress.__call__

    def report(self: Progress, row: dict[str, Any]) -> None:
        if row["step"] == step:
            act()
        real(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", report)
        yield


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def whole(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    return run(train, [lora_cell(**SPEC)], base, tmp_path_factory.mktemp("whole"), OFTEN)[0]


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "cells" / whole.name, copy_function=os.link))


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_a_run_after_its_step_and_the_same_command_continues(
    engine: str,
    number: signal.Signals,
    base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trains = import_module(f"rewardgrid.train.engines.{engine}").train
    cell = lora_cell(**SPEC, engine=engine)
    (undisturbed,) = run(trains, [cell], base, tmp_path / "whole", OFTEN)
    stop = at_step(4, lambda: os.kill(os.getpid(), number), monkeypatch)
    with stop, stoppable(), pytest.raises(Stopped) as raised:
        run(trains, [cell], base, tmp_path / "cut", OFTEN)
    what = f"stopped by {number.name} after step 4 of 6; the same command continues"
    assert str(raised.value) == f"{cell.name}: {what}"
    assert raised.value.status == 128 + number
    directory = tmp_path / "cut" / cell.name
    assert names(directory) == ["checkpoints", "events.log"]
    assert (directory / "events.log").read_text().endswith(f"  {cell.name}: {what}\n")
    assert names(directory / "checkpoints") == ["history.jsonl", "step-000002", "step-000004"]
    capsys.readouterr()
    (resumed,) = run(trains, [cell], base, tmp_path / "cut", OFTEN)
    assert "continues after step 4" in capsys.readouterr().err
    assert_same_run(undisturbed, resumed)


def test_a_signal_at_the_last_step_changes_nothing(
    whole: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch), stoppable():
        (ended,) = run(train, [lora_cell(**SPEC)], base, tmp_path, OFTEN)
    assert_same_run(whole, ended)


def test_more_signals_of_a_cluster_change_nothing_and_a_second_ctrl_c_interrupts() -> None:
    with stoppable():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert Stopped("cell", "after step 1").status == 128 + signal.SIGUSR1
    with stoppable():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outputs_that_snakemake_has_removed_are_put_back_and_not_trained_again(
    finished: Path, base: Base, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(finished / "train")
    (finished / "spec.json").unlink()
    run(train, [lora_cell(**SPEC)], base, finished.parent, OFTEN)
    assert "is trained already (done after step 6)" in capsys.readouterr().err
    assert_same_run(whole, finished)
    assert (finished / "spec.json").read_bytes() == (whole / "spec.json").read_bytes()


@pytest.mark.parametrize("name", ["weights/adapter_model.safetensors", "history.parquet"])
def test_what_is_kept_survives_when_outputs_are_overwritten_in_place(
    name: str, finished: Path, base: Base, whole: Path
) -> None:
    shutil.rmtree(finished / "train")
    run(train, [lora_cell(**SPEC)], base, finished.parent, OFTEN)
    with (finished / "train" / name).open("r+b") as stream:
        stream.write(b"spoilt")
    run(train, [lora_cell(**SPEC)], base, finished.parent, OFTEN)
    assert_same_run(whole, finished)


@pytest.mark.parametrize("name", ["weights/adapter_model.safetensors", "rollouts.parquet", "status.json"])
def test_damaged_outputs_are_put_back_from_what_is_kept(name: str, finished: Path, whole: Path) -> None:
    shutil.rmtree(finished / "train")
    shutil.copytree(finished / "kept", finished / "train")
    (finished / "train" / name).write_bytes(b"torn")
    mend(finished, lora_cell(**SPEC))
    assert_same_run(whole, finished)


def test_outputs_without_a_sound_copy_are_removed_and_the_same_command_trains_anew(
    finished: Path, base: Base, whole: Path
) -> None:
    shutil.rmtree(finished / "train")
    shutil.copytree(finished / "kept", finished / "train")
    for place in ("kept", "train"):
        tear(finished / place)
    with pytest.raises(UserError, match=r"train: damaged \(.* torn or corrupt .* run the same command again"):
        mend(finished, lora_cell(**SPEC))
    assert not (finished / "train").exists()
    run(train, [lora_cell(**SPEC)], base, finished.parent, OFTEN)
    assert_same_run(whole, finished)


def test_a_run_without_weights_is_left_as_it_is(finished: Path) -> None:
    """As it comes from an archive, and whatever else is lost of it."""
    shutil.rmtree(finished / "train")
    (finished / "kept").rename(finished / "train")
    shutil.rmtree(finished / "train" / "weights")
    (finished / "train" / "history.parquet").unlink()
    before = files(finished)
    with pytest.raises(UserError, match=r"train: its weights are not here, .*; remove .*archive --restore"):
        mend(finished, lora_cell(**SPEC))
    assert files(finished) == before


def tear(kept: Path) -> None:
    path = kept / "weights" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-5])


def lose(kept: Path) -> None:
    (kept / "status.json").unlink()


def belong_to_another(kept: Path) -> None:
    text = (kept / "status.json").read_text()
    (kept / "status.json").unlink()
    (kept / "status.json").write_text(text.replace("_s2-", "_s3-"))


@pytest.mark.parametrize("kept", [True, False])
def test_a_sound_run_of_another_cell_is_refused_and_left_as_it_is(kept: bool, finished: Path) -> None:
    shutil.rmtree(finished / "train")
    shutil.copytree(finished / "kept", finished / "train")
    belong_to_another(finished / "train")
    if not kept:
        shutil.rmtree(finished / "kept")
    before = files(finished)
    with pytest.raises(UserError, match=r"train: it is of cell '.*_s3-.*'; move it to the directory of that cell"):
        mend(finished, lora_cell(**SPEC))
    assert files(finished) == before


@pytest.mark.parametrize("damage", [tear, lose, belong_to_another])
def test_what_is_kept_and_damaged_is_reported_and_trained_again(
    damage: Any, finished: Path, base: Base, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(finished / "kept")
    shutil.rmtree(finished / "train")
    run(train, [lora_cell(**SPEC)], base, finished.parent, OFTEN)
    assert f"warning: {finished / 'kept'}: passed over: " in capsys.readouterr().err
    assert_same_run(whole, finished)


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_that_has_lost_its_lease_writes_nothing_more(
    step: int, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, layout = lora_cell(**SPEC), Layout(tmp_path)
    directory = layout.cell(cell.name)
    taken_over = at_step(step, lambda: (directory / "lease-2.json").write_text("{}"), monkeypatch)
    with taken_over, pytest.raises(Lost, match="writes nothing more"):
        run(train, [cell], base, directory.parent, OFTEN)
    checkpoints = [f"step-{done:06d}" for done in (2, 4) if done < step]
    assert [path.name for path in sorted(directory.glob("checkpoints/step-*"))] == checkpoints
    assert read_history(layout, cell.name)["step"].tolist() == ([1, 2, 3, 4] if checkpoints else [])
    assert not (directory / "kept").exists()
    assert not (directory / "train").exists()


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_the_history_of_a_running_cell_can_be_read_and_is_the_one_it_ends_with(
    engine: str, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains = import_module(f"rewardgrid.train.engines.{engine}").train
    cell, layout = lora_cell(**SPEC, engine=engine), Layout(tmp_path)
    monkeypatch.setattr(LiveHistory.__init__, "__defaults__", (0.0,))
    seen = []
    with at_step(5, lambda: seen.append(read_history(layout, cell.name)), monkeypatch), monkeypatch.context() as patch:
        patch.setattr("rewardgrid.train.engines.native.asked_to_stop", lambda: len(seen) == 1)
        patch.setattr("rewardgrid.train.engines.trl.asked_to_stop", lambda: len(seen) == 1)
        with pytest.raises(Stopped):
            run(trains, [cell], base, tmp_path / "cells", OFTEN)
        assert read_history(layout, cell.name)["step"].tolist() == [1, 2, 3, 4, 5]
        seen.append(None)
        run(trains, [cell], base, tmp_path / "cells", OFTEN)
    assert not layout.live_history(cell.name).exists()
    whole = read_history(layout, cell.name)
    assert len(whole) == 6
    pd.testing.assert_frame_equal(seen[0], whole.head(5), check_exact=True)


def test_a_run_that_loses_its_lease_while_it_writes_its_result_leaves_none(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, real = tmp_path / lora_cell(**SPEC).name, keepers.finish

    def suspended(*arguments: Any) -> None:
        real(*arguments)
        (directory / "lease-2.json").write_text("{}")

    monkeypatch.setattr(keepers, "finish", suspended)
    with pytest.raises(Lost, match="writes nothing more"):
        run(train, [lora_cell(**SPEC)], base, tmp_path, OFTEN)
    assert not {"kept", "train", "spec.json"} & set(names(directory))


def test_a_run_that_is_overtaken_after_its_last_look_leaves_the_others_result(
    whole: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, real = tmp_path / whole.name, Lease.check

    def check(self: Lease) -> None:
        real(self)
        if (directory / ".kept.tmp" / "status.json").exists() and not (directory / "kept").exists():
            shutil.copytree(whole / "kept", directory / "kept")
            (directory / "kept" / "mark").touch()
            (directory / "lease-2.json").write_text("{}")

    monkeypatch.setattr(Lease, "check", check)
    with pytest.raises(Lost, match="writes nothing more"):
        run(train, [lora_cell(**SPEC)], base, tmp_path, OFTEN)
    assert (directory / "kept" / "mark").exists()
    assert (directory / "kept" / "status.json").read_bytes() == (whole / "kept" / "status.json").read_bytes()


@pytest.mark.parametrize("method", CELLS)
def test_a_finished_run_has_its_names_only_when_all_of_it_is_flushed(
    method: str, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flushed_before_renamed(monkeypatch) as given:
        run(train, [CELLS[method](**SPEC | {"max_steps": 2})], base, tmp_path)
    assert given[-3:] == ["kept", "spec.json", "train"]


def test_who_waited_until_the_other_was_done_does_nothing(
    finished: Path, base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = acquire(finished)
    before = {path: path.stat().st_mtime_ns for path in (finished / "kept").rglob("*")}
    monkeypatch.setattr("rewardgrid.train.lease.time.sleep", lambda _: other.release())
    keeper = Keeper(lora_cell(**SPEC), base, finished, OFTEN)
    keeper.release()
    assert keeper.outcome is not None
    assert keeper.outcome.steps_done == 6
    message = capsys.readouterr().err
    assert "waits for process" in message
    assert "is trained already" in message
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "kept").rglob("*")}


def test_a_directory_that_cannot_be_written_is_said_so(base: Base, tmp_path: Path) -> None:
    cell = make_cell(**SPEC)
    (tmp_path / cell.name).write_text("in the way")
    with pytest.raises(UserError, match="cannot write: File exists"):
        run(train, [cell], base, tmp_path, OFTEN)
