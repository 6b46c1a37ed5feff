"""Bring in a base: the frozen language model that cells start from, its tokenizer and its prompts.

Only a recipe of kind "hub" goes online (unless HF_HUB_OFFLINE=1 forbids it); HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.base.build import build_base
from rewardgrid.cli.program import run_program
from rewardgrid.study.bases import read_recipe
from rewardgrid.study.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what the configuration calls it")
    parser.add_argument("--recipe", required=True, help='JSON, for example \'{"kind": "hub"}\'')
    parser.add_argument("--out", type=Path, required=True, help="directory to put it in")
    arguments = parser.parse_args(argv)
    try:
        build_base(arguments.name, read_recipe(arguments.recipe, "--recipe"), arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: base {arguments.name} is ready")
    return 0


if __name__ == "__main__":
    run_program(main)
