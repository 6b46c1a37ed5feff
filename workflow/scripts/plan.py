"""How long Snakemake plans grids of many cells, and how much memory it takes: synthetic studies, dry runs.

    python workflow/scripts/plan.py --cells 500 1000 2000 5000

Writes results/bench/planning.md; BENCHMARKS.md holds what it wrote once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from rewardgrid.cli.program import run_program
from rewardgrid.study.files import write_text

ROOT = Path(__file__).resolve().parents[2]
SEEDS_EACH = 50


def synthetic(cells: int) -> dict[str, object]:
    """A study that stands alone and has one grid of so many cells."""
    betas = [round(0.001 * number, 3) for number in range(1, cells // SEEDS_EACH + 1)]
    grid = {"beta": betas, "seed": list(range(1, SEEDS_EACH + 1))}
    many = {"title": "Many cells", "grids": [grid], "columns": ["beta", "seed", "final_reward"], "by": ["beta"]}
    return {"inherit": ["bases"], "experiments": {"many": many}}


def measure(cells: int) -> tuple[float, float, float]:
    """(seconds, CPU-seconds, peak memory in MiB) of a dry run of so many cells, none of which is trained."""
    with tempfile.TemporaryDirectory() as directory:
        overlay = Path(directory) / "overlay.yaml"
        results = {"results": str(Path(directory) / "results")}
        overlay.write_text(yaml.safe_dump(synthetic(cells) | results), encoding="utf-8")
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "-n", "--quiet", "--cores", "1", "--configfile", str(overlay)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"error: the dry run of {cells} cells failed")
        return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[500, 1000, 2000, 5000], help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench/planning.md", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    lines = ["| cells | seconds | CPU-seconds | CPU-milliseconds a cell | peak memory, MiB |", "|--:|--:|--:|--:|--:|"]
    for cells in arguments.cells:
        seconds, cpu, memory = measure(cells)
        lines.append(f"| {cells:,} | {seconds:.1f} | {cpu:.1f} | {1000 * cpu / cells:.1f} | {memory:.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    write_text(arguments.out, "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
