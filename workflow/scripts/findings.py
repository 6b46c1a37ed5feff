"""Compute every finding."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.published.claims import Claims, load_claims, windows
from rewardgrid.published.relations import adjusted_p
from rewardgrid.report.evidence import load_evidence, read_study
from rewardgrid.report.finding import Scope
from rewardgrid.report.findings import compute
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the checked configuration (study.json)")
    parser.add_argument("--tables", type=Path, required=True, help="directory of the experiments' tables")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(argv)
    try:
        study = read_study(arguments.study)
        evidence = load_evidence(study, arguments.tables, study.active)
        stated = load_claims(study.published) if study.published else Claims(claims=(), relations=())
        adjusted = adjusted_p(stated.relations, evidence)
        scopes = [
            Scope(evidence, name, tuple(experiment.by), windows(stated.claims, name), adjusted=adjusted.get(name, {}))
            for name, experiment in study.active.items()
        ]
        findings = [finding for scope in scopes for finding in compute(scope, study.active[scope.experiment].findings)]
        write_json(arguments.out, findings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(f"{finding['experiment']}: {finding['name']}: {finding['conclusion']}")
    return 0


if __name__ == "__main__":
    run_program(main)
