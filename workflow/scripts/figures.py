"""Draw the figures of an experiment as SVG files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.published.data import load_tables
from rewardgrid.published.replica import references
from rewardgrid.report.evidence import load_evidence, load_unfinished, read_study
from rewardgrid.report.figures import draw
from rewardgrid.report.finding import Scope
from rewardgrid.study.errors import UserError, did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the checked configuration (study.json)")
    parser.add_argument("--experiment", required=True, help="which experiment; its table must have been made")
    parser.add_argument("--out", type=Path, required=True, help="directory for <figure>.svg")
    arguments = parser.parse_args(argv)
    name, out = arguments.experiment, arguments.out
    try:
        study = read_study(arguments.study)
        if name not in study.active:
            raise UserError(f"experiment {name}: unknown or left out;{did_you_mean(name, study.active)}")
        experiment = study.active[name]
        evidence = load_evidence(study, study.layout.table(name).parent, [name])
        evidence = replace(evidence, unfinished=load_unfinished(study, evidence.tables[name]))
        points = references(load_tables(study.published), name, evidence.tables[name]) if study.published else ()
        out.mkdir(parents=True, exist_ok=True)
        scope = Scope(evidence, name, tuple(experiment.by), references=points)
        for figure in experiment.figures:
            draw(figure, out / f"{figure}.svg", scope)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {', '.join(experiment.figures) or 'no figures'}")
    return 0


if __name__ == "__main__":
    run_program(main)
