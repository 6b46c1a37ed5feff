"""Finished cells into an archive and back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trees import SWEEP, Tree, history, make_study, routing

from rewardgrid.__main__ import main
from rewardgrid.cli.archive import LONG_AGO, collect, digest, kept_steps, pack, read_archives, restore
from rewardgrid.cli.export import export_model
from rewardgrid.report.tables import experiment_table
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import HISTORY, MODE_SAMPLES, ROLLOUTS, SAMPLES, read_table, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, sha256, write_json
from rewardgrid.study.layout import Layout
from rewardgrid.train.lease import acquire

ROUTING = {
    "title": "Routing",
    "fixed": {"method": "routing", "rank": 4, "reward": "happy_count"},
    "grids": [{"seed": 42}],
    "columns": ["seed", "verdict"],
    "by": ["rank"],
}
RECORDED = (50, 100, 150, 200, 250)


def rollouts(steps: Iterable[int]) -> list[dict[str, object]]:
    flags = dict.fromkeys(("eligible", "routed", "noise", "flagged"), False)
    text = {"prompt": "the cat", "completion": "ran.", "ids": [1, 2, 3]}
    return [{"step": step, **text, "reward": 0.5, "sl10": 0.5, "happy": 0.0, **flags} for step in steps]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Eight cells of a sweep, of which six are finished and one diverged; one finished cell of routing."""
    import pandas as pd

    tree = Tree(make_study(tmp_path / "results", {"sweep": SWEEP, "routing": ROUTING}))
    tree.measure_bases()
    cells = tree.study.grid["sweep"]
    for number, cell in enumerate(cells[:6]):
        tree.finish(cell, rewards=[0.5 + number / 100 + step / 700 for step in range(60)])
    tree.diverge(cells[6], 20)
    (two,) = tree.study.grid["routing"]
    tree.finish(two, curves=routing({("both", "happy"): [0.1, 0.2]}))
    train = tree.study.layout.train(two.name)
    write_table(train / "rollouts.parquet", pd.DataFrame(rollouts(RECORDED)), ROLLOUTS)
    samples = pd.DataFrame(rollouts(RECORDED)).assign(mode="both")[MODE_SAMPLES.names]
    write_table(train / "mode_samples.parquet", samples, MODE_SAMPLES)
    return tree


@pytest.fixture
def elsewhere(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "elsewhere")


def all_cells(tree: Tree) -> list[Cell]:
    return list(tree.study.cells.values())


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): sha256(path) for path in sorted(directory.rglob("*")) if path.is_file()}


def test_what_comes_back_is_what_was_packed(tree: Tree, elsewhere: Layout, tmp_path: Path) -> None:
    study = tmp_path / "study"
    pack(tree.study, all_cells(tree), study)
    restore(elsewhere, [study])
    layout = tree.study.layout
    finished = [cell for cell in all_cells(tree) if layout.cell(cell.name).exists()]
    assert len(finished) == 8
    assert {path.name for path in (elsewhere.root / "cells").iterdir()} == {cell.name for cell in finished}
    assert not [path for path in elsewhere.root.iterdir() if path.name.startswith(".")]
    for cell in finished:
        here, there = layout.cell(cell.name), elsewhere.cell(cell.name)
        assert digest(collect(here)) == digest(collect(there))
        assert read_json(here / "evaluation/metrics.json") == read_json(there / "evaluation/metrics.json")
        status = read_json(there / "train/status.json")
        assert status == read_json(here / "train/status.json") | {"host": None}
        assert {path.name for path in there.rglob("*.parquet")} == {path.name for path in here.rglob("*.parquet")}
    for base_id in tree.study.base_recipes:
        assert elsewhere.base_metrics(base_id).read_bytes() == layout.base_metrics(base_id).read_bytes()
    moved = tree.study.model_copy(update={"results": str(elsewhere.root)})
    for name in tree.study.active:
        assert experiment_table(moved, name).equals(experiment_table(tree.study, name))


