"""What the page shows of each cell, from its files: figures, curves, evidence. Plain values, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rewardgrid.report.columns import COLUMNS, MEASURED_COLUMNS, RENAMED, SPEC_COLUMNS, STORIES, known, settings
from rewardgrid.report.curves import smoothed
from rewardgrid.report.tables import Row, base_row, cell_row, load_bases, own_columns, varying
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import COURSE, HISTORY, read_table
from rewardgrid.study.files import read_json
from rewardgrid.study.history import read_history
from rewardgrid.study.layout import Layout
from rewardgrid.study.steps import SMOOTHING_STEPS
from rewardgrid.study.study import Study

MOST_POINTS = 200
"""Of a curve."""
DIGITS = 4
"""Significant ones, of every figure that is drawn or listed."""

CURVES = ("reward", "kl", "sl10", "happy", "hacked", "completion_length", "entropy", "flagged")
"""Of the history, in the order in which they are offered."""
SIGNALS = ("unlikely_windows", "unlikely_ends", "fragment_share", "comma_rate", "skeleton_share")
"""Of the course, likewise."""
_CURVE_LABELS = {
    "reward": "reward",
    "kl": "KL",
    "happy": "happy",
    "completion_length": "length",
    "entropy": "entropy",
    "flagged": "flagged",
}

ONSETS = ("hack_onset", "degeneration_onset")
SHOWN_FIRST = ("final_reward", "final_kl", "sl10", "happy", "unique_first_sentences", "jaccard_256")
"""Measured columns that the table starts with, and means of metrics of one's own; the others are a click away."""
MOST_SETTINGS = 4
"""Settings that the table starts with."""


def plain(value: Any) -> Any:
    """A value as JSON has it: None for what is not known, floats with few digits."""
    if not known(value):
        return None
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def cells_of(study: Study, names: Iterable[str]) -> list[tuple[Cell, list[str]]]:
    """These cells in the order of the study, each with its experiments."""
    wanted = set(names)
    found: dict[str, tuple[Cell, list[str]]] = {}
    for experiment, cells in study.grid.items():
        for cell in cells:
            if cell.name in wanted:
                found.setdefault(cell.name, (cell, []))[1].append(experiment)
    return list(found.values())


def overview(study: Study, cells: Sequence[tuple[Cell, Sequence[str]]]) -> dict[str, Any]:
    """All that the page needs before a cell is chosen: the table, its columns, the experiments, the bases.

    Raises:
        UserError: a file of a cell is torn or another cell's.
    """
    bases = load_bases(study)
    rows = [cell_row(study, experiments[0], cell, bases) for cell, experiments in cells]
    told_apart = {
        name: varying([row for (_, own), row in zip(cells, rows, strict=True) if name in own]) for name in study.active
    }
    settings_columns = sorted(
        (name for name in varying(rows)), key=lambda name: -sum(name in fields for fields in told_apart.values())
    )
    own = own_columns(study)
    measured = [name for name in (*MEASURED_COLUMNS, *own) if any(known(row.get(name)) for row in rows)]
    shown = {"verdict", "experiment", *settings_columns[:MOST_SETTINGS], *SHOWN_FIRST, *ONSETS, *own[::2]}
    stories = [name for name in STORIES if any(known(row.get(name)) for row in rows)]
    columns = [
        *("verdict", "experiment", *settings_columns, "seed", "reasons", "verdict_published_signals"),
        *stories,
        *measured,
    ]
    groups: dict[tuple[Any, ...], int] = {}
    listed = []
    for (cell, experiments), row in zip(cells, rows, strict=True):
        # One that was stopped is a line of its own: no band is drawn of whole runs and of beginnings.
        same = (*(row[name] for name in SPEC_COLUMNS if name != "seed"), row["stopped_at"] and cell.name)
        label = settings(told_apart[experiments[0]], row) or experiments[0].replace("_", " ")
        listed.append(
            {
                "name": cell.name,
                "label": f"{label}, {settings(['seed'], row)}",
                "group": groups.setdefault(same, len(groups)),
                "group_label": f"{label}, {settings(['seed'], row)}: stopped" if row["stopped_at"] else label,
                "base": cell.base_id,
                "target": 5 if cell.reward == "sentence_length_5" else 10,
                "experiments": list(experiments),
                "row": {name: plain(row.get(name)) for name in (*SPEC_COLUMNS, "state", *columns)},
            }
        )
    return {
        "title": study.title,
        "experiments": {name: study.active[name].title for name in study.active},
        "columns": [_column(name, name in shown) for name in columns],
        "settings": {name: _described(name) for name in SPEC_COLUMNS},
        "neighbours": [name for name in SPEC_COLUMNS if name in varying(rows)],
        "curves": {
            **{name: _curve(name, HISTORY) for name in CURVES},
            **{name: _curve(name, COURSE) for name in SIGNALS},
        },
        "smoothing": SMOOTHING_STEPS,
        "cells": listed,
    }


