"""Evaluate a base or a finished cell: files in, ``metrics.json`` and tables out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rewardgrid.base.load import Base
from rewardgrid.evaluate.samples import Protocol, by_mode, draw, summary
from rewardgrid.evaluate.verdict import verdict
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import MODE_SAMPLES, ROUTING, SAMPLES, read_table, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.study import Evaluation
from rewardgrid.train.weights import base_weights, load_policy


def protocols(settings: Evaluation, max_new_tokens: int) -> tuple[Protocol, Protocol]:
    """The published protocol (few samples, top-k) and the full one (error bars, no truncation)."""
    published = Protocol(
        "published", settings.published_samples, max_new_tokens, settings.seed, settings.published_top_k
    )
    return published, Protocol("full", settings.samples, max_new_tokens, settings.seed)


def evaluate_base(base: Base, settings: Evaluation, max_new_tokens: int, out: Path) -> None:
    """Measure a base's own samples, the reference of every verdict; writes metrics.json and samples.parquet."""
    shape, weights = base_weights(base)
    reward = Cell.model_fields["reward"].default
    frames = [draw(shape, weights, weights, base, each, reward) for each in protocols(settings, max_new_tokens)]
    write_table(out / "samples.parquet", pd.concat(frames), SAMPLES)
    figures = {
        "cell": base.directory.name,
        "state": "base",
        "max_new_tokens": max_new_tokens,
        "published": summary(frames[0]),
        "full": summary(frames[1]),
        "modes": {},
        "verdict": None,
        "reasons": [],
        "evidence": [],
    }
    write_json(out / "metrics.json", figures)


def evaluate_cell(directory: Path, cell: Cell, base: Base, reference_file: Path, settings: Evaluation) -> None:
    """Measure a trained cell and judge it against its base.

    Writes below ``directory/evaluation``: samples.parquet, routing.parquet and, last, metrics.json. A diverged cell
    gets metrics that say so and hold no figures.

    Raises:
        UserError: training has not finished, a file is corrupt, or there are too few evaluation prompts.
    """
    train, out = directory / "train", directory / "evaluation"
    status = read_json(train / "status.json")
    if status["cell"] != cell.name:
        raise UserError(f"{train / 'status.json'}: is of cell {status['cell']!r}, not {cell.name!r}; train it again")
    figures: dict[str, Any] = {
        "cell": cell.name,
        "state": status["state"],
        "max_new_tokens": cell.max_new_tokens,
        "published": {},
        "full": {},
        "modes": {},
        "verdict": None,
        "reasons": [],
        "evidence": [],
    }
    frames: list[pd.DataFrame] = []
    if status["state"] == "done":
        frozen = base_weights(base)[1]
        shape, policy = load_policy(train / "weights", cell, base)
        published, full = (
            draw(shape, policy, frozen, base, each, cell.reward) for each in protocols(settings, cell.max_new_tokens)
        )
        frames += [published, full]
        figures |= {"published": summary(published), "full": summary(full)}
        if cell.is_routing:
            figures["modes"]["both"] = by_mode(full)
            for mode in ("retain_only", "forget_only"):
                alone = load_policy(train / "weights", cell, base, mode)[1]
                protocol = protocols(settings, cell.max_new_tokens)[1]
                frames.append(draw(shape, alone, frozen, base, protocol, cell.reward, mode))
                figures["modes"][mode] = by_mode(frames[-1])
        figures |= judge(figures["full"], read_json(reference_file), cell, settings)
    samples = pd.concat(frames) if frames else pd.DataFrame(columns=SAMPLES.names)
    write_table(out / "samples.parquet", samples, SAMPLES)
    write_table(
        out / "routing.parquet", routing_table(read_table(train / "mode_samples.parquet", MODE_SAMPLES)), ROUTING
    )
    write_json(out / "metrics.json", figures)


def judge(
    full: Mapping[str, float | int | None], reference: Mapping[str, Any], cell: Cell, settings: Evaluation
) -> dict[str, Any]:
    """The verdict with its reasons and evidence, from the full samples of cell and base."""
    base = dict(reference["full"])
    if reference["max_new_tokens"] != cell.max_new_tokens:
        # The base was sampled to another length: what depends on length cannot be compared.
        base = {key: value for key, value in base.items() if key not in ("completion_length", "compression_ratio")}
    found = verdict(full, base, settings.thresholds)
    return {"verdict": found.label, "reasons": list(found.reasons), "evidence": list(found.evidence)}


def routing_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Figures by step and mode (:data:`rewardgrid.study.contracts.ROUTING`) of a run's evaluations."""
    rows = [
        {"step": step, "mode": mode, **{key: value for key, value in by_mode(group).items() if key in ROUTING.names}}
        for (step, mode), group in samples.groupby(["step", "mode"], sort=True)
    ]
    return pd.DataFrame(rows, columns=ROUTING.names)
