"""The workflow on a real SLURM cluster of two nodes. Not part of `make test`: `make test-slurm`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewardgrid.study.study import load_study
from tests.workflow.project import Project, make_project

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(root: Path) -> Iterator[None]:
    """Two nodes, up for the tests of this file."""
    subprocess.run([root / "tests/slurm/up"], check=True)
    yield
    subprocess.run([root / "tests/slurm/down"], check=True)


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(root, tmp_path_factory.mktemp("slurm") / "project")


def jobs() -> list[tuple[str, str, str]]:
    """(rule, node, state) of every job that the cluster remembers; the comment of a job begins with its rule."""
    queue = ["squeue", "--noheader", "--states=all", "--format=%k|%N|%T"]
    lines = subprocess.run(queue, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.strip().split("|") for line in lines]
    return [(comment.removeprefix("rule_").partition("_wildcards_")[0], node, state) for comment, node, state in rows]


@pytest.mark.usefixtures("cluster")
def test_bases_and_cells_are_jobs_of_the_cluster_and_the_report_is_not(project: Project) -> None:
    project.run("--profile", "profiles/slurm", "all")

    study = load_study([project.directory / "config/config.yaml"])
    assert (project.directory / "results/RESULTS.md").exists()
    assert all((project.directory / study.layout.metrics(name)).exists() for name in study.cells)

    ran = jobs()
    assert sorted(rule for rule, _, _ in ran) == ["base", "evaluate", "evaluate", "evaluate_base", "train", "train"]
    assert {state for _, _, state in ran} == {"COMPLETED"}
    assert {node for _, node, _ in ran} <= {"node1", "node2"}
    assert project.plan("--profile", "profiles/slurm") == {}
