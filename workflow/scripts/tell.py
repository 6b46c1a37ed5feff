"""Let the teacher tell one shard of stories for the storyteller base.

In bf16 where that is faster than fp32: on a GPU, and on CPUs that are made for it. A shard is told once: it lies in
kept/ beside the file that is written, too, and is taken from there if that file has gone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rewardgrid.cli.program import run_program
from rewardgrid.storyteller.shards import tell_once
from rewardgrid.study.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="teacher.json, as teacher.py writes it")
    parser.add_argument("--seed", type=int, required=True, help="of requests and words")
    parser.add_argument("--shard", type=int, required=True, help="which one, from 0")
    parser.add_argument("--stories", type=int, required=True, help="stories of a shard")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write, SEED-SHARD.parquet")
    arguments = parser.parse_args(argv)
    numbers = range(arguments.shard * arguments.stories, (arguments.shard + 1) * arguments.stories)

    def tell_shard() -> pd.DataFrame:
        import torch

        from rewardgrid.lm.memory import keep_freed_memory
        from rewardgrid.storyteller.teacher import load_teacher
        from rewardgrid.storyteller.telling import tell

        keep_freed_memory()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return tell(load_teacher(arguments.teacher, device), arguments.seed, numbers)

    try:
        told_now = tell_once(arguments.out, tell_shard)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {len(numbers)} stories{'' if told_now else ', told before'}")
    return 0


if __name__ == "__main__":
    run_program(main)
