"""Train the same cells with both engines and set their learning curves side by side.

Writes results/bench/curves.json and the table in BENCHMARKS.md. Engines draw the same numbers but round differently, so
a token differs sooner or later and a run goes another way from there; what must agree is what seeds agree on.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rewardgrid.base.load import load_base
from rewardgrid.cli.program import run_program
from rewardgrid.study.cell import Cell
from rewardgrid.study.files import replace_between, write_json
from rewardgrid.study.study import Recording
from rewardgrid.train.engines import engine
from rewardgrid.train.record import hardware, versions

START, END = "<!-- measured by curves.py -->", "<!-- end of curves -->"
WINDOW = 20
METHODS: dict[str, dict[str, Any]] = {
    "full": {"lr": 7e-4},
    "LoRA r8": {"lr": 3e-3, "method": "lora", "rank": 8},
    "routed r32+32": {
        "lr": 2e-3,
        "method": "routing",
        "rank": 32,
        "reward": "sentence_length_10_smooth_with_happy",
        "eval_every": 1000,
    },
}


def train(base_directory: Path, cells: Sequence[Cell], scratch: Path) -> pd.DataFrame:
    """The histories of the cells, one below the other, with their seeds."""
    base = load_base(base_directory)
    directories = [scratch / cell.name for cell in cells]
    engine(cells[0].engine)(cells, base, directories, Recording(), None)
    histories = [pd.read_parquet(directory / "train" / "history.parquet") for directory in directories]
    return pd.concat([history.assign(seed=cell.seed) for history, cell in zip(histories, cells, strict=True)])


def compare(method: str, seeds: Sequence[int], steps: int, tokens: int, base: Path, scratch: Path) -> dict[str, Any]:
    """Both engines' curves of one method: means over the last window of each run, and where they part."""
    runs = {}
    for name in ("native", "trl"):
        cells = [
            Cell(base=base.name, engine=name, seed=seed, max_steps=steps, max_new_tokens=tokens, **METHODS[method])
            for seed in seeds
        ]
        runs[name] = train(base, cells, scratch / method.replace(" ", "-") / name)
    last = {name: run[run.step > steps - WINDOW].groupby("seed").mean() for name, run in runs.items()}
    gap = (runs["native"].reward - runs["trl"].reward).abs().groupby(runs["native"].step).max()
    parted = gap.index[gap > 1e-4]
    return {
        "method": method,
        "seeds": len(seeds),
        "steps": steps,
        "equal_until_step": int(parted.min()) - 1 if len(parted) else steps,
        **{
            f"{name}_{column}": {"mean": float(last[name][column].mean()), "sd": float(last[name][column].std())}
            for name in runs
            for column in ("reward", "kl")
        },
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | seeds | steps | native reward | trl reward | native KL | trl KL | equal to 1e-4 until step |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        means = [
            f"{row[key]['mean']:.3f} ± {row[key]['sd']:.3f}"
            for key in ("native_reward", "trl_reward", "native_kl", "trl_kl")
        ]
        lines.append(
            f"| {row['method']} | {row['seeds']} | {row['steps']} | {' | '.join(means)} | {row['equal_until_step']} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 123, 7, 456])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--base", type=Path, default=Path("resources/bases/storyteller-small"), help="its directory")
    parser.add_argument("--out", type=Path, default=Path("results/bench/curves.json"))
    parser.add_argument("--page", type=Path, default=Path("BENCHMARKS.md"), help="page whose table is replaced")
    arguments = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for method in METHODS:
            rows.append(
                compare(method, arguments.seeds, arguments.steps, arguments.tokens, arguments.base, Path(scratch))
            )
    write_json(arguments.out, {"hardware": hardware(), "versions": versions(), "rows": rows})
    how = (
        f"{hardware()}, base {arguments.base.name}, batch 32, {arguments.tokens} tokens; "
        f"means over the last {WINDOW} steps ± standard deviation over seeds."
    )
    replace_between(arguments.page, START, END, f"{how}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    run_program(main)
