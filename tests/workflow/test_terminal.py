"""What a person sees of a run: a few lines on cells, what went wrong, and last the path of what is ready."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.workflow.project import Project, make_project


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(root, tmp_path_factory.mktemp("terminal"))


def test_a_dry_run_summarises_and_verbose_lists_every_job(project: Project) -> None:
    lines = project.run("-n", "--cores", "1").stdout.splitlines()
    assert lines[1] == "Micro: 2 cells (2 waiting)."
    assert re.match(r"Would run \d+ jobs: 2 train, 2 evaluate, 2 table, 2 figures, 1 \w+, ", lines[3])
    assert len(lines) == 5
    assert max(map(len, lines)) < 200
    text = project.run("-n", "--cores", "1", "--verbose").stdout
    assert text.count("\nrule train:") == 2
    assert "reason: Missing output files" in text


def test_a_failed_job_shows_its_message_and_its_log_and_a_whole_run_ends_with_its_path(project: Project) -> None:
    script = project.directory / "workflow/scripts/evaluate.py"
    program = script.read_text(encoding="utf-8")
    broken = 'raise UserError("a\\x1b[2Jb")\n            spec = arguments.cell'
    script.write_text(program.replace("spec = arguments.cell", broken), encoding="utf-8")
    assert script.read_text(encoding="utf-8") != program
    text = project.run("--cores", "2", check=False).stdout
    script.write_text(program, encoding="utf-8")
    names = sorted(project.study.cells)
    for name in names:
        assert f"error: evaluate {name}: a\ufffd[2Jb\n  log: logs/evaluate/{name}.log\n" in text
    assert "\x1b" not in text
    assert "CalledProcessError" not in text
    assert "Finished cells are kept: the same command goes on" in text
    assert "Ready:" not in text

    lines = project.run("--cores", "2").stdout.splitlines()
    assert "2 cells: 2 waiting" in lines
    done = [line for line in lines if re.match(r"\d/2  ", line)]
    assert [line[:5] for line in done] == ["1/2  ", "2/2  "]
    assert sorted(line.split()[1] for line in done) == names
    assert all("  measured reward 0." in line for line in done)
    ready = ["Ready: results/RESULTS.md", "Ready: results/report.html"]
    assert lines[-2:] == ready
    assert len([line for line in lines if "; " not in line]) < 12  # besides one a minute on what goes on
    assert project.run("--cores", "2").stdout.splitlines()[-3:] == [
        "Nothing to be done (all requested files are present and up to date).",
        *ready,
    ]
    assert list((project.directory / ".snakemake/log").glob("*.log"))  # where Snakemake's own lines are


def test_the_path_that_was_asked_for_is_the_one_that_is_ready(project: Project) -> None:
    study = project.study
    target = str(study.layout.metrics(next(iter(study.cells))))
    assert project.run("--cores", "1", target).stdout.endswith(f"Ready: {target}\n")
    assert project.run("--cores", "1", "sweep").stdout.splitlines()[-2:] == [
        "Ready: results/tables/sweep.parquet",
        "Ready: results/figures/sweep",
    ]
