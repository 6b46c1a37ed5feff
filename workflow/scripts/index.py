"""List every cell of a study as one table: its name, its experiments and its spec; and where stop_when ended it."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import atomic_write, read_json
from rewardgrid.study.layout import stopped_at
from rewardgrid.study.study import Study


def main(argv: Sequence[str] | None = None) -> int:
    """Write cells.tsv: a row for each unique cell; a field is empty where a setting is not used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="study.json")
    parser.add_argument("--out", type=Path, required=True, help="cells.tsv to write")
    arguments = parser.parse_args(argv)
    try:
        study = Study.model_validate(read_json(arguments.study))
        with (
            atomic_write(arguments.out) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as stream,
        ):
            rows = csv.writer(stream, delimiter="\t", lineterminator="\n")
            # A column of results, only where a setting asks for it: the table is otherwise of the configuration alone.
            stops = any(cell.stop_when for cell in study.cells.values())
            rows.writerow(["cell", "experiments", *Cell.model_fields, *(["stopped_at"] if stops else [])])
            homes: dict[str, list[str]] = {}
            for home, cells in study.grid.items():
                for cell in cells:
                    homes.setdefault(cell.name, []).append(home)
            for name, cell in study.cells.items():
                spec = cell.model_dump(mode="json") | {"stop_when": cell.stop_when}
                end = [stopped_at(study.layout, cell)] if stops else []
                rows.writerow([name, ",".join(homes[name]), *spec.values(), *end])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main)
