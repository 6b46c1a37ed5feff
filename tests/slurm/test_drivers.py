"""The Snakemake that drives a study is killed, interrupted, started again, started twice."""

from __future__ import annotations

import os
import signal

import pytest

from tests.slurm.faults import Trial
from tests.slurm.projects import SlurmProject, assert_same_training, kill, marks, queue, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def test_a_driver_that_is_killed_and_started_again_trains_nothing_twice(
    project: SlurmProject, reference: SlurmProject, trial: Trial
) -> None:
    cells = [project.cell("sweep", seed) for seed in (1, 2, 3)]
    driver = project.start(cells)
    with project.paused(cells):
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        assert len(queue(project)) == 3

        # The lock of the dead one is in the way, and says how to remove it.
        refused = project.start(cells)
        assert refused.wait(120) == 1
        assert "--unlock" in project.output.read_text()
        project.run("--unlock")
        driver = project.start(cells)
        wait_until(lambda: any("waits for" in project.log(cell) for cell in cells), "a second copy", project.output)
    first: dict[str, tuple[int, int]] = {}

    def all_finished() -> bool:
        first.update({name: mark for name, mark in marks(project, cells).items() if name not in first})
        return len(first) == len(cells)

    wait_until(all_finished, "the first copies' results", project.output)
    project.finish(driver)

    assert_same_training(project, reference, cells)
    assert marks(project, cells) == first
    for cell in cells:
        # A second copy waits for the first, or comes after it has ended: then it has nothing to tell. It never trains.
        assert "continues after step" not in project.log(cell)
        assert "takes over from" not in project.log(cell)
    trial.injected("the driving Snakemake killed (SIGKILL) and started again", "Snakemake's hint to `--unlock`")


def test_a_driver_that_is_interrupted_ends_its_jobs_and_goes_on_later(
    project: SlurmProject, reference: SlurmProject, trial: Trial
) -> None:
    cells = [project.cell("sweep", 1), project.cell("reference_engine")]
    driver = project.start(cells)
    with project.paused(cells):
        pass
    kill(driver.pid, signal.SIGINT)
    assert driver.wait(120) != 0
    wait_until(lambda: not queue(project), "an empty queue", project.output)
    for cell in cells:
        assert "stopped by SIGTERM after step" in project.log(cell)
    project.finish(project.start(cells))
    assert_same_training(project, reference, cells)
    assert all("continues after step" in project.log(cell) for cell in cells)
    trial.injected("the driving Snakemake interrupted (SIGINT)", "`stopped by SIGTERM after step n` in the cells' logs")


def test_of_two_drivers_the_second_is_refused_or_waits_for_the_cells_of_the_first(
    project: SlurmProject, reference: SlurmProject, trial: Trial
) -> None:
    cells = [project.cell("sweep", seed) for seed in (1, 2)]
    first = project.start(cells)
    with project.paused(cells):
        refused = project.start(cells)
        assert refused.wait(120) == 1
        assert "cannot be locked" in project.output.read_text()
        # Who insists gets the same cells a second time.
        second = project.start(cells, "--nolock")
        for cell in cells:
            wait_until(lambda cell=cell: "waits for" in project.log(cell), f"a copy of {cell.name}", project.output)
    project.finish(first)
    project.finish(second)
    assert_same_training(project, reference, cells)
    before = marks(project, cells)
    for cell in cells:
        assert "is trained already" in project.log(cell)
    project.finish(project.start(cells))
    assert marks(project, cells) == before
    trial.injected("two Snakemakes at once", "the directory is locked; with `--nolock`, for whom a copy waits", times=2)
