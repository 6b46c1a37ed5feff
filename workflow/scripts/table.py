"""Write an experiment's table: one tidy row per cell, of state "missing" where it has not finished."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.report.evidence import read_study
from rewardgrid.report.tables import experiment_table, write_experiment
from rewardgrid.study.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the checked configuration (study.json)")
    parser.add_argument("--experiment", required=True, help="which experiment")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    arguments = parser.parse_args(argv)
    try:
        table = experiment_table(read_study(arguments.study), arguments.experiment)
        write_experiment(arguments.out, table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    states = table["state"].value_counts().to_dict()
    print(f"{arguments.experiment}: " + ", ".join(f"{number} {state}" for state, number in states.items()))
    return 0


if __name__ == "__main__":
    run_program(main)
