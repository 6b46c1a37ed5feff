"""Write the page of a study's cells, finished or not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.page.make import page
from rewardgrid.report.evidence import read_study
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the checked configuration (study.json)")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")
    arguments = parser.parse_args(argv)
    try:
        study = read_study(arguments.study)
        write_text(arguments.out, page(study, list(study.cells)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    run_program(main)
