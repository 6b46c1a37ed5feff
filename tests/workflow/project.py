"""A project of its own for tests: the workflow's files, a configuration of seconds, a git checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

PARTS = ("Snakefile", "rules", "workflow", "profiles", "envs", "src", "config/published")

TINY_BASE = {
    "kind": "embedded",
    "layers": 1,
    "hidden": 32,
    "heads": 2,
    "kv_heads": 1,
    "mlp_width": 64,
    "context": 64,
    "steps": 3,
    "batch": 4,
    "length": 48,
    "train_prompts": 64,
    "eval_prompts": 64,
}

MICRO: dict[str, Any] = {
    "title": "Micro",
    "bases": {"tiny": TINY_BASE},
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
        text = self.run("--dry-run", "--cores", "2", *words).stdout
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
    """A git checkout of the workflow's files with the micro configuration."""
    for part in PARTS:
        source, target = root / part, directory / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    project = Project(directory)
    project.configure(MICRO)
    (directory / ".gitignore").write_text("/results/\n/logs/\n/.snakemake/\n__pycache__/\n")
    project.git("init", "--quiet")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "A checkout for tests")
    return project
