"""How far a study is, and how long the rest of its training will take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import NamedTuple

from rewardgrid.study.bases import Recipe, model_config
from rewardgrid.study.cell import Cell, Engine
from rewardgrid.study.files import number, object_in, read_bounded
from rewardgrid.study.layout import Layout, checkpointed, done
from rewardgrid.study.study import Study
from rewardgrid.study.text import count

Workload = tuple[object, ...]

STATES = ("done", "trained", "started", "waiting")

RULE_OF_THUMB: dict[Engine, tuple[float, float]] = {"trl": (0.25, 1.25), "native": (0.1, 1.1)}
"""Seconds of a step of 32 completions of 128 tokens on one CPU thread: (fixed, per million parameters)."""

STATUS_BYTES = 2**20

SIZES = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "vocab_size"),
)
"""Of a model, in its Hugging Face configuration."""


class Rest(NamedTuple):
    """The training that a cell still needs."""

    steps: int
    """After its newest checkpoint."""
    pace: float
    """Seconds per step, as far as can be told beforehand."""


@dataclass(frozen=True)
class Forecast:
    """How far a study is, and what is left of it."""

    text: str
    """One line on the states of the cells and one on the training that is left, with what it rests on."""
    rests: Mapping[str, Rest]
    """Of the cells that are not trained, by name."""


def forecast(study: Study) -> Forecast:
    """How far a study is, and what is left of it."""
    states = {name: done(study.layout, cell) for name, cell in study.cells.items()}
    counts = Counter(states.values())
    shown = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    left = [cell for name, cell in study.cells.items() if states[name] in ("started", "waiting")]
    rests: dict[str, Rest] = {}
    lines = [f"{study.title}: {count(len(states), 'cell')} ({shown})."]
    if left:
        known = measured(study.layout, study.cells.values())
        for cell in left:
            steps = cell.max_steps - (checkpointed(study.layout, cell.name) or 0)
            rests[cell.name] = Rest(max(steps, 0), known.get(workload(cell)) or rule_of_thumb(study, cell))
        seen = sum(workload(cell) in known for cell in left)
        parts = []
        if seen:
            parts.append(f"{seen} by the mean seconds per step of finished cells of their shape")
        if seen < len(left):
            parts.append(f"{len(left) - seen} by a rule of thumb for one CPU thread")
        lines.append(
            f"Training left: about {duration(seconds_of(rests.values()))} one after another "
            f"(cells: {', '.join(parts)}); divide by the number of cells at a time."
        )
    return Forecast("\n".join(lines), rests)


def seconds_of(rests: Iterable[Rest]) -> float:
    """Of so much training, one cell after another."""
    return sum(rest.steps * rest.pace for rest in rests)


def workload(cell: Cell) -> Workload:
    """What decides the time of a step, as far as it can be told beforehand."""
    return (
        *(cell.base_id, cell.engine, cell.precision, cell.method),
        *(cell.batch_size, cell.max_new_tokens, cell.prompt_length),
    )


def measured(layout: Layout, cells: Iterable[Cell]) -> dict[Workload, float]:
    """Mean seconds per step of the finished cells of each workload; what cannot be read is left out."""
    times: dict[Workload, list[float]] = defaultdict(list)
    for cell in cells:
        try:
            status = object_in(read_bounded(layout.train(cell.name) / "status.json", STATUS_BYTES)) or {}
        except OSError:
            continue
        seconds, steps = number(status.get("seconds")), number(status.get("steps_done"))
        if seconds and steps:
            times[workload(cell)].append(seconds / steps)
    return {key: fmean(values) for key, values in times.items()}


def rule_of_thumb(study: Study, cell: Cell) -> float:
    """Seconds per step on one CPU thread: linear in the tokens of a rollout and in the model's size."""
    fixed, slope = RULE_OF_THUMB[cell.engine]
    tokens = cell.batch_size * cell.max_new_tokens
    return (fixed + slope * megaparameters(study.bases[cell.base])) * tokens / (32 * 128)


@cache
def megaparameters(recipe: Recipe) -> float:
    """Size of a base in millions of parameters; one whose files are not here yet counts like the published one."""
    config = model_config(recipe)
    try:
        layers, hidden, heads, kv_heads, mlp_width, vocabulary = (config[key] for key in SIZES)
    except KeyError:
        return 1.25
    attention = 2 * hidden**2 * (1 + kv_heads / heads)
    block = attention + 3 * hidden * mlp_width + 2 * hidden
    return float(layers * block + (vocabulary + 1) * hidden) / 1e6


def duration(seconds: float) -> str:
    """A time span in one unit: ``40 s``, ``12 min``, ``3.4 h``, ``5.2 d``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
