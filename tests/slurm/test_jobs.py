"""Jobs that are killed, cancelled, put back or out of time, all on a real cluster."""

from __future__ import annotations

import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewardgrid.study.cell import Cell
from tests.slurm.faults import Trial
from tests.slurm.projects import (
    SlurmProject,
    assert_same_training,
    kill,
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
        # SLURM looks at its limits every half minute or so, which is more than the cell needs: it has to pause.
        holder = project.training(late)
        kill(holder["pid"], signal.SIGSTOP)
        slurm("scontrol", "update", f"jobid={holder['job']}", "TimeLimit=1")
        wait_until(lambda: pending(holder["pid"], signal.SIGUSR1), "the signal before the time limit", seconds=150)
        with contextlib.suppress(ProcessLookupError):
            kill(holder["pid"], signal.SIGCONT)

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
    assert "'state.safetensors' is torn or corrupt" in project.log(torn)
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


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process that is paused has a signal to see to, or has gone on and seen to it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    mask = int(next(line for line in status.splitlines() if line.startswith("ShdPnd")).split()[1], 16)
    return bool(mask & 1 << (number - 1))
