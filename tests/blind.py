"""The blind check of the verdict: samples are read by someone who does not know which cell wrote them.

    python -m tests.blind draw --cells results/cells/ONE results/cells/OTHER ... --out DIRECTORY

draws 60 texts of each cell, half from the full and half from the top-k protocol, in samples of ten texts of one cell:
a verdict is about what a policy writes as a rule, and one text of it may be worse or better than that. It writes the
samples in random order as ``sheet.md``, and ``key.parquet``, which the reader does not open. The reader gives each
sample a line in ``tests/data/verdict_labels.csv``: sample, label, reason, date (``docs/verdict.md`` says what the
labels mean). Then

    python -m tests.blind close --sheet DIRECTORY --cells ... --base results/base/BASE --purpose check

adds the texts with their cells, and what was measured of the cells, to ``tests/data``; ``tests/agreement.py`` computes
from there how far verdict and reader agree. Cells on which limits may be chosen have the purpose ``limits``.

    python -m tests.blind base --base results/base/BASE

adds what further draws of the base itself measure, which should all be ok.

    python -m tests.blind course --base results/base/BASE

measures the course of a run that never leaves its base: the signals of its rollouts, as training records them.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rewardgrid.base.load import Base, load_base
from rewardgrid.evaluate.cell import measurements, protocols, sample_all, signals
from rewardgrid.evaluate.course import base_rollouts, course
from rewardgrid.evaluate.course import signals as course_signals
from rewardgrid.lm.draws import generator
from rewardgrid.lm.sampler import sample
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import SAMPLES, read_table
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.study import Evaluation
from rewardgrid.study.thresholds import Thresholds
from rewardgrid.study.verdict import verdict
from rewardgrid.train.rollout import Assessor, Draws, rollout_rows
from rewardgrid.train.surprise import usual
from rewardgrid.train.weights import base_weights

DATA = Path(__file__).parent / "data"
LABELLED, TEXTS, CELLS, UNTOUCHED = (
    DATA / f"verdict_{name}" for name in ("labels.csv", "samples.parquet", "cells.json", "untouched.parquet")
)
PROTOCOLS = ("full", "top_k")
TOGETHER = 10
"""Texts of a sample."""


def draw(cells: Sequence[Path], each: int, seed: int) -> pd.DataFrame:
    """Texts of cells (or bases), sample by sample in random order: sample, cell, protocol, prompt, completion.

    A sample's name is a hash, so that neither name nor order says which cell it is of; its first half is of the full
    protocol, its second of the other.
    """
    drawn = pd.concat([sample for cell in cells for sample in _samples(cell, each, seed)])
    drawn = drawn.sort_values("sample", kind="stable", ignore_index=True)
    return drawn[["sample", "cell", "protocol", "prompt", "completion"]]


def _samples(cell: Path, each: int, seed: int) -> Iterator[pd.DataFrame]:
    """The samples of one cell; no text stands in two of them."""
    written = read_table(cell / "evaluation" / "samples.parquet", SAMPLES)
    written = written[written["mode"] == "both"]
    share = TOGETHER // len(PROTOCOLS)
    chosen = {}
    for protocol in PROTOCOLS:
        own = written[written["protocol"] == protocol].reset_index(drop=True)
        luck = generator(seed, f"blind {cell.name} {protocol}")
        chosen[protocol] = own.loc[luck.choice(len(own), each // len(PROTOCOLS), replace=False)]
    for number in range(each // TOGETHER):
        name = hashlib.sha256(f"{seed}/{cell.name}/{number}".encode()).hexdigest()[:10]
        parts = [chosen[protocol].iloc[number * share : (number + 1) * share] for protocol in PROTOCOLS]
        yield pd.concat(parts).assign(sample=name, cell=cell.name)


def sheet(drawn: pd.DataFrame) -> str:
    """What the reader sees: sample by sample its texts, the prompts in bold."""
    lines = []
    for name, texts in drawn.groupby("sample", sort=False):
        lines.append(f"## {name}\n")
        lines += [f"- **{text.prompt}** {text.completion}" for text in texts.itertuples()]
        lines.append("")
    return "\n".join(lines)


def judged_signals(metrics: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The signals of a cell that its verdict looks at."""
    found = signals(metrics)
    evidence = verdict(found, signals(base), Thresholds()).evidence
    return {name: found[name] for name in sorted({*(judged.signal for judged in evidence), "prompts"})}


def other_draws(directory: Path, number: int, settings: Evaluation) -> list[dict[str, Any]]:
    """The signals of further draws of a base, against its own."""
    base, reference = load_base(directory), read_json(directory / "evaluation" / "metrics.json")
    shape, weights = base_weights(base)
    cell = Cell(max_new_tokens=reference["max_new_tokens"])
    found = []
    for other in range(1, number + 1):
        wanted = protocols(settings, cell.max_new_tokens, other)
        samples = sample_all(shape, weights, weights, base, cell, wanted)
        found.append(judged_signals(measurements(samples, reference["usual"], cell.hacked_from), reference))
    return found


