"""A tiny teacher tells stories through the workflow, once."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rewardgrid.storyteller.requests import request
from rewardgrid.storyteller.shards import read_told
from rewardgrid.study.contracts import TOLD, write_table
from rewardgrid.study.files import read_json, sha256
from rewardgrid.study.teachers import GgufTeacher, teacher_hash
from tests.teachers import write_gguf
from tests.workflow.project import MICRO, Project, make_project


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A checkout with a teacher of random weights, and four stories that were told before."""
    project = make_project(root, tmp_path_factory.mktemp("telling") / "a project")
    write_gguf(project.directory / "tiny/teacher.gguf", "qwen2")
    before = {"number": range(4), "seed": 2, "prompt": "Write.", "story": "He ran home.", "ended": True}
    write_table(project.directory / "told before/2-00000.parquet", pd.DataFrame(before), TOLD)
    return project


def configured(project: Project, **changes: Any) -> dict[str, Any]:
    """Ask for twelve stories, in shards of four; returns the teacher."""
    path = "tiny/teacher.gguf"
    teacher = {"kind": "gguf", "model": path, "licence": "MIT", "sha256": sha256(project.directory / path)} | changes
    storyteller = {"teacher": teacher, "told": "told before", "tokens": "2k", "shard": 4, "seed": 2}
    project.configure(deepcopy(MICRO) | {"storyteller": storyteller})
    return teacher


def test_what_is_lacking_is_told_once_whatever_becomes_of_the_files(project: Project) -> None:
    teacher = configured(project)
    assert project.plan("stories") == {"teacher": 1, "tell": 2, "stories": 1}
    project.run("--cores", "1", "stories")
    name = teacher_hash(GgufTeacher.model_validate(teacher))
    results = project.directory / "results/storyteller"
    assert read_json(results / "teacher" / name / "teacher.json")["recipe"] == teacher
    shards = [results / f"told/{name}-4/2-{place:05d}.parquet" for place in (1, 2)]  # the first one was told before
    told = read_told(shards)
    assert told["number"].tolist() == list(range(4, 12))
    for row in told.itertuples():
        assert row.prompt == request(2, row.number).prompt
        assert row.story.startswith(request(2, row.number).start)
        assert len(row.story) > 300
    assert project.plan("stories") == {}

    # Shards are lost, and so is the teacher: they come back without it.
    content = [shard.read_bytes() for shard in shards]
    for path in (*shards, project.directory / "tiny/teacher.gguf", results / "teacher" / name / "teacher.json"):
        path.rename(path.with_suffix(".gone"))
    assert project.plan("stories") == {"tell": 2, "stories": 1}
    project.run("--cores", "1", "stories", "--forcerun", "tell")
    assert [shard.read_bytes() for shard in shards] == content
    (project.directory / "tiny/teacher.gone").rename(project.directory / "tiny/teacher.gguf")


def test_a_teacher_with_another_hash_stops_the_telling_with_one_message(project: Project) -> None:
    teacher = configured(project, sha256="0" * 64)
    done = project.run("--cores", "1", "stories", check=False)
    assert done.returncode == 1
    assert done.stdout.count(": tiny/teacher.gguf: its SHA-256 is ") == 1
    assert "Traceback" not in done.stdout
    identity = teacher_hash(GgufTeacher(**teacher))
    assert not list(project.directory.glob(f"logs/storyteller/tell-{identity}*"))
    assert not list(project.directory.glob(f"results/storyteller/*/{identity}*/*.*"))


def test_torn_stories_are_told_before_anything_runs(project: Project) -> None:
    configured(project)
    torn = project.directory / "told before/3-00000.parquet"
    torn.write_bytes((project.directory / "told before/2-00000.parquet").read_bytes()[:-50])
    done = project.run("--cores", "1", "stories", check=False)
    torn.unlink()
    assert done.returncode == 1
    assert done.stdout.count("told before/3-00000.parquet: cannot read") == 1
    assert "Traceback (most recent call last)" not in done.stdout
    assert "jobs done" not in done.stdout
