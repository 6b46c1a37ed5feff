"""The cluster, an undisturbed run to compare with, and the report of what was injected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewardgrid.base.load import Base
from tests.slurm.faults import Faults, Trial
from tests.slurm.projects import STUDY, SlurmProject, make_slurm_project
from tests.tiny import make_base


@pytest.fixture(scope="session")
def cluster(root: Path) -> Iterator[None]:
    """Two nodes with GPUs and accounting, up for the whole session."""
    subprocess.run([root / "tests/slurm/up"], check=True)
    os.environ["SBATCH_ACCOUNT"] = "tests"
    yield
    subprocess.run([root / "tests/slurm/down"], check=True)


@pytest.fixture(scope="session")
def reference(root: Path, tmp_path_factory: pytest.TempPathFactory) -> SlurmProject:
    """The study of these tests, run on this machine with nothing in its way."""
    project = make_slurm_project(root, tmp_path_factory.mktemp("reference") / "project", STUDY)
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
def faults(root: Path) -> Iterator[Faults]:
    """What was injected; written to results/reliability/ at the end, whence the table of docs/reliability.md comes."""
    found = Faults()
    began = time.time()
    yield found
    out = root / "results" / "reliability"
    out.mkdir(parents=True, exist_ok=True)
    took = round(time.time() - began)
    (out / "faults.json").write_text(json.dumps({"seconds": took, "faults": found.rows()}, indent=2) + "\n")
    (out / "faults.md").write_text(found.table())


@pytest.fixture
def trial(faults: Faults, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """Where a test says what it injected; counted only if the test passes."""
    found = Trial()
    failed = request.session.testsfailed
    yield found
    if request.session.testsfailed == failed:
        faults.add(found)
