"""The blind check of the verdict: texts are read by someone who does not know which cell wrote them.

    python -m tests.blind draw --cells results/cells/ONE results/cells/OTHER ... --out DIRECTORY

draws as many texts of each cell, half from the full and half from the top-k samples, and writes ``sheet.csv`` (sample,
prompt, completion) in random order, and ``key.csv``, which the reader does not open. The reader writes a line for each
sample into ``tests/data/verdict_labels.csv``: sample, label, reason, date (``docs/verdict.md`` says what the labels
mean). Then

    python -m tests.blind close --sheet DIRECTORY --cells ... --base results/base/BASE --purpose check

adds the texts with their cells, and what was measured of the cells, to ``tests/data``, from where a test computes how
far verdict and reader agree. Cells on which limits were chosen have the purpose ``limits`` and are reported apart.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rewardgrid.evaluate.cell import signals
from rewardgrid.evaluate.verdict import LABELS, Label, verdict
from rewardgrid.lm.draws import generator
from rewardgrid.study.contracts import SAMPLES, read_table
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.thresholds import Thresholds

DATA = Path(__file__).parent / "data"
LABELLED, TEXTS, CELLS = DATA / "verdict_labels.csv", DATA / "verdict_samples.csv", DATA / "verdict_cells.json"
PROTOCOLS = ("full", "top_k")

Confusion = Counter[tuple[Label, Label]]
"""Cells by (what the reader says, what the verdict says)."""


def draw(cells: Sequence[Path], each: int, seed: int) -> pd.DataFrame:
    """Texts of cells (or bases) in random order: sample, cell, protocol, prompt, completion.

    A sample's name is a hash, so that neither name nor order says which cell it is of.
    """
    frames = []
    for cell in cells:
        samples = read_table(cell / "evaluation" / "samples.parquet", SAMPLES)
        for protocol in PROTOCOLS:
            own = samples[(samples["protocol"] == protocol) & (samples["mode"] == "both")].reset_index(drop=True)
            luck = generator(seed, f"blind {cell.name} {protocol}")
            chosen = own.loc[luck.choice(len(own), each // len(PROTOCOLS), replace=False)]
            names = [
                hashlib.sha256(f"{seed}/{cell.name}/{protocol}/{place}".encode()).hexdigest()[:10]
                for place in chosen.index
            ]
            frames.append(chosen.assign(sample=names, cell=cell.name))
    drawn = pd.concat(frames).sort_values("sample")
    return drawn[["sample", "cell", "protocol", "prompt", "completion"]]


def reading(labels: Sequence[Label]) -> Label:
    """What a reader says of a cell: the median of the labels of its texts (of two middle ones the milder)."""
    return LABELS[sorted(LABELS.index(label) for label in labels)[(len(labels) - 1) // 2]]


def confusion(
    labels: pd.DataFrame, texts: pd.DataFrame, cells: Mapping[str, Any], purpose: str, thresholds: Thresholds
) -> Confusion:
    """Reader against verdict on the cells of a purpose; the verdict is computed anew from what was measured."""
    read = texts.merge(labels, on="sample", validate="one_to_one").groupby("cell")["label"].agg(list)
    return Counter(
        (reading(read[name]), verdict(cell["signals"], cell["base"], thresholds).label)
        for name, cell in cells.items()
        if cell["purpose"] == purpose
    )


def kappa(found: Confusion) -> float:
    """Cohen's kappa (1960): agreement beyond what the two margins would give by chance."""
    total = found.total()
    agreed = sum(number for (reader, rule), number in found.items() if reader == rule) / total
    margins = [Counter[Label]() for _ in range(2)]
    for pair, number in found.items():
        for margin, label in zip(margins, pair, strict=True):
            margin[label] += number
    chance = sum(margins[0][label] * margins[1][label] for label in LABELS) / total**2
    return (agreed - chance) / (1 - chance)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="draw texts to be read")
    drawing.add_argument("--cells", type=Path, nargs="+", required=True, help="directories of evaluated cells or bases")
    drawing.add_argument("--each", type=int, default=60, help="texts of each")
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--out", type=Path, required=True, help="directory for sheet.csv and key.csv")
    closing = commands.add_parser("close", help="add texts that have been labelled to tests/data")
    closing.add_argument("--sheet", type=Path, required=True, help="directory of sheet.csv and key.csv")
    closing.add_argument("--cells", type=Path, nargs="+", required=True, help="as for draw")
    closing.add_argument("--base", type=Path, required=True, help="directory of their base")
    closing.add_argument("--purpose", choices=("limits", "check"), required=True)
    arguments = parser.parse_args(argv)
    if arguments.command == "draw":
        drawn = draw(arguments.cells, arguments.each, arguments.seed)
        arguments.out.mkdir(parents=True, exist_ok=True)
        drawn[["sample", "prompt", "completion"]].to_csv(arguments.out / "sheet.csv", index=False)
        drawn[["sample", "cell", "protocol"]].to_csv(arguments.out / "key.csv", index=False)
        return
    key, sheet = (pd.read_csv(arguments.sheet / f"{name}.csv", dtype=str) for name in ("key", "sheet"))
    missing = set(key["sample"]) - set(pd.read_csv(LABELLED, dtype=str)["sample"])
    if missing:
        sys.exit(f"{LABELLED}: has no label for {len(missing)} samples of {arguments.sheet}; read them first")
    new = key.merge(sheet, on="sample", validate="one_to_one")
    old = pd.read_csv(TEXTS, dtype=str) if TEXTS.exists() else new.head(0)
    pd.concat([old[~old["sample"].isin(new["sample"])], new]).to_csv(TEXTS, index=False)
    reference = dict(signals(read_json(arguments.base / "evaluation" / "metrics.json")))
    cells = read_json(CELLS) if CELLS.exists() else {}
    for cell in arguments.cells:
        measured = dict(signals(read_json(cell / "evaluation" / "metrics.json")))
        cells[cell.name] = {"purpose": arguments.purpose, "signals": measured, "base": reference}
    write_json(CELLS, cells)


if __name__ == "__main__":
    main()
