"""Train cells and write what they left: weights, history, rollouts, status.

One cell by its spec, as the workflow does, or any number by name, without Snakemake:

    python workflow/scripts/train.py --spec SPEC.json --base results/base/BASE --out results/cells/NAME
    python workflow/scripts/train.py --cells NAME NAME ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.base.load import load_base
from rewardgrid.cli.run import train_cells
from rewardgrid.study.cell import Cell, read_cell
from rewardgrid.study.errors import UserError, did_you_mean
from rewardgrid.study.problems import validated
from rewardgrid.study.study import Recording, Study, load_study
from rewardgrid.train.engines import engine


def read_spec(text: str) -> Cell:
    """A spec from JSON text, or from the file of that name."""
    if text.lstrip().startswith("{"):
        return read_cell(text, "--spec")
    try:
        return read_cell(Path(text).read_text(encoding="utf-8"), text)
    except OSError as error:
        raise UserError(f"--spec: {text}: {error.strerror}; give JSON text or a spec.json") from None


def find(study: Study, name: str) -> Cell:
    """A cell of the configuration by its name."""
    if name not in study.cells:
        raise UserError(f"--cells: {name}: the configuration has no such cell;{did_you_mean(name, study.cells)}")
    return study.cells[name]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--spec", help="the cell's spec: JSON text or a spec.json")
    what.add_argument("--cells", nargs="+", metavar="NAME", help="cells of the configuration, by name")
    parser.add_argument("--base", type=Path, help="directory of the base (with --spec)")
    parser.add_argument("--out", type=Path, help="directory of the cell (with --spec)")
    parser.add_argument(
        "--configfile", nargs="+", default=["config/config.yaml"], help="the configuration (with --cells)"
    )
    parser.add_argument("--recording", default="{}", help="what to record how often, as JSON")
    arguments = parser.parse_args(argv)
    if arguments.spec and not (arguments.base and arguments.out):
        parser.error("--spec needs --base and --out")
    try:
        if arguments.cells:
            train_cells(study := load_study(arguments.configfile), [find(study, name) for name in arguments.cells])
            return 0
        cell = read_spec(arguments.spec)
        recording = validated(Recording, arguments.recording, "--recording")
        engine(cell.engine)([cell], load_base(arguments.base), [arguments.out], recording)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
