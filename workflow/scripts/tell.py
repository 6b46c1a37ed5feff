"""Let the teacher tell one shard of stories for the storyteller base.

In bf16 where that is faster than fp32: on a GPU, and on CPUs that are made for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardgrid.cli.program import run_program
from rewardgrid.study.contracts import TOLD, write_table
from rewardgrid.study.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", type=int, required=True, help="which one, from 0")
    parser.add_argument("--stories", type=int, required=True, help="stories of a shard")
    parser.add_argument("--seed", type=int, default=0, help="of requests and words")
    parser.add_argument("--at-a-time", type=int, help="stories told together (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    arguments = parser.parse_args(argv)
    try:
        import pandas as pd
        import torch

        from rewardgrid.lm.memory import keep_freed_memory
        from rewardgrid.storyteller.teacher import fastest_type, load_teacher, teacher_file
        from rewardgrid.storyteller.telling import tell

        keep_freed_memory()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        teacher = load_teacher(teacher_file(), device, fastest_type(device))
        first, end = arguments.shard * arguments.stories, (arguments.shard + 1) * arguments.stories
        step = arguments.at_a_time or arguments.stories
        parts = [
            tell(teacher, arguments.seed, range(start, min(start + step, end))) for start in range(first, end, step)
        ]
        write_table(arguments.out, pd.concat(parts), TOLD)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {arguments.stories} stories")
    return 0


if __name__ == "__main__":
    run_program(main)
