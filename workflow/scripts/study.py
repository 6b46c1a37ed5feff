"""Check a configuration and write it, merged, for the jobs of the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.report.tables import check_columns
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, write_text
from rewardgrid.study.study import load_study


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, help="the merged configuration, JSON (default: merge the files)")
    parser.add_argument("--files", nargs="*", type=Path, help="YAML files, later ones over earlier (a module has none)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(argv)
    try:
        config = read_json(arguments.config) if arguments.config else None
        study = load_study(arguments.files, config)
        check_columns(study)
        # Not sorted: the order of experiments and grids is the order of RESULTS.md.
        write_text(arguments.out, study.model_dump_json(indent=2) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main)
