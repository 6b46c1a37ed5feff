"""A report is rendered from an archive, without training or measuring anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.project import PARTS, Project, make_project

RENDERED = {"study", "index", "table", "figures", "findings", "published", "page", "results"}


def archive(project: Project, *words: str) -> str:
    """Run `python -m rewardgrid archive`; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "rewardgrid", "archive", *words],
        cwd=project.directory,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stderr


def made(project: Project) -> dict[str, str]:
    """Everything that a reader sees: RESULTS.md, figures, tables and the index."""
    results = project.directory / "results"
    paths = [results / "RESULTS.md", results / "cells.tsv", *results.glob("tables/*"), *results.glob("figures/*/*.svg")]
    return {str(path.relative_to(results)): path.read_bytes().hex() for path in paths}


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A micro study that has been run and archived."""
    project = make_project(root, tmp_path_factory.mktemp("archive") / "a checkout")
    project.run("--cores", "2")
    assert "2 cells packed" in archive(project)
    return project


@pytest.mark.parametrize("forgotten", [True, False], ids=["in a fresh clone", "where Snakemake remembers the cells"])
def test_a_restored_study_renders_as_the_one_that_was_run(project: Project, forgotten: bool) -> None:
    before = made(project)
    assert {"RESULTS.md", "tables/sweep.parquet", "figures/sweep/learning_curves.svg"} <= before.keys()
    shutil.rmtree(project.directory / "results")
    if forgotten:
        shutil.rmtree(project.directory / ".snakemake")
    assert "2 cells restored" in archive(project, "--restore")
    assert set(project.plan("results")) <= RENDERED
    assert set(project.plan()) <= RENDERED
    project.run("--cores", "2")
    assert made(project) == before
    assert project.plan() == {}
    assert not list((project.directory / "results/cells").glob("*/train/weights"))
    assert "0 cells restored (without weights), 2 there already" in archive(project, "--restore")
    assert project.plan() == {}


def test_a_clone_renders_the_committed_report(root: Path, tmp_path: Path) -> None:
    """But for the line that names the code's commit, which a page cannot hold that is part of it."""
    if not list((root / "study").glob("*.json")):
        pytest.skip("study/ is empty: no cell of the study has been archived yet")
    clone = Project(tmp_path / "clone")
    for part in (*PARTS, "config", "resources/bases", "study", "docs/verdict.md"):
        target = clone.directory / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (root / part).is_dir():
            shutil.copytree(root / part, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / part, target)
    archive(clone, "--restore")
    assert set(clone.plan("results_partial")) <= RENDERED | {"results_partial"}
    clone.run("--cores", "2", "results_partial")
    program = clone.directory / "workflow/templates/publish.sed"
    page = subprocess.check_output(["sed", "-E", "-f", program, clone.directory / "results/RESULTS.md"], text=True)
    code = re.compile(r"^\| Code \|.*$", re.MULTILINE)
    assert code.sub("", page) == code.sub("", (root / "RESULTS.md").read_text(encoding="utf-8"))
    for figure in clone.directory.glob("results/figures/*/*.svg"):
        committed = root / "docs/figures" / figure.parent.name / figure.name
        assert figure.read_bytes() == committed.read_bytes(), committed