def _described(name: str) -> dict[str, Any]:
    column = COLUMNS[name]
    return {"label": column.label, "meaning": column.meaning, "unit": column.unit, "digits": column.digits}


def _column(name: str, shown: bool) -> dict[str, Any]:
    numeric = str(COLUMNS[name].kind) in ("int64", "double")
    return {"key": name, **_described(name), "numeric": numeric, "shown": shown, "setting": name in SPEC_COLUMNS}


def _curve(name: str, schema: Any) -> dict[str, str]:
    label = _CURVE_LABELS.get(name, COLUMNS[name].label if name in COLUMNS else name)
    meaning = schema.field(name).metadata[b"unit"].decode()
    return {"label": label, "meaning": meaning, "of": "course" if schema is COURSE else "history"}


def curves(layout: Layout, cell: Cell) -> dict[str, dict[str, list[Any]]]:
    """A cell's curves: ``history`` (means of 10 steps, thinned) and ``course``; empty where it has none.

    Steps are multiples of one stride, the same for all cells of equal length, so that seeds can be averaged.
    """
    history = read_history(layout, cell.name)
    found = {"history": history_curves(history, cell.max_steps)} if len(history) else {}
    if layout.course(cell.name).exists():
        frame = read_table(layout.course(cell.name), COURSE)
        if len(frame):
            found["course"] = {"step": frame["step"].tolist()} | {
                name: [plain(value) for value in frame[name].tolist()] for name in SIGNALS
            }
    return found


def history_curves(history: pd.DataFrame, max_steps: int) -> dict[str, list[Any]]:
    """Smoothed and thinned curves of a history; those that are 0 all along are left out."""
    stride = max(1, math.ceil(max_steps / MOST_POINTS))
    steps = history["step"].tolist()
    places = [i for i, step in enumerate(steps) if step % stride == 0 or i in (0, len(steps) - 1)]
    drawn: dict[str, list[Any]] = {"step": [int(steps[i]) for i in places]}
    for name in CURVES:
        values = history[name].tolist()
        if any(values):
            means = smoothed(values, SMOOTHING_STEPS)
            drawn[name] = [plain(means[i]) for i in places]
    return drawn


def evidence(metrics: Path, base_metrics: Path) -> list[dict[str, Any]]:
    """What a cell was judged by: each signal beside its limits, the base's own figure and those of its further draws.

    Worst first, as the verdict has them; empty where nothing was judged.
    """
    judged: Sequence[Mapping[str, Any]] = read_json(metrics)["evidence"] if metrics.exists() else ()
    draws = read_json(base_metrics)["other_draws"] if base_metrics.exists() else []
    others: dict[str, list[float]] = {}
    for draw in draws:
        for signal in draw.get("evidence", ()):
            others.setdefault(signal["signal"], []).append(plain(signal["value"]))
    return [
        {
            **{key: plain(each[key]) for key in ("value", "base", "borderline", "degenerate")},
            "label": each["label"],
            "signal": _described(RENAMED.get(each["signal"], each["signal"])),
            "draws": others.get(each["signal"], []),
        }
        for each in judged
    ]


def base_figures(layout: Layout, base_id: str) -> Row | None:
    """A base's own figures by column; None before it is measured."""
    path = layout.base_metrics(base_id)
    if not path.exists():
        return None
    return {name: plain(value) for name, value in base_row(base_id, read_json(path)).items() if name in COLUMNS}
