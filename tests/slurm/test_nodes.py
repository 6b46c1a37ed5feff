"""Nodes that are lost, or whose daemon is."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.slurm.faults import Trial
from tests.slurm.projects import SlurmProject, assert_same_training, kill, marks, steps_again, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def test_a_cell_survives_the_loss_of_its_node_and_of_a_nodes_daemon_alone(
    root: Path, project: SlurmProject, reference: SlurmProject, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On nodes of its own: other tests go on meanwhile.
    monkeypatch.setenv("SBATCH_PARTITION", "fragile")
    deserted, lost = (project.cell("sweep", seed) for seed in (1, 2))
    driver = project.start([deserted])
    holder = project.training(deserted)
    # SLURM gives up a silent node after half a minute: the process pauses meanwhile, to be still at it then.
    kill(holder["pid"], signal.SIGSTOP)
    daemon = Path(os.environ.get("CLUSTER_DIR", "/tmp/rewardgrid-slurm")) / f"slurmd-{holder['node']}.pid"
    kill(int(daemon.read_text()))
    wait_until(lambda: "waits for SLURM job" in project.log(deserted), "a second copy", project.output, 150)
    kill(holder["pid"], signal.SIGCONT)
    project.finish(driver)
    assert_same_training(project, reference, [deserted])
    assert "is trained already" in project.log(deserted)
    assert "continues after step" not in project.log(deserted)
    trial.injected("slurmd of a node killed, training lives on", "the second copy says for whom it waits")
    subprocess.run([root / "tests/slurm/up"], check=True)

    before = marks(project, [deserted])
    driver = project.start([lost])
    holder = project.training(lost)
    subprocess.run([root / "tests/slurm/down", holder["node"]], check=True)
    project.finish(driver)
    subprocess.run([root / "tests/slurm/up"], check=True)
    assert_same_training(project, reference, [lost])
    assert "whose process is gone" in project.log(lost)
    assert marks(project, [deserted]) == before
    again = steps_again(project, lost, holder["step"])
    told = "the next copy says from whom it takes over"
    trial.injected("a node lost with all that ran on it", told, steps_again=again)
