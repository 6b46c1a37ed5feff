"""The workflow on a real SLURM cluster of two nodes. Not part of `make test`: `make test-slurm`."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.faults import Trial
from tests.slurm.projects import (
    PROFILE,
    STUDY,
    SlurmProject,
    assert_same_evaluation,
    assert_same_training,
    make_slurm_project,
    slurm,
    status_of,
)

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def jobs(project: SlurmProject, since: float) -> list[tuple[str, str, str]]:
    """(rule, node, state) of every job that a project submitted since; the comment of a job begins with its rule."""
    lines = slurm("squeue", "--noheader", "--states=all", "--format=%V|%k|%N|%T|%Z").splitlines()
    rows = [line.split("|") for line in lines]
    return [
        (comment.removeprefix("rule_").partition("_wildcards_")[0], node, state)
        for submitted, comment, node, state, directory in rows
        if directory == str(project.directory)
        and time.mktime(time.strptime(submitted, "%Y-%m-%dT%H:%M:%S")) >= int(since)
    ]


def test_the_whole_study_on_gpus_gives_the_results_of_this_machine(
    root: Path, tmp_path: Path, reference: SlurmProject, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGRID_GRES", "gpu:1")
    monkeypatch.setenv("REWARDGRID_GPU_PARTITION", "gpu")
    project = make_slurm_project(root, tmp_path / "project", STUDY)
    began = time.time()
    project.run(*PROFILE, "all")

    ran = jobs(project, began)
    rules = [rule for rule, _, _ in ran]
    cells = len(project.study.cells)
    assert {rule: rules.count(rule) for rule in set(rules)} == {
        "evaluate_base": 1,
        "train": cells,
        "evaluate": cells,
    }
    assert {state for _, _, state in ran} == {"COMPLETED"}
    assert {node for _, node, _ in ran} <= {"node1", "node2"}
    assert project.plan(*PROFILE) == {}

    assert_same_training(project, reference, project.study.cells.values())
    assert_same_evaluation(project, reference)
    ours, theirs = ((each.directory / "results/RESULTS.md").read_text() for each in (project, reference))
    assert figures(ours) == figures(theirs)

    # Four GPUs for seven cells: those that ran at the same time on one node held different ones.
    held = [status_of(project, cell)["cuda_visible_devices"] for cell in project.study.cells.values()]
    assert set(held) == {"0", "1"}
    diverged = project.cell("diverging")
    assert status_of(project, diverged)["state"] == "diverged"
    trial.injected("a cell that diverges", "`diverged` with the step and the reason in the tables and in `status`")


def figures(results: str) -> list[str]:
    """The lines of RESULTS.md, but those that tell the time and the checkout's commit."""
    return [line for line in results.splitlines() if not re.search("time|seconds|commit", line, re.IGNORECASE)]


def test_an_impossible_cell_is_told_before_anything_is_submitted(project: SlurmProject, trial: Trial) -> None:
    began = time.time()
    overlay = project.directory / "config/overlay.yaml"
    overlay.write_text("experiments: {sweep: {grids: [{batch_size: 5}]}}\n")
    done = project.run(*PROFILE, "all", "--configfile", "config/overlay.yaml", check=False)
    assert done.returncode == 1
    assert "batch_size: read 5" in done.stdout
    assert "Traceback" not in done.stdout
    assert jobs(project, began) == []
    # The study without it is as it was.
    assert project.plan(*PROFILE)["train"] == len(project.study.cells)
    trial.injected("a cell whose configuration is impossible", "file, key, what was read and what to write instead")


def test_jobs_that_share_gpus_ask_for_parts_of_them_and_show_in_status(
    project: SlurmProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGRID_GRES", "shard:2")
    monkeypatch.setenv("SBATCH_PARTITION", "all")  # in Python a function
    cells = project.study.grid["sweep"]
    driver = project.start(cells)
    with project.paused(cells) as holders:
        status = [sys.executable, "-m", "rewardgrid", "status", "sweep"]
        text = subprocess.run(status, cwd=project.directory, check=True, capture_output=True, text=True).stdout
        requests = [slurm("scontrol", "show", "job", holder["job"]) for holder in holders]
        assert all("TresPerNode=gres:shard:2" in request for request in requests)
        assert all("Partition=all" in request for request in requests)
        # Five run at once and there are four GPUs: some share one, whatever else is on the cluster.
        assert len(cells) == 5
        assert len({(holder["node"], holder["cuda_visible_devices"]) for holder in holders}) < 5
        for cell, holder in zip(cells, holders, strict=True):
            (line,) = [line for line in text.splitlines() if cell.name in line]
            assert line.startswith("running")
            assert "steps/s" in line
            assert f"job {holder['job']} on {holder['node']}" in line
        assert "5 cells: 5 running" in text
    project.finish(driver)
