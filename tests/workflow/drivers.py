"""A driving Snakemake that is asked to end (SIGTERM) while a rule runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflow.project import Project

RULES = ("base", "evaluate_base", "train", "evaluate", "table")
"""One of each stage, in their order."""


def end_within(project: Project, rule: str, delay: float, seconds: float = 300) -> str:
    """Start the whole study, and end the driver (not its jobs) some seconds after a rule has begun.

    Returns what it has said; empty if the rule had nothing to do. Fails if it hangs.
    """
    output: Path = project.directory / "driver.log"
    logs = project.directory / ".snakemake" / "log"  # Snakemake's own lines
    earlier = set(logs.glob("*.log"))

    def own_lines() -> str:
        return "".join(log.read_text() for log in set(logs.glob("*.log")) - earlier)

    with output.open("w") as stream:
        driver = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "--cores", "2", "all"],
            cwd=project.directory,
            env=os.environ | {"PATH": os.defpath},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    end = time.monotonic() + seconds
    begun = re.compile(rf"^(local)?rule {rule}:$", re.MULTILINE)
    while driver.poll() is None and not begun.search(own_lines()):
        time.sleep(0.02)
        if time.monotonic() > end:
            driver.kill()
            pytest.fail(f"{rule} has not begun\n{output.read_text()[-3000:]}")
    time.sleep(delay)
    if driver.poll() is None:
        driver.send_signal(signal.SIGTERM)
    try:
        driver.wait(max(60.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        driver.kill()
        pytest.fail(f"the driver hangs in {rule}\n{output.read_text()[-3000:]}")
    assert "Traceback" not in output.read_text(), output.read_text()[-3000:]
    text = own_lines()
    return text if begun.search(text) else ""


def end_in_every_stage(project: Project, delays: dict[str, float]) -> list[str]:
    """End the driver in a rule of each stage, and let the same command go on; returns the rules in which it was ended.

    No cell may be trained twice, and at the end everything is there.
    """
    ended: list[str] = []
    kept: dict[Path, int] = {}
    for rule in RULES:
        text = end_within(project, rule, delays[rule])
        if "Will exit after finishing currently running jobs" in text:
            ended.append(rule)
        found = {path: path.stat().st_ino for path in project.directory.glob("results/cells/*/kept/status.json")}
        assert {path: found.get(path) for path in kept} == kept, f"trained again after {rule}"
        kept = found
    project.run("--profile", "profiles/local", "--cores", "2", "all")
    assert {path: path.stat().st_ino for path in kept} == kept
    assert project.plan("--profile", "profiles/local") == {}
    return ended