def test_of_rollouts_an_archive_keeps_parts_of_the_run_and_the_steps_at_which_a_cell_turned(
    tree: Tree, elsewhere: Layout, tmp_path: Path
) -> None:
    import pandas as pd

    (two,) = tree.study.grid["routing"]
    layout = tree.study.layout
    recorded = range(10, 1001, 10)
    write_table(layout.train(two.name) / "rollouts.parquet", pd.DataFrame(rollouts(recorded)), ROLLOUTS)
    metrics = read_json(layout.metrics(two.name))
    write_json(layout.metrics(two.name), metrics | {"onset": {"hack_onset": 334, "degeneration_onset": 461}})
    pack(tree.study, all_cells(tree), tmp_path / "study")
    restore(elsewhere, [tmp_path / "study"])
    train = elsewhere.train(two.name)
    kept = [10, 20, 50, 70, 100, 120, 150, 170, 200, 250, 300, 340, 400, 470, 500, 600, 700, 800, 900, 1000]
    assert list(read_table(train / "rollouts.parquet", ROLLOUTS)["step"]) == kept
    assert list(read_table(train / "mode_samples.parquet", MODE_SAMPLES)["step"]) == list(RECORDED)
    # What is restored, the archive has already.
    moved = tree.study.model_copy(update={"results": str(elsewhere.root)})
    pack(moved, all_cells(tree), tmp_path / "study")
    assert len(list((tmp_path / "study").glob("*.json"))) == 1


def test_a_cell_with_more_of_its_steps_than_the_archive_keeps_is_the_same(
    tree: Tree, elsewhere: Layout, tmp_path: Path
) -> None:
    import pandas as pd

    (two,) = tree.study.grid["routing"]
    pack(tree.study, all_cells(tree), tmp_path / "study")
    path = tree.study.layout.train(two.name) / "rollouts.parquet"
    write_table(path, pd.DataFrame(rollouts((*RECORDED, 300, 350))), ROLLOUTS)
    pack(tree.study, all_cells(tree), tmp_path / "study")
    restore(tree.study.layout, [tmp_path / "study"])
    assert len(list((tmp_path / "study").glob("*.json"))) == 1
    write_table(path, pd.DataFrame(rollouts((*RECORDED[:-1], 300, 350))), ROLLOUTS)
    with pytest.raises(UserError, match="not the same as in"):
        pack(tree.study, all_cells(tree), tmp_path / "study")


@given(
    recorded=st.lists(st.integers(1, 3000), unique=True).map(sorted),
    onsets=st.lists(st.integers(1, 3000), max_size=2),
)
def test_what_is_kept_is_kept_again(recorded: list[int], onsets: list[int]) -> None:
    kept = kept_steps(recorded, onsets)
    assert kept_steps(sorted(kept), onsets) == kept <= set(recorded)
    assert {recorded[0], recorded[-1]} <= kept if recorded else not kept


def test_nothing_restored_is_older_than_what_it_was_made_of(tree: Tree, elsewhere: Layout, tmp_path: Path) -> None:
    """Snakemake would measure it again. Benchmarks of earlier runs count as well, so an order alone is not enough."""
    before = time.time() - 1
    pack(tree.study, all_cells(tree), tmp_path / "study")
    restore(elsewhere, [tmp_path / "study"])
    (base,) = tree.study.base_recipes
    for cell in (path.name for path in (elsewhere.root / "cells").iterdir()):
        for path in (elsewhere.base_metrics(base), elsewhere.spec(cell), elsewhere.train(cell)):
            assert path.stat().st_mtime == LONG_AGO
        assert all(path.stat().st_mtime > before for path in elsewhere.metrics(cell).parent.iterdir())


