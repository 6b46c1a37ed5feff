"""Measure what a trained cell writes and judge it against its base; or measure the base itself.

    python workflow/scripts/evaluate.py --base results/base/BASE --out results/base/BASE/evaluation
    python workflow/scripts/evaluate.py --cell results/cells/NAME --base results/base/BASE \\
        --reference results/base/BASE/evaluation/metrics.json
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
from rewardgrid.study.problems import validated
from rewardgrid.study.study import BaseEvaluation, Evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base")
    parser.add_argument("--cell", type=Path, help="directory of the trained cell (leave out to measure the base)")
    parser.add_argument("--reference", type=Path, help="the base's own metrics.json (with --cell)")
    parser.add_argument("--settings", default="{}", help="the evaluation settings as JSON")
    parser.add_argument("--out", type=Path, help="directory for the base's figures (without --cell)")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=Cell.model_fields["max_new_tokens"].default,
        help="length of the base's completions (without --cell)",
    )
    arguments = parser.parse_args(argv)
    if (arguments.cell is None) == (arguments.out is None) or (arguments.cell and not arguments.reference):
        parser.error("give --cell and --reference, or --out to measure the base")
    try:
        import torch

        torch.set_num_threads(1)
        keep_freed_memory()
        base = load_base(arguments.base)
        if arguments.cell is None:
            settings = validated(BaseEvaluation, arguments.settings, "--settings")
            evaluate_base(base, settings, arguments.max_new_tokens, arguments.out, settings.own)
        else:
            spec = arguments.cell / "spec.json"
            if not spec.exists():
                raise UserError(f"{spec}: no such file; train the cell first")
            cell = read_cell(spec.read_text(encoding="utf-8"), str(spec))
            measures = validated(Evaluation, arguments.settings, "--settings")
            evaluate_cell(arguments.cell, cell, base, arguments.reference, measures)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main)
