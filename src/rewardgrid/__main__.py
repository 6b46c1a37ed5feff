"""``python -m rewardgrid``: look at a study without running it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.cells import print_paths, print_table, select
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_text
from rewardgrid.study.schema import schema_text
from rewardgrid.study.study import Study, load_study

CONFIG = "config/config.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m rewardgrid", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument(
        "--configfile",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help=f"overlays on {CONFIG}, as for snakemake",
    )

    cells = commands.add_parser(
        "cells",
        parents=[configured],
        help="list cells, their states and paths",
        description="List cells: on a terminal as a table; into a pipe, or with --paths, as paths to give to "
        "snakemake, as in: snakemake --cores 2 $(python -m rewardgrid cells lora_rank rank=1 seed=42,7)",
    )
    cells.add_argument(
        "words",
        nargs="*",
        metavar="EXPERIMENT | KEY=VALUE",
        help="only cells of this experiment; only cells with this value, or one of these: rank=1,2",
    )
    cells.add_argument("--paths", action="store_true", help="print paths on a terminal too")
    cells.set_defaults(run=_cells)
    check = commands.add_parser("check", parents=[configured], help="check the configuration")
    check.set_defaults(run=_check)
    schema = commands.add_parser("schema", help="write the JSON schema of the configuration, for editors")
    schema.add_argument("--out", type=Path, default=Path("config/schema.json"), help="default: %(default)s")
    schema.set_defaults(run=_schema)

    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _study(arguments: argparse.Namespace) -> Study:
    return load_study([CONFIG, *arguments.configfile])


def _cells(arguments: argparse.Namespace) -> None:
    study = _study(arguments)
    show = print_table if sys.stdout.isatty() and not arguments.paths else print_paths
    show(study.layout, select(study, arguments.words))


def _check(arguments: argparse.Namespace) -> None:
    from rewardgrid.report.tables import check_columns

    study = _study(arguments)
    check_columns(study)
    files = ", ".join([CONFIG, *arguments.configfile])
    print(f"{files}: {len(study.active)} experiments, {len(study.cells)} cells, no problems")


def _schema(arguments: argparse.Namespace) -> None:
    write_text(arguments.out, schema_text())


if __name__ == "__main__":
    sys.exit(main())
