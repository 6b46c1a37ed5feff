"""What is asked of the workflow: targets that it has, told before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rewardgrid.study.errors import UserError, did_you_mean
from rewardgrid.study.study import TARGETS, Study


def asked_for(command: Sequence[str]) -> list[str]:
    """The targets of a snakemake command; none if this process was started by something else.

    Snakemake tells them to a Snakefile only after it has read it.
    """
    if Path(command[0]).name != "snakemake" and Path(command[0]).parts[-2:] != ("snakemake", "__main__.py"):
        return []
    from snakemake.cli import get_argument_parser

    return list(get_argument_parser().parse_args(command[1:]).targets)


def check_request(study: Study, targets: Iterable[str], write: bool) -> None:
    """Make sure that the workflow has what is asked for, and, if it is to be made, a place for it.

    Raises:
        UserError: a name is none of a rule or an experiment, a path none of a cell or base that the study has, or
            the results directory cannot be written.
    """
    if write:
        check_writable(study.layout.root)
    cells, bases = study.layout.root / "cells", study.layout.root / "base"
    for target in targets:
        path = Path(os.path.normpath(target))
        if target in study.cells:
            raise UserError(f"{target}: is a cell; write its path: {study.layout.metrics(target)}")
        if path.is_relative_to(cells) and path != cells:
            _check(target, path.relative_to(cells).parts[0], study.cells, "cell", "`python -m rewardgrid cells`")
        elif path.is_relative_to(bases) and path != bases:
            _check(target, path.relative_to(bases).parts[0], study.base_recipes, "base", "`snakemake -n bases`")
        elif len(path.parts) == 1 and not path.suffix:
            names = [*TARGETS, *study.active]
            if target not in names:
                raise UserError(
                    f"{target}: no such target;{did_you_mean(target, names)} the experiments are "
                    f"{', '.join(study.active)}"
                )


def ready(study: Study, targets: Iterable[str]) -> list[str]:
    """Paths that a run for these targets leaves, for the person who waits for it; some may not be there."""
    root = study.layout.root
    report = [str(root / name) for name in ("RESULTS.md", "report.html")]
    found: list[str] = []
    for target in list(targets) or ["all"]:
        if target in ("all", "results", "results_partial"):
            found += report
        elif target in study.active:
            found += [str(study.layout.table(target)), str(root / "figures" / target)]
        elif "/" in target:
            found.append(target)
    return list(dict.fromkeys(found))


def check_made(targets: Iterable[str], rules: Mapping[str, Callable[[str], bool]]) -> None:
    """Make sure that whatever is asked for is there, or that a rule makes it.

    Args:
        rules: whether a rule makes a file, by the rule's name.

    Raises:
        UserError: a path is that of no file of the workflow.
    """
    for target in targets:
        path = os.path.normpath(target) if target else target  # as Snakemake reads it
        if target in rules or any(makes(path) for makes in rules.values()):
            continue
        fix = (
            "a file of settings stands after --configfile, and targets before it"
            if Path(target).suffix in (".yaml", ".yml")
            else "name a target such as all, an experiment, or a path as `snakemake -n` shows it, relative to this "
            "directory; that of a cell ends in /evaluation/metrics.json"
        )
        raise UserError(f"{target!r}: nothing makes such a file; {fix}")


def check_writable(directory: Path) -> None:
    """Make sure that files can be made at a place that need not exist yet.

    Raises:
        UserError: they cannot.
    """
    there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"results: read {str(directory)!r}, but {there} cannot be written; name another directory")


def _check(target: str, name: str, known: Collection[str], what: str, listing: str) -> None:
    if name not in known:
        raise UserError(
            f"{target}: the configuration has no such {what};{did_you_mean(name, known)} {listing} lists those that it "
            "has (give it the same --configfile)"
        )