def test_the_same_cells_make_the_same_files(tree: Tree, elsewhere: Layout, tmp_path: Path) -> None:
    pack(tree.study, all_cells(tree), tmp_path / "a")
    pack(tree.study, all_cells(tree)[::-1], tmp_path / "b")
    restore(elsewhere, [tmp_path / "a"])
    pack(tree.study.model_copy(update={"results": str(elsewhere.root)}), all_cells(tree), tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_a_later_packing_adds_files_and_changes_none(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    cells = all_cells(tree)
    pack(tree.study, cells[:3], study)
    first = contents(study)
    pack(tree.study, cells, study)
    second = contents(study)
    assert first.items() < second.items()
    capsys.readouterr()
    pack(tree.study, cells, study)
    assert contents(study) == second
    assert "0 cells packed, 8 there already, 1 not finished" in capsys.readouterr().err


@pytest.mark.parametrize("copied", [True, False], ids=["copied together", "named together"])
def test_two_archives_of_different_cells_merge(tree: Tree, elsewhere: Layout, tmp_path: Path, copied: bool) -> None:
    cells = all_cells(tree)
    a, b = tmp_path / "a", tmp_path / "b"
    pack(tree.study, cells[:4], a)
    pack(tree.study, cells[2:], b)  # two cells and the base are in both
    if copied:
        shutil.copytree(b, a, dirs_exist_ok=True)
    restore(elsewhere, [a] if copied else [a, b])
    assert len(list((elsewhere.root / "cells").iterdir())) == 8


def test_a_cell_with_two_contents_is_refused(tree: Tree, elsewhere: Layout, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    cell = tree.study.grid["sweep"][0]
    pack(tree.study, all_cells(tree), a)
    tree.finish(cell, rewards=(0.25,) * 60)
    with pytest.raises(UserError, match=rf"{cell.name}: not the same as in .*results; pack into another"):
        pack(tree.study, all_cells(tree), a)
    pack(tree.study, [cell], b)
    with pytest.raises(UserError, match=rf"b/\w+\.json: {cell.name}: not the same as in .*a/\w+\.json"):
        restore(elsewhere, [a, b])
    assert not elsewhere.root.exists()


def test_a_finished_cell_is_never_overwritten(tree: Tree, tmp_path: Path) -> None:
    study, layout = tmp_path / "study", tree.study.layout
    pack(tree.study, all_cells(tree), study)
    changed, lost = tree.study.grid["sweep"][:2]
    before = contents(layout.root)
    restore(layout, [study])
    assert contents(layout.root) == before
    tree.finish(changed, rewards=(0.25,) * 60)
    shutil.rmtree(layout.cell(lost.name))
    before = contents(layout.root)
    with pytest.raises(UserError, match=rf"{changed.name}: not the same as in .*; to have the archive's, move"):
        restore(layout, [study])
    assert contents(layout.root) == before


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ("checkpoints/step-100/state", "begun here and not finished"),
        ("train/status.json", "trained here, not measured"),
        ("train/weights/model.safetensors", "model.safetensors: not of the archive and of no interrupted job"),
        ("train.damaged/history.parquet", "history.parquet: not of the archive"),
        ("notes.txt", "notes.txt: not of the archive"),
    ],
)
def test_a_cell_that_is_begun_here_is_left_alone(
    tree: Tree, elsewhere: Layout, tmp_path: Path, left: str, message: str
) -> None:
    pack(tree.study, all_cells(tree), tmp_path / "study")
    cell = tree.study.grid["sweep"][0]
    write_json(elsewhere.cell(cell.name) / left, {})
    with pytest.raises(UserError, match=rf"{cell.name}.*{message}"):
        restore(elsewhere, [tmp_path / "study"])
    assert list(contents(elsewhere.root)) == [f"cells/{cell.name}/{left}"]


def test_a_cell_that_is_trained_now_is_left_alone_and_what_was_cut_off_is_replaced(
    tree: Tree, elsewhere: Layout, tmp_path: Path
) -> None:
    pack(tree.study, all_cells(tree), tmp_path / "study")
    directory = elsewhere.cell(tree.study.grid["sweep"][0].name)
    with acquire(directory), pytest.raises(UserError, match=r"trained now by process \d+ on .*; restore again when"):
        restore(elsewhere, [tmp_path / "study"])
    write_json(directory / "evaluation/metrics.json", {})
    restore(elsewhere, [tmp_path / "study"])
    assert read_json(directory / "evaluation/metrics.json")["verdict"] == "ok"


def test_what_cannot_be_replaced_stays(tree: Tree, elsewhere: Layout, tmp_path: Path) -> None:
    pack(tree.study, all_cells(tree), tmp_path / "study")
    cell = tree.study.grid["sweep"][0]
    (tmp_path / "other").mkdir()
    elsewhere.cell("x").parent.mkdir(parents=True)
    elsewhere.cell(cell.name).symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=f"{cell.name}: not of the archive and of no interrupted job; move it away"):
        restore(elsewhere, [tmp_path / "study"])


