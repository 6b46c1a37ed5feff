"""Make sure that the storyteller's teacher is here and is what the configuration says; a hub's is downloaded.

Only a teacher of kind "hub" goes online (unless HF_HUB_OFFLINE=1 forbids it); HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.study.bases import StorytellerRecipe
from rewardgrid.study.errors import UserError
from rewardgrid.study.problems import validated


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="of the configuration's `storyteller` the teacher, as JSON")
    parser.add_argument("--out", type=Path, required=True, help="directory for teacher.json, and a hub's model")
    arguments = parser.parse_args(argv)
    try:
        from rewardgrid.storyteller.teacher import bring_teacher

        recipe = validated(StorytellerRecipe, arguments.recipe, "--recipe")
        if recipe.teacher is None:
            raise UserError("--recipe: names no teacher")
        bring_teacher(recipe.teacher, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: the teacher is ready")
    return 0


if __name__ == "__main__":
    run_program(main)
