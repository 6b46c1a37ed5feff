"""Time the engines on this machine, in one run: seconds per step and phase, native against TRL as it is usually run.

Writes results/bench/bench-cpu.json (or -cuda) and the tables in BENCHMARKS.md. On a CPU the figures are
CPU-seconds of one thread; on CUDA wall-clock seconds, with packs of several cells, peak memory and the share of the
hardware's arithmetic limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.cli.program import run_program
from rewardgrid.lm.hf.config import shape_of
from rewardgrid.lm.memory import keep_freed_memory
from rewardgrid.lm.shape import Shape
from rewardgrid.study.bases import PackagedBase
from rewardgrid.study.cell import Cell
from rewardgrid.study.files import replace_between, write_json
from rewardgrid.study.study import load_study
from rewardgrid.train.engines.native import Graph, Pack
from rewardgrid.train.record import hardware, versions
from rewardgrid.train.rollout import Draws

TOKENS = 128
STARTS = 5
START, END = "<!-- measured by make bench -->", "<!-- end of measured -->"
SHAPES = {
    "small": PackagedBase(path="resources/bases/storyteller-small"),
    "1.25M": PackagedBase(path="resources/bases/storyteller"),
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"lr": 1e-5},
    "LoRA r8": {"lr": 1e-4, "method": "lora", "rank": 8},
    "routed r32+32": {
        "lr": 3e-4,
        "method": "routing",
        "rank": 32,
        "reward": "sentence_length_10_smooth_with_happy",
    },
}
PACKS = (1, 8, 32, 64)
LIMITS = {"fp32": 67e12, "tf32": 495e12, "bf16": 990e12}
"""Dense arithmetic limits of an H200 in FLOP/s, from its data sheet (fp32 without tensor cores)."""
LAUNCH_SECONDS = 1.5e-6
"""From the start of one kernel of a CUDA graph to that of the next, if the first does next to nothing (1.3 to 2 us)."""


def clock(device: torch.device) -> Callable[[], float]:
    """CPU-seconds of this process, or wall-clock seconds once the GPU has finished."""
    if device.type == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def flop(shape: Shape, cell: Cell) -> float:
    """Arithmetic of one step of one cell, multiply and add counted: rollout, reference, forward and backward.

    Per token 2 FLOP for each weight of a projection or of the output, and 4 x positions x width for attention; a
    backward pass costs twice a forward one, or once where weights are frozen (LoRA, adapters not counted).
    """
    projections = shape.layers * sum(sum(shape.segments[kind]) * shape.inputs[kind] for kind in shape.segments)
    positions = cell.prompt_length + cell.max_new_tokens
    attention = shape.layers * 4 * (positions / 2) * shape.heads * shape.head_dim
    body, head = 2 * projections + attention, 2 * shape.hidden * shape.vocabulary
    tokens, written = cell.batch_size * positions, cell.batch_size * cell.max_new_tokens
    forward = tokens * body + written * head
    return forward * (3 + (2 if cell.method == "full" else 1))


def launch_floor(shape: Shape, cell: Cell) -> float:
    """Seconds that a step's rollout takes on a GPU however little it computes: kernels that wait for one another.

    A token comes after the one before it, and takes 8 kernels a layer (norm, qkv, rotation and cache, attention, o with
    its sum, norm, gate and up, down with its sum) and 4 more (embedding, norm, output, draw), if each is fused as far
    as it goes.
    """
    return cell.max_new_tokens * (8 * shape.layers + 4) * LAUNCH_SECONDS


def native(cells: Sequence[Cell], base: Base, device: torch.device, steps: int) -> dict[str, float]:
    """Median seconds of a step and of its phases, after one step of warming up."""
    now, pack = clock(device), Pack(cells, base, device)
    prompts = base.train_prompts().ids
    phases: dict[str, list[float]] = {"rollout": [], "reference": [], "update": []}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for step in range(steps + 1):
        draws = Draws.of_step(cells, prompts, [step] * len(cells)).to(device)
        marks = [now()]
        rollout = pack.rollout(draws)
        marks.append(now())
        reference = pack.reference_logps(rollout)
        marks.append(now())
        pack.update(rollout, reference)
        marks.append(now())
        if step:
            for phase, (start, stop) in zip(phases, pairwise(marks), strict=True):
                phases[phase].append(stop - start)
    result = {phase: statistics.median(values) for phase, values in phases.items()}
    result["step"] = statistics.median(map(sum, zip(*phases.values(), strict=True)))
    if device.type == "cuda":
        graph = Graph(pack, draws)
        times = []
        for step in range(steps):
            draws = Draws.of_step(cells, prompts, [step] * len(cells))
            start = now()
            graph(draws)
            times.append(now() - start)
        result["step"] = statistics.median(times)
        result["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return result


def trl(cell: Cell, base: Base, device: torch.device, steps: int) -> dict[str, float]:
    """The same of TRL's GRPOTrainer with Hugging Face generation, the way such runs are usually done.

    It has a process to itself, whose memory is handled as the C library does by default.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_trl, (cell, base.directory, device, steps))


