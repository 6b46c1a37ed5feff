"""Write an experiment's table: one tidy row per cell, of state "missing" where it has not finished."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.report.evidence import read_study
from rewardgrid.report.tables import experiment_table, latex_table, rows_of, write_experiment
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the checked configuration (study.json)")
    parser.add_argument("--experiment", required=True, help="which experiment")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--csv", type=Path, help="the same as CSV")
    parser.add_argument("--latex", type=Path, help="the columns that RESULTS.md shows, as a LaTeX table (booktabs)")
    arguments = parser.parse_args(argv)
    try:
        study = read_study(arguments.study)
        table = experiment_table(study, arguments.experiment)
        if arguments.csv:
            write_text(arguments.csv, table.to_csv(index=False, lineterminator="\n"))
        if arguments.latex:
            write_text(arguments.latex, latex_table(rows_of(table), study.active[arguments.experiment]))
        # Last: other rules wait for it.
        write_experiment(arguments.out, table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    states = table["state"].value_counts().to_dict()
    print(f"{arguments.experiment}: " + ", ".join(f"{number} {state}" for state, number in states.items()))
    return 0


if __name__ == "__main__":
    run_program(main)
