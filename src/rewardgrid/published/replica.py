"""Which of our cells have the published settings, wherever they stand."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewardgrid.published.data import Tables
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Reference
from rewardgrid.report.tables import Row, spec_row
from rewardgrid.study.cell import Cell

_ROUTING: dict[str, Any] = {
    "method": "routing",
    "reward": "sentence_length_10_smooth_with_happy",
    "rank": 32,
    "lr": 3e-4,
    "beta": 0.05,
    "batch_size": 128,
    "max_steps": 100,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "reward_sweep": {"method": "full", "beta": (0.003, 0.01, 0.02), "repetition_penalty": (1.05, 1.1)},
    "exact_match": {
        "method": "full",
        "reward": ("sentence_length_10", "sentence_length_5"),
        "repetition_penalty": 1.2,
    },
    "lora_rank": {"method": "lora", "rank": (1, 2, 4, 8, 16, 32, 64), "lr": (3e-4, 1e-4, 3e-5, 1e-5)},
    "batch_size": {"method": "lora", "rank": (1, 2, 4, 8), "lr": (3e-4, 1e-4), "batch_size": (32, 64, 128)},
    "routing_baseline": {**_ROUTING, "method": "lora", "rank": 64, "max_steps": 200},
    "routing_symmetric": _ROUTING,
    "routing_imperfect": {**_ROUTING, "routing_frac": 0.2, "max_steps": 400},
    "routing_low_rank": {**_ROUTING, "rank": (4, 1), "forget_rank": (4, 1), "max_steps": 400},
    "routing_asymmetric": {**_ROUTING, "forget_rank": (16, 4, 1)},
    "routing_label_noise": {**_ROUTING, "label_noise_frac": 0.1, "max_steps": 400},
}
"""What the cells of each published experiment share beyond the defaults of ``Cell``, which are the published
ones too. A tuple holds alternatives."""

UNPUBLISHED = frozenset(
    [
        "seed",
        "base",
        "base_recipe",
        "prompt_eos",
        "max_grad_norm",
        "kl_cap",
        "eval_every",
        "eval_samples",
        "eval_modes",
        "engine",
        "precision",
        "results_version",
    ]
)
"""Spec fields that do not decide whether a cell is a published one. Seeds are samples, the base is named
beside each figure, and the others were not part of what was published."""


def is_published(row: Mapping[str, Any], experiment: str) -> bool:
    """Whether a cell's settings are those of a published experiment."""
    return all(
        row[name] in value if isinstance(value, tuple) else row[name] == value
        for name, value in _published_spec(experiment).items()
        if name not in UNPUBLISHED
    )


@functools.cache
def _published_spec(experiment: str) -> Mapping[str, Any]:
    """The whole spec of a published experiment's cells; a tuple holds alternatives."""
    wanted = SETTINGS[experiment]
    one = Cell(**{name: value[0] if isinstance(value, tuple) else value for name, value in wanted.items()})
    return spec_row(one) | wanted


def replica(evidence: Evidence, base: str) -> Evidence:
    """The evidence of a replica of the published study: each experiment's cells of one base, by their settings."""
    ran = {
        row["cell"]: row
        for table in evidence.tables.values()
        for row in table
        if row["state"] != "missing" and row["base"] == base
    }
    tables = {name: [row for row in ran.values() if is_published(row, name)] for name in SETTINGS}
    return replace(evidence, tables=tables)


_KEYS = {"reward_sweep": ("beta", "repetition_penalty", "seed"), "lora_rank": ("rank", "lr", "seed")}
"""What a line of a published table and a cell of ours have in common."""


def references(tables: Tables, experiment: str, rows: Sequence[Row]) -> tuple[Reference, ...]:
    """The published figures of an experiment beside our cells of the same settings, finished or not, for pictures."""
    keys = _KEYS.get(experiment, ())
    ours = {tuple(row[key] for key in keys): row for row in rows if keys and is_published(row, experiment)}
    return tuple(
        Reference(cell, line.get("kl"), line["reward"], line["verdict"], "published")
        for line in (tables[f"{experiment}.csv"] if keys else ())
        if (cell := ours.get(tuple(line[key] for key in keys))) is not None
    )
