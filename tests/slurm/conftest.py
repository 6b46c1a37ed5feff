"""The cluster, an undisturbed run to compare with, and the report of what was injected."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from rewardgrid.base.load import Base
from tests.slurm.faults import Faults, Trial
from tests.slurm.projects import STUDY, SlurmProject, make_slurm_project
from tests.tiny import make_base


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory that the processes of one run of the suite share."""
    own = tmp_path_factory.getbasetemp()
    directory = (own if worker_id == "master" else own.parent) / "together"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def cluster(root: Path, together: Path) -> Iterator[None]:
    """Nodes with GPUs and accounting, up as long as one process of the suite needs them."""
    mine = together / f"needs-cluster-{os.getpid()}"
    mine.touch()
    subprocess.run([root / "tests/slurm/up"], check=True)
    os.environ["SBATCH_ACCOUNT"] = "tests"
    yield
    mine.unlink()
    if not list(together.glob("needs-cluster-*")):
        subprocess.run([root / "tests/slurm/down"], check=True)


@pytest.fixture(scope="session")
def reference(root: Path, together: Path) -> SlurmProject:
    """The study of these tests, run on this machine with nothing in its way; made by the first who needs it."""
    directory = together / "reference" / "project"
    with FileLock(together / "reference.lock"):
        if directory.exists():
            return SlurmProject(directory)
        project = make_slurm_project(root, directory, STUDY)
        for command in ("train", "evaluate"):  # one process for all cells: it loads torch once
            subprocess.run([sys.executable, "-m", "rewardgrid", command, "--all"], cwd=project.directory, check=True)
        project.run("--profile", "profiles/local", "all")
    return project


@pytest.fixture
def project(root: Path, tmp_path: Path, reference: SlurmProject) -> SlurmProject:
    """A checkout with the same study, whose base is there and nothing else."""
    return make_slurm_project(root, tmp_path / "project", STUDY, base_of=reference)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A LLaMA with random weights, for faults that need no cluster."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def faults(root: Path, together: Path) -> Faults:
    """What was injected, for results/reliability/, whence the table of docs/reliability.md comes."""
    return Faults(together / "faults.json", root / "results" / "reliability")


@pytest.fixture
def trial(faults: Faults, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """Where a test says what it injected; counted only if the test passes."""
    found = Trial()
    failed = request.session.testsfailed
    yield found
    if request.session.testsfailed == failed:
        faults.add(found)
