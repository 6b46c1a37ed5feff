"""Set the published study beside ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.published.comparison import compare, load_published
from rewardgrid.report.evidence import load_evidence, read_study
from rewardgrid.study.cell import Cell
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
        if study.published is None:
            raise UserError(f"{arguments.study}: published: read null; name the directory of the published figures")
        evidence = load_evidence(study, arguments.tables, study.active)
        base = study.defaults.get("base", Cell.model_fields["base"].default)
        comparison = compare(load_published(study.published), evidence, base)
        write_json(arguments.out, comparison)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for claim in (*comparison["relations"], *comparison["claims"]):
        print(f"{claim['id']}: {claim['answer']}")
    return 0


if __name__ == "__main__":
    run_program(main)
