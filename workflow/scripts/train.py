"""Train cells and write what they left: weights, history, rollouts, status.

    python workflow/scripts/train.py --study results/study.json --cells NAME     (what the workflow runs)
    python workflow/scripts/train.py --cells NAME NAME ...                       (by hand, from the configuration)

Cells that are finished are passed over; interrupted ones continue from their newest checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.cli.run import train_cells
from rewardgrid.study.errors import UserError, did_you_mean
from rewardgrid.study.layers import CONFIG
from rewardgrid.study.problems import validated
from rewardgrid.study.study import Study, load_study
from rewardgrid.study.text import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", required=True, metavar="NAME", help="cells to train")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--study", type=Path, help="the checked configuration, as study.py writes it")
    where.add_argument("--configfile", nargs="+", default=[], help=f"or overlays on {CONFIG}, as for snakemake")
    arguments = parser.parse_args(argv)
    try:
        study = (
            validated(Study, arguments.study.read_text(encoding="utf-8"), str(arguments.study))
            if arguments.study
            else load_study([CONFIG, *arguments.configfile])
        )
        unknown = [name for name in arguments.cells if name not in study.cells]
        if unknown:
            hint = did_you_mean(unknown[0], study.cells)
            raise UserError(f"--cells: read {unknown[0]!r}; the configuration has no such cell;{hint}")
        train_cells(study, [study.cells[name] for name in arguments.cells])
    except OSError as error:
        print(printable(f"error: {error.filename}: {error.strerror}"), file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    run_program(main)