def _trl(cell: Cell, directory: Path, device: torch.device, steps: int) -> dict[str, float]:
    import transformers
    from transformers import TrainerCallback

    from rewardgrid.train.engines.trl import Trainer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    now, base = clock(device), load_base(directory)
    trainer = Trainer(
        cell.model_copy(update={"max_steps": steps + 1, "engine": "trl"}), base, 0, device, own_rollouts=False
    )
    spent = {"rollout": 0.0, "reference": 0.0}
    rows: list[dict[str, float]] = []

    def timed(name: str, phase: str, when: Callable[[], bool]) -> None:
        inner = getattr(trainer, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            start, counts = now(), when()
            result = inner(*args, **kwargs)
            if counts:
                spent[phase] += now() - start
            return result

        setattr(trainer, name, outer)

    timed("_generate", "rollout", lambda: True)
    timed("_get_per_token_logps_and_entropies", "reference", lambda: not torch.is_grad_enabled())

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            spent.update(rollout=0.0, reference=0.0)
            self.start = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            rows.append({**spent, "step": now() - self.start})

    # Batches are prepared between steps' beginnings, so generation falls inside on_step_begin .. on_step_end.
    trainer.add_callback(Clock())
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    middle = {key: statistics.median(row[key] for row in rows[1:]) for key in ("rollout", "reference", "step")}
    return middle | {"update": middle["step"] - middle["rollout"] - middle["reference"]}


def measure(steps: int, device: torch.device, shapes: Sequence[str], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Every combination, native and TRL next to each other."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in shapes:
            build_base(name, SHAPES[name], Path(scratch) / name)
            base = load_base(Path(scratch) / name)
            for batch in batches:
                for method, values in METHODS.items():
                    cell = Cell(base=name, batch_size=batch, max_new_tokens=TOKENS, **values)
                    before = native([cell], base, device, steps)  # and after TRL, for the machine's speed drifts
                    other = trl(cell, base, device, steps)
                    after = native([cell], base, device, steps)
                    results = {"native": {key: (before[key] + after[key]) / 2 for key in before}, "trl": other}
                    if device.type == "cuda" or batch == batches[0]:  # slow on a CPU, with the same ratio again
                        half = cell.model_copy(update={"precision": "bf16"})
                        results["native bf16"] = native([half], base, device, steps if device.type == "cuda" else 1)
                    for label, result in results.items():
                        row = {"shape": name, "batch": batch, "method": method, "engine": label, "cells": 1} | result
                        row["gflop"] = flop(shape_of(base.config), cell) / 1e9
                        rows.append(row)
                        print(json.dumps(row), file=sys.stderr, flush=True)
                    if device.type == "cuda" and name == "1.25M" and batch == 32:
                        rows += packs(cell, method, base, device, steps)
    return rows


def packs(cell: Cell, method: str, base: Base, device: torch.device, steps: int) -> list[dict[str, Any]]:
    """Several cells side by side on one GPU, in each precision."""
    rows, shape = [], shape_of(base.config)
    for precision in ("fp32", "tf32", "bf16"):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        for width in PACKS:
            cells = [cell.model_copy(update={"seed": seed, "precision": precision}) for seed in range(width)]
            result = native(cells, base, device, steps)
            speed = width / result["step"]
            rows.append(
                {"shape": "1.25M", "batch": 32, "method": method, "engine": f"native {precision}", "cells": width}
                | result
                | {
                    "cell_steps_per_second": speed,
                    "share_of_arithmetic_limit": speed * flop(shape, cell) / LIMITS[precision],
                    "share_of_launch_limit": launch_floor(shape, cell) / result["step"],
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    torch.set_float32_matmul_precision("highest")
    return rows


def start_up() -> float:
    """Median wall-clock seconds of a cell of one step, a process of its own: imports, base, step and files."""
    times = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        study = {
            "inherit": [],
            "title": "One step",
            "results": str(directory / "results"),
            "bases": {"small": SHAPES["small"].model_dump()},
            "defaults": {"base": "small", "max_steps": 1},
            "experiments": {"seeds": {"title": "Seeds", "grids": [{"seed": list(range(STARTS))}], "columns": ["seed"]}},
        }
        write_json(directory / "config.yaml", study)
        cells = load_study([directory / "config.yaml"]).cells
        build_base("small", SHAPES["small"], directory / "results/base" / next(iter(cells.values())).base_id)
        program = [
            sys.executable,
            str(Path(__file__).with_name("train.py")),
            "--configfile",
            str(directory / "config.yaml"),
        ]
        for name in cells:
            start = time.perf_counter()
            subprocess.run([*program, "--cells", name], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def table(rows: Sequence[dict[str, Any]], unit: str) -> str:
    """The rows as Markdown: one line for each shape, batch and method."""
    lines = [
        f"| shape | batch | method | TRL + HF generation ({unit}) | native | rollout | reference | update "
        "| TRL / native | native bf16 | GFLOP a step | GFLOP/s |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    singles = {(row["shape"], row["batch"], row["method"], row["engine"]): row for row in rows if row["cells"] == 1}
    for shape, batch, method, engine in singles:
        if engine != "native":
            continue
        own, other = (singles[shape, batch, method, name] for name in ("native", "trl"))
        half = singles.get((shape, batch, method, "native bf16"))
        slow = f"{half['step']:.3f}" if half else "–"
        lines.append(
            f"| {shape} | {batch} | {method} | {other['step']:.3f} | {own['step']:.3f} | {own['rollout']:.3f} "
            f"| {own['reference']:.3f} | {own['update']:.3f} | **{other['step'] / own['step']:.1f}x** "
            f"| {slow} | {own['gflop']:.1f} | {own['gflop'] / own['step']:.0f} |"
        )
    packed = [row for row in rows if "cell_steps_per_second" in row]
    if packed:
        lines += [
            "",
            "| method | precision | cells | ms a step | cell-steps/s | GB | share of arithmetic limit "
            "| share of launch limit |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {row['method']} | {row['engine'].split()[-1]} | {row['cells']} | {1000 * row['step']:.1f} "
            f"| {row['cell_steps_per_second']:.0f} | {row['memory_gb']:.1f} | {row['share_of_arithmetic_limit']:.1%} "
            f"| {row['share_of_launch_limit']:.1%} |"
            for row in packed
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each run (default: %(default)s)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--page", type=Path, default=Path("BENCHMARKS.md"), help="page whose tables are replaced")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device(arguments.device)
    rows = measure(arguments.steps, device, arguments.shapes, arguments.batches)
    seconds = start_up()
    start = f"Start-up: a cell of one step took {seconds:.1f} s (median of {STARTS}) from its command to its files."
    result = {"hardware": hardware(), "device": device.type, "versions": versions(), "rows": rows, "start_up": seconds}
    write_json(arguments.out / f"bench-{device.type}.json", result)
    unit = "CPU-s a step" if device.type == "cpu" else "s a step"
    threads = "one thread, " if device.type == "cpu" else ""
    how = f"{hardware()}, {threads}{arguments.steps} counted steps each, medians; native before and after TRL."
    replace_between(arguments.page, START, END, f"{how}\n\n{table(rows, unit)}\n\n{start}")
    return 0


if __name__ == "__main__":
    run_program(main)