def test_what_a_restoring_or_packing_left_that_was_cut_off_is_removed_after_an_hour(
    tree: Tree, elsewhere: Layout, tmp_path: Path
) -> None:
    left = [tmp_path / "study/.packing-old", elsewhere.root / ".restoring-old", elsewhere.root / ".restoring-new"]
    for path in left:
        path.mkdir(parents=True)
    for path in left[:2]:
        os.utime(path, (LONG_AGO, LONG_AGO))
    pack(tree.study, all_cells(tree), tmp_path / "study")
    restore(elsewhere, [tmp_path / "study"])
    assert [path.exists() for path in left] == [False, False, True]


def test_a_packing_that_fails_leaves_no_file(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: object, path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rewardgrid.cli.archive._write_small", full)
        with pytest.raises(UserError, match="No space left on device"):
            pack(tree.study, all_cells(tree), tmp_path / "study")
    assert not contents(tmp_path / "study")
    pack(tree.study, all_cells(tree), tmp_path / "study")
    assert read_archives([tmp_path / "study"])


def test_what_code_of_ones_own_says_comes_back(tree: Tree, elsewhere: Layout, tmp_path: Path) -> None:
    one_cell, other = tree.study.grid["sweep"][:2]
    path = tree.study.layout.samples(one_cell.name)
    write_table(path, read_table(path, SAMPLES).assign(says_mine=0.25), SAMPLES)
    pack(tree.study, all_cells(tree), tmp_path / "study")
    restore(elsewhere, [tmp_path / "study"])
    assert set(read_table(elsewhere.samples(one_cell.name), SAMPLES)["says_mine"]) == {0.25}
    assert "says_mine" not in read_table(elsewhere.samples(other.name), SAMPLES)
    moved = tree.study.model_copy(update={"results": str(elsewhere.root)})
    pack(moved, all_cells(tree), tmp_path / "study")
    assert len(list((tmp_path / "study").glob("*.json"))) == 1


def test_restoring_says_which_cells_are_of_another_study(
    tree: Tree, elsewhere: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(tree.study, all_cells(tree), tmp_path / "study")
    restore(elsewhere, [tmp_path / "study"], [cell.name for cell in tree.study.grid["sweep"]])
    assert (
        "8 cells restored (without weights), 0 there already; 1 of them is in no experiment" in capsys.readouterr().err
    )


WRONG: dict[str, tuple[Callable[[Layout, str], object], str]] = {
    "unknown state": (
        lambda layout, name: change(layout.train(name) / "status.json", state="failing"),
        r"status\.json: state: read 'failing'; it should be 'done', 'stopped' or 'diverged'; delete it",
    ),
    "no object": (
        lambda layout, name: write_json(layout.train(name) / "status.json", []),
        r"read \[\], which is no JSON",
    ),
    "text for a number": (
        lambda layout, name: change(layout.metrics(name), full={"reward": "high"}),
        r"metrics\.json: full\.reward: read 'high'; it should be a valid number",
    ),
    "NaN": (
        lambda layout, name: layout.metrics(name).write_text(
            layout.metrics(name).read_text().replace('"jaccard": 0.131', '"jaccard": NaN')
        ),
        r"metrics\.json: full\.jaccard: read nan; it should be a finite number",
    ),
    "unknown verdict": (
        lambda layout, name: change(layout.metrics(name), verdict="splendid"),
        r"verdict: read 'splendid'",
    ),
    "no figures": (lambda layout, name: change(layout.metrics(name), full={}), r"figures under full"),
    "less history": (
        lambda layout, name: write_table(layout.train(name) / "history.parquet", history([0.5] * 10), HISTORY),
        r"history\.parquet: holds 10 steps, but .*status\.json says steps_done: 60",
    ),
    "a spec of depth": (
        lambda layout, name: layout.spec(name).write_text("[" * 200000),
        r"spec\.json: \(whole text\): read '\[",
    ),
    "no UTF-8": (lambda layout, name: layout.spec(name).write_bytes(b"\xff"), r"spec\.json: no UTF-8 text"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_no_run_leaves_is_neither_packed_nor_shown(tree: Tree, tmp_path: Path, wrong: str) -> None:
    cell = tree.study.grid["sweep"][0]
    harm, message = WRONG[wrong]
    harm(tree.study.layout, cell.name)
    with pytest.raises(UserError, match=message):
        pack(tree.study, all_cells(tree), tmp_path / "study")
    assert not (tmp_path / "study").exists()
    with pytest.raises(UserError, match=message):
        experiment_table(tree.study, "sweep")


def test_a_cell_without_its_samples_is_not_packed(tree: Tree, tmp_path: Path) -> None:
    tree.study.layout.samples(tree.study.grid["sweep"][0].name).unlink()
    with pytest.raises(
        UserError, match=r"samples\.parquet: no such file, though its cell is measured; delete .*metrics"
    ):
        pack(tree.study, all_cells(tree), tmp_path / "study")


def change(path: Path, **values: Any) -> None:
    write_json(path, read_json(path) | values)


def one(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


def cut(study: Path) -> None:
    path = one(study, "*-samples.parquet")
    path.write_bytes(path.read_bytes()[:-100])


def flip(study: Path) -> None:
    path = one(study, "*-history.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pipe(study: Path) -> None:
    path = one(study, "*-course.parquet")
    path.unlink()
    os.mkfifo(path)


def cut_manifest(study: Path) -> None:
    path = one(study, "*.json")
    path.write_bytes(path.read_bytes()[:-100])


def forge(study: Path) -> None:
    """Another table, and its hash in the manifest."""
    path, manifest = one(study, "*-files.parquet"), one(study, "*.json")
    shutil.copy(one(study, "*-history.parquet"), path)
    found = read_json(manifest)
    write_json(manifest, found | {"files": found["files"] | {path.name: sha256(path)}})


def swap(study: Path) -> None:
    """A cell less in the manifest."""
    manifest = one(study, "*.json")
    found = read_json(manifest)
    write_json(manifest, found | {"members": dict(list(found["members"].items())[1:])})


def newer(study: Path) -> None:
    manifest = one(study, "*.json")
    write_json(manifest, read_json(manifest) | {"format": "rewardgrid archive 2"})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, r"-samples\.parquet: damaged: its SHA-256 is not the one in"),
    "flipped": (flip, r"-history\.parquet: damaged: its SHA-256"),
    "lost": (lambda study: one(study, "*-course.parquet").unlink(), r"-course\.parquet: no such file, but \w+\.json"),
    "manifest cut": (cut_manifest, r"\.json: damaged, or no manifest of this version"),
    "manifest lost": (lambda study: one(study, "*.json").unlink(), r"study: no archive: it has no manifest"),
    "manifest of depth": (lambda study: one(study, "*.json").write_text("[" * 200000), r"damaged, or no manifest"),
    "files in a list": (lambda study: change(one(study, "*.json"), files=[]), r"damaged, or no manifest"),
    "members in a list": (lambda study: change(one(study, "*.json"), members=[]), r"damaged, or no manifest"),
    "a pipe": (pipe, r"-course\.parquet: no such file"),
    "manifest of lists": (lambda study: one(study, "*.json").write_text("[[]]"), r"damaged, or no manifest"),
    "forged": (forge, r"damaged, or no manifest"),
    "a cell less": (swap, r"damaged, or no manifest"),
    "of a later version": (newer, r"no manifest of this version \(rewardgrid archive 1\)"),
    "foreign": (lambda study: write_json(study / "package.json", {"name": "x"}), r"package\.json: damaged, or no"),
    "stray": (
        lambda study: shutil.copy(one(study, "*-files.parquet"), study / "x.parquet"),
        r"x\.parquet: no manifest names it",
    ),
    "gone": (shutil.rmtree, r"study: no archive"),
    "empty": (lambda study: [path.unlink() for path in study.iterdir()], r"study: nothing in it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_refused_before_anything_is_restored(
    tree: Tree, elsewhere: Layout, tmp_path: Path, damage: str
) -> None:
    study = tmp_path / "study"
    for cell in all_cells(tree):
        if tree.study.layout.cell(cell.name).exists() and not tree.study.layout.course(cell.name).exists():
            add_course(tree, cell)
    pack(tree.study, all_cells(tree), study)
    harm, message = DAMAGES[damage]
    harm(study)
    with pytest.raises(UserError, match=message):
        restore(elsewhere, [study])
    assert not elsewhere.root.exists()


def add_course(tree: Tree, cell: Cell) -> None:
    import pandas as pd

    from rewardgrid.study.contracts import COURSE

    rows = [dict.fromkeys(COURSE.names, 0.0) | {"step": 50, "verdict": "ok"}]
    write_table(tree.study.layout.course(cell.name), pd.DataFrame(rows), COURSE)


def test_an_archive_of_other_measurements_is_refused(
    tree: Tree, elsewhere: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tree.study, all_cells(tree), tmp_path / "study")
    monkeypatch.setattr("rewardgrid.cli.archive.METRICS_VERSION", 1000)
    with pytest.raises(UserError, match=r"version: read \d+, but this rewardgrid measures version 1000"):
        restore(elsewhere, [tmp_path / "study"])


def test_a_cell_under_anothers_name_is_not_packed_unseen(tree: Tree, tmp_path: Path) -> None:
    layout = tree.study.layout
    first, second = tree.study.grid["sweep"][:2]
    shutil.copy(layout.spec(first.name), layout.spec(second.name))
    with pytest.raises(UserError, match=f"{second.name}: belongs to another cell"):
        pack(tree.study, all_cells(tree), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_export_says_that_a_restored_cell_has_no_weights(tree: Tree, elsewhere: Layout, tmp_path: Path) -> None:
    pack(tree.study, all_cells(tree), tmp_path / "study")
    restore(elsewhere, [tmp_path / "study"])
    cell = tree.study.grid["sweep"][0]
    (base,) = tree.study.base_recipes
    with pytest.raises(UserError, match=rf"{cell.name}: has no weights: it was restored from an archive"):
        export_model(elsewhere.cell(cell.name), elsewhere.base(base), "both", tmp_path / "out")


def test_the_manifest_names_every_cell_and_the_hash_of_every_file(tree: Tree, tmp_path: Path) -> None:
    study = tmp_path / "study"
    pack(tree.study, all_cells(tree), study)
    found = json.loads(one(study, "*.json").read_text())
    assert found["files"] == {path.name: sha256(path) for path in study.glob("*.parquet")}
    assert found["members"].keys() == read_archives([study]).keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--restore", "--to", "x"], "leave out --to"),
        (["--from", "x"], "--from goes with --restore"),
        (["--restore", "--from", "/nowhere"], "/nowhere: no archive"),
    ],
)
def test_the_command_refuses_in_one_line(
    root: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert main(["archive", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
