"""``python -m rewardgrid``: look at a study, and run its cells without Snakemake."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rewardgrid.cli.cells import print_paths, print_table, select
from rewardgrid.cli.program import run_program
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import ConfigError, UserError, all_of
from rewardgrid.study.files import write_text
from rewardgrid.study.layers import CONFIG
from rewardgrid.study.schema import schema_text
from rewardgrid.study.study import Study, load_study, sound_part
from rewardgrid.study.text import count, printable

ARCHIVE = Path("study")


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

    new = commands.add_parser(
        "new",
        help="write a small study of one's own, to begin from",
        description="Write studies/NAME: a small study that stands alone, with a reward and prompts of its own. "
        "docs/first_study.md goes from there to a report.",
    )
    new.add_argument("name", metavar="NAME", help="what it is called: letters, digits, _ and -")
    new.set_defaults(run=_new)
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
    status = commands.add_parser(
        "status",
        parents=[configured],
        help="what every cell is doing now",
        description="What every cell is doing now: waiting, running (where, how far, how fast), stalled, interrupted, "
        "trained, done, diverged, or failed with the line of its log that says why.",
    )
    status.add_argument("words", nargs="*", metavar="EXPERIMENT | KEY=VALUE", help="as for `cells`")
    status.add_argument("--watch", action="store_true", help="refresh in place until all cells are done (Ctrl-C ends)")
    status.set_defaults(run=_status)
    show = commands.add_parser(
        "show",
        parents=[configured],
        help="one cell: spec, state, curves, verdict with evidence, onset, samples",
        description="One cell, as far as it is: spec, state, curves, onset, verdict with its evidence, and a few "
        "samples with their rewards.",
    )
    show.add_argument("cell", metavar="CELL", help="its path, its name, or the beginning of its name or hash")
    show.set_defaults(run=_show)
    compare = commands.add_parser(
        "compare",
        parents=[configured],
        help="two cells side by side: what differs, curves, samples on the same prompts",
        description="Two cells side by side: what differs in their specs, their curves on one scale, and what both "
        "wrote for the same prompts.",
    )
    compare.add_argument("cells", nargs=2, metavar="CELL", help="as for `show`")
    compare.set_defaults(run=_compare)
    for command in (show, compare):
        command.add_argument("--samples", type=int, default=3, metavar="N", help="how many (default: %(default)s)")
    train = commands.add_parser("train", parents=[configured], help="train cells without Snakemake, in packs on a GPU")
    train.set_defaults(run=_train)
    evaluate = commands.add_parser("evaluate", parents=[configured], help="evaluate trained cells without Snakemake")
    evaluate.set_defaults(run=_evaluate)
    for command in (train, evaluate):
        command.add_argument("--all", action="store_true", help="every cell of the configuration")
        command.add_argument("words", nargs="*", metavar="EXPERIMENT | KEY=VALUE", help="as for `cells`")
    train.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    export = commands.add_parser(
        "export",
        help="write a trained cell as an ordinary Hugging Face model or PEFT adapter",
        description="Write a trained cell as an ordinary Hugging Face model, its adapters merged in, with its "
        "tokenizer and a model card.",
    )
    export.add_argument("cell", type=Path, help="directory of the cell: results/cells/NAME")
    export.add_argument(
        "--mode", choices=("both", "retain_only", "forget_only"), default="both", help="adapters that stay"
    )
    export.add_argument("--adapter", action="store_true", help="the adapter by itself, for PEFT, its base beside it")
    export.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of a hub (HF_ENDPOINT)")
    export.add_argument("--force", action="store_true", help="replace an earlier export, here and on the hub")
    export.add_argument("--base", type=Path, help="directory of its base (default: found beside the cell)")
    export.add_argument("--out", type=Path, required=True, help="directory to write")
    export.set_defaults(run=_export)
    archive = commands.add_parser(
        "archive",
        parents=[configured],
        help="pack finished cells into a few files, or put them back",
        description="Pack the finished cells of the configuration, without weights, into new files of an archive; or, "
        "with --restore, put the cells of archives back where snakemake finds them finished.",
    )
    archive.add_argument("words", nargs="*", metavar="EXPERIMENT | KEY=VALUE", help="as for `cells` (packing)")
    archive.add_argument("--to", type=Path, help=f"archive to add to (default: {ARCHIVE})")
    archive.add_argument("--restore", action="store_true", help="put the archive's cells back")
    archive.add_argument("--from", dest="sources", nargs="+", type=Path, metavar="DIR", help=f"default: {ARCHIVE}")
    archive.set_defaults(run=_archive)
    page = commands.add_parser(
        "page",
        parents=[configured],
        help="make the page of some cells, or of all that have begun",
        description="Make one HTML file of cells, finished or not, that works offline: figures, curves and texts.",
    )
    page.add_argument("words", nargs="*", metavar="EXPERIMENT | KEY=VALUE | CELL", help="default: all that have begun")
    page.add_argument("--out", type=Path, help="file to write (default: report.html in the results directory)")
    page.set_defaults(run=_page)
    track = commands.add_parser(
        "track",
        parents=[configured],
        help="write cells as runs of an experiment tracker",
        description="Write histories, measurements and samples of cells, finished or running, as runs of a tracker on "
        "this machine, with their spec as its configuration. Each tracker is an extra: pip install '.[track-wandb]'.",
    )
    track.add_argument("words", nargs="*", metavar="EXPERIMENT | KEY=VALUE", help="as for `cells`")
    track.add_argument("--to", required=True, choices=("trackio", "wandb", "tensorboard"), help="the tracker")
    track.add_argument("--project", default="rewardgrid", help="its name there (default: %(default)s)")
    track.add_argument("--out", type=Path, help="directory that it is written to (default: track/ in the results)")
    track.set_defaults(run=_track)
    check = commands.add_parser("check", parents=[configured], help="check the configuration")
    check.set_defaults(run=_check)
    schema = commands.add_parser("schema", help="write the JSON schema of the configuration, for editors")
    schema.add_argument("--out", type=Path, default=Path("config/schema.json"), help="default: %(default)s")
    schema.set_defaults(run=_schema)

    reference = commands.add_parser("reference", help="write the reference of keys, rewards, findings and columns")
    reference.add_argument("--out", type=Path, default=Path("docs/reference.md"), help="default: %(default)s")
    reference.set_defaults(run=_reference)

    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("interrupted; nothing finished is lost", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads the pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {printable(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _study(arguments: argparse.Namespace) -> Study:
    return load_study([CONFIG, *arguments.configfile])


def _new(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.new import new_study

    files = new_study(arguments.name)
    print("\n".join(map(str, files)))
    print(f"It runs as it is: .venv/bin/snakemake --cores 2 --configfile {files[0]}", file=sys.stderr)


def _cells(arguments: argparse.Namespace) -> None:
    study = _study(arguments)
    show = print_table if sys.stdout.isatty() and not arguments.paths else print_paths
    show(study.layout, select(study, arguments.words))


def _status(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.status import look_at_all, show

    study = _study(arguments)
    cells = select(study, arguments.words)
    with contextlib.suppress(KeyboardInterrupt):
        show(lambda: look_at_all(study.layout, cells), arguments.watch)


def _show(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.show import show

    show(_study(arguments), arguments.cell, max(arguments.samples, 0))


def _compare(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.show import compare

    compare(_study(arguments), arguments.cells, max(arguments.samples, 0))


def _chosen(study: Study, arguments: argparse.Namespace) -> list[Cell]:
    if bool(arguments.words) == arguments.all:
        raise UserError("name an experiment or key=value, or give --all for every cell")
    return select(study, arguments.words)


def _train(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.run import train_cells

    study = _study(arguments)
    train_cells(study, _chosen(study, arguments), arguments.device)


def _evaluate(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.run import evaluate_cells

    study = _study(arguments)
    evaluate_cells(study, _chosen(study, arguments))


def _export(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.export import export_model

    how = (arguments.adapter, arguments.force, arguments.push)
    export_model(arguments.cell, arguments.base, arguments.mode, arguments.out, *how)


def _archive(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.archive import pack, restore

    if arguments.restore and (arguments.to or arguments.words):
        raise UserError("archive: --restore puts back all that the archives have; leave out --to and words")
    if arguments.sources and not arguments.restore:
        raise UserError("archive: --from goes with --restore; write --to DIR to pack")
    study = _study(arguments)
    if arguments.restore:
        restore(study.layout, arguments.sources or [ARCHIVE], study.cells.keys())
    else:
        pack(study, select(study, arguments.words), arguments.to or ARCHIVE)


def _page(arguments: argparse.Namespace) -> None:
    from rewardgrid.page.make import page
    from rewardgrid.study.layout import done

    study = _study(arguments)
    named = [word for word in arguments.words if word in study.cells]
    words = [word for word in arguments.words if word not in study.cells]
    names = named + [cell.name for cell in select(study, words)] if words else named
    if not arguments.words:
        names = [name for name, cell in study.cells.items() if done(study.layout, cell) != "waiting"]
    if not names:
        raise UserError(f"{study.layout.root}: no cell has begun; `make quick` runs the study in small")
    out = arguments.out or study.layout.root / "report.html"
    write_text(out, page(study, names))
    print(out)


def _track(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.track import track

    study = _study(arguments)
    cells = select(study, arguments.words)
    track(study.layout, cells, arguments.to, arguments.project, arguments.out or study.layout.root / "track")


def _check(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.check import check_study
    from rewardgrid.cli.run import check_bases
    from rewardgrid.cli.slurm import check_gres
    from rewardgrid.study.targets import check_writable

    def check(study: Study) -> None:
        all_of(
            lambda: check_study(study, os.environ),
            lambda: check_writable(study.layout.root),
            lambda: check_bases(study),
        )

    def report() -> NoReturn:
        raise wrong

    try:
        study = _study(arguments)
    except ConfigError as error:
        wrong = error
        sound = sound_part([CONFIG, *arguments.configfile], error)
        all_of(report, lambda: check_gres(os.environ) if sound is None else check(sound))
    check(study)
    files = ", ".join([CONFIG, *arguments.configfile])
    print(f"{files}: {count(len(study.active), 'experiment')}, {count(len(study.cells), 'cell')}, no problems")


def _schema(arguments: argparse.Namespace) -> None:
    write_text(arguments.out, schema_text())


def _reference(arguments: argparse.Namespace) -> None:
    from rewardgrid.cli.reference import reference

    write_text(arguments.out, reference())


if __name__ == "__main__":
    run_program(main)
