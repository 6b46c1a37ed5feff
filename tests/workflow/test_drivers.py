"""A driving Snakemake that is ended in any stage leaves, and the same command goes on."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from tests.workflow.drivers import RULES, end_in_every_stage
from tests.workflow.project import MICRO, make_project


def test_a_driver_that_is_ended_in_every_stage_leaves_and_the_same_command_goes_on(root: Path, tmp_path: Path) -> None:
    project = make_project(root, tmp_path / "project")
    config = deepcopy(MICRO)
    del config["experiments"]["shared"]
    config["experiments"]["sweep"]["grids"] = [{"beta": [0.1, 0.2]}]
    project.configure(config)
    assert len(end_in_every_stage(project, dict.fromkeys(RULES, 0.3))) >= 3