def untouched_rollouts(base: Base, cell: Cell, steps: Iterable[int]) -> pd.DataFrame:
    """The rollouts (schema ROLLOUTS) that a run would record if its policy stayed the base: prompts and draws of it."""
    shape, weights = base_weights(base)
    prompts, assessor = base.train_prompts().ids, Assessor([cell], base, torch.device("cpu"))
    penalty = torch.tensor([cell.repetition_penalty])
    rows: list[dict[str, Any]] = []
    for step in steps:
        draws = Draws.of_step([cell], prompts, [step])
        done = sample(shape, weights, draws.prompts, draws.tokens, base.vocabulary.eos, penalty)
        rows += rollout_rows(step + 1, 0, assessor.assess(draws, done), cell, base)
    # Arrays, as they are read back from a file.
    return pd.DataFrame([row | {"ids": np.array(row["ids"])} for row in rows])


def untouched_course(base: Base, cell: Cell, steps: int) -> pd.DataFrame:
    """The signals of every such step; step 0 is the reference that they are judged by."""
    shape, weights = base_weights(base)
    own = base_rollouts(shape, weights, base, cell, Evaluation())
    rollouts = untouched_rollouts(base, cell, range(steps))
    found = course(rollouts, own, shape, weights, base, cell.prompt_length, Thresholds())
    reference = pd.DataFrame([{"step": 0, **course_signals(own, usual(own))}])
    return pd.concat([reference, found.drop(columns="verdict")], ignore_index=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="draw samples to be read")
    drawing.add_argument("--cells", type=Path, nargs="+", required=True, help="directories of evaluated cells or bases")
    drawing.add_argument("--each", type=int, default=60, help=f"texts of each, {TOGETHER} in a sample")
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--out", type=Path, required=True, help="directory for sheet.md and key.parquet")
    closing = commands.add_parser("close", help="add samples that have been labelled to tests/data")
    closing.add_argument("--sheet", type=Path, required=True, help="directory of sheet.md and key.parquet")
    closing.add_argument("--cells", type=Path, nargs="+", required=True, help="as for draw")
    closing.add_argument("--base", type=Path, required=True, help="directory of their base")
    closing.add_argument("--purpose", choices=("limits", "check"), required=True)
    drawing = commands.add_parser("base", help="measure further draws of the base, for tests/data")
    drawing.add_argument("--base", type=Path, required=True, help="directory of the base")
    drawing.add_argument("--draws", type=int, default=Evaluation().base_draws)
    drawing = commands.add_parser("course", help="measure rollouts of the base, as training records them")
    drawing.add_argument("--base", type=Path, required=True, help="directory of the base")
    drawing.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args(argv)
    if arguments.command == "course":
        untouched = untouched_course(load_base(arguments.base), Cell(), arguments.steps)
        untouched.to_parquet(UNTOUCHED, index=False, compression="zstd")
        return
    if arguments.command == "base":
        found = read_json(CELLS) | {"other_draws": other_draws(arguments.base, arguments.draws, Evaluation())}
        write_json(CELLS, found)
        return
    if arguments.command == "draw":
        drawn = draw(arguments.cells, arguments.each, arguments.seed)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "sheet.md").write_text(sheet(drawn), encoding="utf-8")
        drawn.to_parquet(arguments.out / "key.parquet", index=False)
        return
    names = [cell.name for cell in arguments.cells]
    key = pd.read_parquet(arguments.sheet / "key.parquet")
    key = key[key["cell"].isin(names)]
    missing = set(key["sample"]) - set(pd.read_csv(LABELLED, dtype=str)["sample"])
    if missing:
        sys.exit(f"{LABELLED}: has no label for {len(missing)} samples of {arguments.sheet}; read them first")
    base = read_json(arguments.base / "evaluation" / "metrics.json")
    found = read_json(CELLS) if CELLS.exists() else {"base": judged_signals(base, base), "cells": {}}
    for cell in arguments.cells:
        metrics = read_json(cell / "evaluation" / "metrics.json")
        found["cells"][cell.name] = {"purpose": arguments.purpose, "signals": judged_signals(metrics, base)}
    old = pd.read_parquet(TEXTS) if TEXTS.exists() else key.head(0)
    texts = pd.concat([old[~old["sample"].isin(key["sample"])], key]).sort_values("sample", kind="stable")
    texts.to_parquet(TEXTS, index=False, compression="zstd")
    write_json(CELLS, found)


if __name__ == "__main__":
    main()
