"""The library's wings import only downwards, and the light ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

BELOW: dict[str, set[str]] = {
    "study": set(),
    "lm": {"study"},
    "base": {"study", "lm"},
    "storyteller": {"study", "lm", "base"},
    "train": {"study", "lm", "base"},
    "evaluate": {"study", "lm", "base", "train"},
    "report": {"study"},
    "published": {"study", "report"},
    "page": {"study", "lm", "base", "train", "report"},
    "cli": {"study", "lm", "base", "train", "evaluate", "report", "published", "page"},
}
"""What each wing may import besides itself."""


def imported(path: Path) -> set[str]:
    """The wings that a file imports from, at its top or within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rewardgrid."):
            names.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rewardgrid.")}
    return names


@pytest.mark.parametrize("wing", BELOW)
def test_a_wing_imports_only_what_lies_below_it(wing: str, root: Path) -> None:
    files = sorted((root / "src/rewardgrid" / wing).rglob("*.py"))
    assert files
    wrong = {str(path.name): found for path in files if (found := imported(path) - BELOW[wing] - {wing})}
    assert wrong == {}


def test_every_wing_has_its_place(root: Path) -> None:
    wings = {path.parent.name for path in (root / "src/rewardgrid").glob("*/__init__.py")}
    assert wings == set(BELOW)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("rewardgrid.train.engines.native", ("trl", "transformers", "datasets", "peft", "snakemake", "matplotlib")),
        ("rewardgrid.study.study", ("torch", "pandas", "pyarrow", "snakemake")),
        ("rewardgrid.report.render", ("torch", "transformers", "snakemake")),
    ],
)
def test_a_module_loads_no_package_that_it_does_not_need(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
