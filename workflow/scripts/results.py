"""Render RESULTS.md from tables, findings, figures, samples and the comparison with the published study."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.published.section import section
from rewardgrid.report.evidence import load_samples, read_study
from rewardgrid.report.render import Results, render
from rewardgrid.report.tables import load_bases, read_experiment, rows_of
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, write_text

REPOSITORY = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the checked configuration (study.json)")
    parser.add_argument("--findings", type=Path, required=True, help="what the findings script wrote")
    parser.add_argument("--published", type=Path, help="what the published script wrote (default: no such section)")
    parser.add_argument("--page", type=Path, help="the page of runs, beside --out (default: no links into it)")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args(argv)
    try:
        study = read_study(arguments.study)
        templates = REPOSITORY / "workflow" / "templates"
        published = arguments.published
        tables = {name: rows_of(read_experiment(study.layout.table(name))) for name in study.active}
        finished = {str(row["cell"]) for table in tables.values() for row in table if row["state"] == "done"}
        results = Results(
            study=study,
            tables=tables,
            findings=read_json(arguments.findings),
            samples=load_samples(study, sorted(finished)),
            bases=load_bases(study),
            commit=commit(REPOSITORY),
            sections=[section(read_json(published), templates)] if published else [],
            page=arguments.page.name if arguments.page else None,
        )
        write_text(arguments.out, render(results, templates))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


def commit(repository: Path) -> str:
    """The commit of the code, and whether it has been edited since; "unknown" outside a git checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        edited = git("status", "--porcelain", "--untracked-files=no", "--", "src", "workflow", "rules")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"
    return f"commit {head[:12]}, with uncommitted changes" if edited else f"commit {head[:12]}"


if __name__ == "__main__":
    run_program(main)
