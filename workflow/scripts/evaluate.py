"""Measure what a trained cell writes and judge it against its base; or measure the base itself.

python workflow/scripts/evaluate.py --base results/base/BASE --out results/base/BASE/evaluation
python workflow/scripts/evaluate.py --cell results/cells/NAME
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.base.load import load_base
from rewardgrid.cli.program import run_program
from rewardgrid.evaluate.cell import evaluate_base, evaluate_cell
from rewardgrid.lm.memory import keep_freed_memory
from rewardgrid.study.cell import Cell, read_cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.layout import Layout
from rewardgrid.study.problems import validated
from rewardgrid.study.study import BaseEvaluation, Evaluation
from rewardgrid.train.keeper import mend


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=Path, help="directory of a trained cell; its base lies among the same results")
    parser.add_argument("--base", type=Path, help="directory of a base")
    parser.add_argument("--settings", default="{}", help="the evaluation settings as JSON")
    parser.add_argument("--out", type=Path, help="directory for the base's figures (with --base)")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=Cell.model_fields["max_new_tokens"].default,
        help="length of the base's completions (with --base)",
    )
    arguments = parser.parse_args(argv)
    if (arguments.cell is None) == (arguments.base is None) or (arguments.base is None) != (arguments.out is None):
        parser.error("give --cell, or --base and --out")
    try:
        import torch

        torch.set_num_threads(1)
        keep_freed_memory()
        if arguments.cell is None:
            settings = validated(BaseEvaluation, arguments.settings, "--settings")
            evaluate_base(load_base(arguments.base), settings, arguments.max_new_tokens, arguments.out, settings.own)
        else:
            spec = arguments.cell / "spec.json"
            if not spec.exists():
                raise UserError(f"{spec}: no such file; train the cell first")
            cell = read_cell(spec.read_text(encoding="utf-8"), str(spec))
            measures = validated(Evaluation, arguments.settings, "--settings")
            mend(arguments.cell, cell)  # first: without its weights, no base is any help
            layout = Layout(arguments.cell.parent.parent)
            base = load_base(layout.base(cell.base_id))
            evaluate_cell(arguments.cell, cell, base, layout.base_metrics(cell.base_id), measures)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main)
