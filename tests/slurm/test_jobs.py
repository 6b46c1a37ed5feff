"""Jobs that are killed, cancelled, put back, out of time or without their node, all on a real cluster."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewardgrid.study.cell import Cell
from tests.slurm.faults import Trial
from tests.slurm.projects import (
    STUDY,
    SlurmProject,
    assert_same_training,
    kill,
    make_slurm_project,
    marks,
    slurm,
    steps_again,
    wait_until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def test_one_study_survives_kills_cancellations_requeues_time_limits_and_torn_checkpoints(
    project: SlurmProject, reference: SlurmProject, trial: Trial
) -> None:
    killed, cancelled, requeued, late, torn = (project.cell("sweep", seed) for seed in (1, 2, 3, 4, 5))
    trl = project.cell("reference_engine")
    driver = project.start(project.study.cells.values())

    def limit() -> None:
        slurm("scontrol", "update", f"jobid={project.training(late, 1)['job']}", "TimeLimit=1")

    def kill_at(cell: Cell, step: int) -> int:
        holder = project.training(cell, step)
        kill(holder["pid"])
        return int(holder["step"])

    def kill_and_tear() -> int:
        step = kill_at(torn, 60)
        state = max((project.path(torn) / "checkpoints").glob("step-*")) / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-9])
        return step

    def requeue() -> str:
        job = str(project.training(requeued)["job"])
        slurm("scontrol", "requeue", job)
        return job

    with ThreadPoolExecutor() as pool:  # all at once: each as soon as its cell trains
        kills = {cell.name: pool.submit(kill_at, cell, 30) for cell in (killed, trl)}
        kills[torn.name] = pool.submit(kill_and_tear)
        others = [pool.submit(limit), pool.submit(lambda: slurm("scancel", project.training(cancelled)["job"]))]
        put_back = pool.submit(requeue)
        for future in others:
            future.result()
    stopped = {name: future.result() for name, future in kills.items()}
    text = project.finish(driver)
    assert_same_training(project, reference, project.study.cells.values())
    assert text.count("Trying to restart") >= 4

    for cell in (killed, trl):
        assert "whose process is gone" in project.log(cell)
        again = steps_again(project, cell, stopped[cell.name])
        trial.injected("`kill -9` of training, on the cluster", "Snakemake's report of the job", steps_again=again)
    assert "state.safetensors is torn or corrupt" in project.log(torn)
    again = steps_again(project, torn, stopped[torn.name])
    trial.injected("a checkpoint truncated", "a warning that names it in the cell's log", steps_again=again)
    assert "stopped by SIGTERM after step" in project.log(cancelled)
    trial.injected("`scancel`", "`stopped by SIGTERM after step n`, and CANCELLED from Snakemake")
    assert "stopped by SIGTERM after step" in project.log(requeued)
    assert project.log(requeued).count("continues after step") == 1
    assert f"'{put_back.result()}' failed" not in text
    trial.injected("`scontrol requeue`", "`stopped by SIGTERM after step n` in the cell's log")
    assert "stopped by SIGUSR1 after step" in project.log(late)
    trial.injected("the time limit", "`stopped by SIGUSR1 after step n`, before the limit")


def test_a_cell_survives_the_loss_of_its_node_and_of_a_nodes_daemon_alone(
    root: Path, tmp_path: Path, reference: SlurmProject, trial: Trial
) -> None:
    # Long enough to be still at it when SLURM gives up a silent node, which takes half a minute.
    long = {**STUDY["experiments"]["sweep"], "fixed": {"max_steps": 4000}, "grids": [{"seed": [1, 2]}]}
    config = STUDY | {"experiments": {"long": long}}
    project = make_slurm_project(root, tmp_path / "project", config, base_of=reference)
    lost, deserted = (project.cell("long", seed) for seed in (1, 2))
    driver = project.start([deserted])
    holder = project.training(deserted)
    daemon = Path(os.environ.get("CLUSTER_DIR", "/tmp/rewardgrid-slurm")) / f"slurmd-{holder['node']}.pid"
    kill(int(daemon.read_text()))
    wait_until(lambda: "waits for SLURM job" in project.log(deserted), "a second copy", project.output, 180)
    assert project.holder(deserted)["pid"] == holder["pid"]
    project.finish(driver, 400)
    assert "is trained already" in project.log(deserted)
    assert "continues after step" not in project.log(deserted)
    trial.injected("slurmd of a node killed, training lives on", "the second copy says for whom it waits")
    subprocess.run([root / "tests/slurm/up"], check=True)

    before = marks(project, [deserted])
    driver = project.start([lost])
    holder = project.training(lost)
    subprocess.run([root / "tests/slurm/down", holder["node"]], check=True)
    project.training(lost, holder["step"] + 1, besides=[holder["pid"]])
    project.finish(driver, 400)
    again = steps_again(project, lost, holder["step"])
    trial.injected(
        "a node lost with all that ran on it", "the next copy says from whom it takes over", steps_again=again
    )
    assert "whose process is gone" in project.log(lost)
    assert marks(project, [deserted]) == before
    subprocess.run([root / "tests/slurm/up"], check=True)
