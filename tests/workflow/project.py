"""A project of its own for tests: the workflow's files, a configuration of seconds, a git checkout."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewardgrid.study.study import Study, load_study
from tests.tiny import WORDS, make_model

PARTS = ("Snakefile", "rules", "workflow", "profiles", "envs", "src", "config/published")

STORIES = 320  # that the tiny base's prompts are cut from

MICRO: dict[str, Any] = {
    "title": "Micro",
    "published": "config/published",
    "bases": {"tiny": {"kind": "local", "model": "tiny/model", "stories": "tiny/stories.txt"}},
    "defaults": {
        "base": "tiny",
        "lr": 0.001,
        "batch_size": 4,
        "num_generations": 2,
        "max_steps": 2,
        "max_new_tokens": 12,
    },
    "evaluation": {"samples": 20, "published_samples": 4, "published_prompts": 2, "base_draws": 1},
    "experiments": {
        "sweep": {
            "title": "Sweep",
            "grids": [{"beta": 0.01, "engine": "trl"}, {"beta": 0.1}],
            "columns": ["beta", "final_reward", "verdict"],
            "by": ["beta"],
            "findings": ["best_tradeoff"],
            "figures": ["learning_curves"],
        },
        "shared": {
            "title": "A cell of the sweep again",
            "grids": [{"beta": 0.01, "engine": "trl"}],
            "columns": ["beta", "final_reward"],
            "by": ["beta"],
        },
    },
}


@dataclass
class Project:
    """A checkout in which snakemake is run as a user runs it."""

    directory: Path

    def configure(self, content: dict[str, Any]) -> None:
        """Write config/config.yaml."""
        path = self.directory / "config" / "config.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        self.__dict__.pop("study", None)

    @cached_property
    def study(self) -> Study:
        """The configuration as the workflow reads it, with paths that lead from the checkout."""
        with contextlib.chdir(self.directory):
            study = load_study(["config/config.yaml"])
            assert study.cells  # whose names are made of the bases' files
        return study

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run snakemake; its standard output and error come together in ``stdout``."""
        # Not inside another snakemake's or a developer's environment, and not with the virtual environment's
        # programs on the path: `make quick` has neither.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
        environment["PATH"] = os.defpath
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *words],
            cwd=self.directory,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if check and done.returncode:
            pytest.fail(f"snakemake {' '.join(words)}: status {done.returncode}\n{done.stdout}")
        return done

    def plan(self, *words: str) -> Counter[str]:
        """The jobs that a run would do now: how many of each rule."""
        text = self.run("--dry-run", "--verbose", "--cores", "2", *words).stdout
        jobs = re.findall(r"^(?:local)?rule (\w+):$", text, re.MULTILINE)
        return Counter(job for job in jobs if job != "all")

    def git(self, *words: str) -> None:
        """Run git in the checkout."""
        subprocess.run(
            ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *words],
            cwd=self.directory,
            check=True,
            capture_output=True,
        )


def make_project(root: Path, directory: Path) -> Project:
    """A git checkout of the workflow's files with the micro configuration and its base of random weights."""
    for part in PARTS:
        source, target = root / part, directory / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    make_model(directory / "tiny" / "model")
    draws = random.Random(0)
    stories = [" ".join(draws.choices(WORDS, k=12)) for _ in range(STORIES)]
    (directory / "tiny" / "stories.txt").write_text("\n".join(stories) + "\n", encoding="utf-8")
    project = Project(directory)
    project.configure(MICRO)
    (directory / ".gitignore").write_text("/results/\n/logs/\n/.snakemake/\n__pycache__/\n")
    project.git("init", "--quiet")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "A checkout for tests")
    return project
