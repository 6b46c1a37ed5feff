"""Make the storyteller base of what the teacher has told: sift the stories, or pretrain on those that stay.

python workflow/scripts/storyteller.py sift --told SHARD.parquet ... --out sifted.parquet
python workflow/scripts/storyteller.py make --sifted sifted.parquet --base storyteller --recipe '{...}' --out DIRECTORY
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.study.bases import StorytellerRecipe
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import SAMPLES, SIFTED, read_table, write_table
from rewardgrid.study.errors import UserError, did_you_mean
from rewardgrid.study.files import read_json, write_text
from rewardgrid.study.problems import validated
from rewardgrid.study.study import Evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    sifting = parts.add_parser("sift", help="say of each story what holds it back, if anything")
    sifting.add_argument("--told", type=Path, nargs="+", required=True, help="shards of stories")
    sifting.add_argument("--out", type=Path, required=True, help="parquet file to write")
    making = parts.add_parser("make", help="tokenizer, pretraining, prompts, measurement, card")
    making.add_argument("--sifted", type=Path, required=True, help="what `sift` has written")
    making.add_argument("--base", required=True, help="which of the recipe's bases")
    making.add_argument("--recipe", required=True, help="the configuration's `storyteller` as JSON")
    making.add_argument("--out", type=Path, required=True, help="directory of the base")
    arguments = parser.parse_args(argv)
    try:
        if arguments.part == "sift":
            _sift(arguments.told, arguments.out)
        else:
            recipe = validated(StorytellerRecipe, arguments.recipe, "--recipe")
            if arguments.base not in recipe.bases:
                hint = did_you_mean(arguments.base, recipe.bases)
                raise UserError(f"--base: read {arguments.base!r}; the recipe has no such base;{hint}")
            _make(arguments.base, arguments.sifted, recipe, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _sift(shards: Sequence[Path], out: Path) -> None:
    from rewardgrid.storyteller.shards import read_told
    from rewardgrid.storyteller.shown import SHOWN
    from rewardgrid.storyteller.sifting import sift

    sifted = sift(read_told(shards), [story for _, story in SHOWN])
    write_table(out, sifted, SIFTED)
    for what, sieve, passed in (
        ("stories stop before", "cut", "(whole)"),
        ("stories are held back for", "held", "(kept)"),
    ):
        print(f"{what}:\n{sifted[sieve].replace('', passed).value_counts().to_string()}")


def _make(name: str, source: Path, recipe: StorytellerRecipe, out: Path) -> None:
    from rewardgrid.base.load import load_base
    from rewardgrid.evaluate.cell import evaluate_base
    from rewardgrid.storyteller.card import card
    from rewardgrid.storyteller.making import make_storyteller

    teacher = recipe.teacher.model_dump(mode="json") if recipe.teacher else None
    make_storyteller(name, recipe.bases[name], read_table(source, SIFTED), {"teacher": teacher}, out)
    base = load_base(out)
    settings = Evaluation(base_draws=0)  # the card says nothing of them
    evaluate_base(base, settings, Cell.model_fields["max_new_tokens"].default, out / "evaluation")
    samples = read_table(out / "evaluation" / "samples.parquet", SAMPLES)
    write_text(out / "README.md", card(base.provenance, read_json(out / "evaluation" / "metrics.json"), samples))
    print(f"{out}: {name} is ready")


if __name__ == "__main__":
    run_program(main)
