"""Large studies: what is read and compared grows with the number of cells, not with its square."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tests.trees import SWEEP, Tree, make_study

from rewardgrid.cli.cells import print_table
from rewardgrid.cli.status import look_at_all
from rewardgrid.study import bases
from rewardgrid.study.cell import Cell
from rewardgrid.study.files import write_text
from rewardgrid.study.forecast import forecast, megaparameters
from rewardgrid.study.study import load_study

_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_hook)


def work(act: Callable[[], Any], below: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many files below a directory are opened, and how many cells are compared."""
    global _opened
    compared, real = 0, Cell.__eq__

    def equal(self: Cell, other: object) -> bool:
        nonlocal compared
        compared += 1
        return real(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Cell, "__eq__", equal)
        _opened = []
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                act()
            return sum(name.startswith(str(below)) for name in _opened), compared
        finally:
            _opened = None


def tree(root: Path, cells: int) -> Tree:
    """A finished study of so many cells."""
    grid = {"beta": [0.003, 0.02], "seed": list(range(cells // 2))}
    made = Tree(make_study(root / f"{cells} cells", {"many": SWEEP | {"grids": [grid]}}, published=None))
    for cell in made.study.cells.values():
        made.finish(cell)
    write_text(made.study.layout.root / "study.json", made.study.model_dump_json())
    return made


def script(name: str, *words: str) -> Callable[[Tree], Any]:
    def run(made: Tree) -> None:
        root = made.study.layout.root
        paths = [word.replace("ROOT", str(root)) for word in words]
        assert import_module(name).main(["--study", str(root / "study.json"), *paths]) == 0

    return run


LOOKS: dict[str, Callable[[Tree], Any]] = {
    "forecast": lambda made: forecast(made.study),
    "status": lambda made: look_at_all(made.study.layout, made.study.cells.values()),
    "cells": lambda made: print_table(made.study.layout, list(made.study.cells.values())),
    "index": script("index", "--out", "ROOT/cells.tsv"),
    "table": script("table", "--experiment", "many", "--out", "ROOT/tables/many.parquet"),
    "findings": script("findings", "--tables", "ROOT/tables", "--out", "ROOT/findings.json"),
    "results": script("results", "--findings", "ROOT/findings.json", "--out", "ROOT/RESULTS.md"),
}


@pytest.fixture(scope="module")
def trees(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Tree]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root / "workflow/scripts"))
        made = [tree(tmp_path_factory.mktemp("scale"), cells) for cells in (4, 8, 16)]
        for each in made:
            for name in ("table", "findings", "results"):
                with contextlib.redirect_stdout(io.StringIO()):
                    LOOKS[name](each)
        return made


@pytest.mark.parametrize("name", LOOKS)
def test_twice_the_cells_are_twice_the_work(
    name: str, trees: list[Tree], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root / "workflow/scripts"))
    counts = [work(lambda made=made: LOOKS[name](made), made.study.layout.root, monkeypatch) for made in trees]
    for few, some, many in zip(*counts, strict=True):
        assert many - some == 2 * (some - few), counts


def test_a_bases_configuration_is_read_once_however_many_cells_start_from_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    read: list[Path] = []
    real = bases.read_object
    monkeypatch.setattr(bases, "read_object", lambda path: (read.append(path), real(path))[1])

    def times(cells: int) -> int:
        overlay = tmp_path / "overlay.yaml"
        overlay.write_text(f"experiments: {{lora_rank: {{grids: [{{rank: 1, seed: {list(range(cells))}}}]}}}}\n")
        megaparameters.cache_clear()
        read.clear()
        forecast(load_study(["config/config.yaml", overlay]))
        return len(read)

    assert 0 < times(3) == times(30)
