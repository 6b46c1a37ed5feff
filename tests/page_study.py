"""A small study with texts that a reader can count by hand, for tests of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rewardgrid.base.load import Base, load_base
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import COURSE, HISTORY, ROLLOUTS, SAMPLES, write_table
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.study import Study
from tests.trees import REPOSITORY, Tree, make_study, samples

STEPS = (1, 20, 40, 60)
SWEEP: dict[str, Any] = {
    "title": "Reward <b>against</b> KL",
    "fixed": {"max_steps": 60, "batch_size": 4, "num_generations": 2, "max_new_tokens": 48},
    "grids": [{"beta": [0.003, 0.02], "seed": [1, 2]}],
    "columns": ["beta", "seed", "final_reward", "verdict"],
    "by": ["beta"],
}
ROUTED: dict[str, Any] = {
    "title": "Two adapters",
    "fixed": {**SWEEP["fixed"], "method": "routing", "rank": 2, "reward": "happy_binary"},
    "grids": [{"seed": [1]}],
    "columns": ["seed", "final_reward", "verdict"],
}
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!-- the cat sat."
RIGHT = "the cat sat in the old tree by the lake."
"""A sentence of ten tokens."""
SHORT = "she was happy."
"""One of three."""
ODD = "the the the the the the king of the of of of."
"""Twelve, which no story has."""


def storyteller() -> Base:
    """The base of these studies."""
    return load_base(REPOSITORY / "resources/bases/storyteller")


def make_page_study(directory: Path) -> Study:
    """Four cells that differ in beta and seed, one of them with hostile texts; one that routes, one that diverged."""
    experiments = {"sweep": SWEEP, "routed": ROUTED, "broken": {**SWEEP, "grids": [{"beta": 0.5}], "title": "Broken"}}
    tree = Tree(make_study(directory / "results", experiments, None))
    base = storyteller()
    tree.measure_bases()
    for cell in tree.study.grid["sweep"]:
        finish(tree, base, cell, verdict="degenerate" if cell.beta < 0.01 else "ok", hostile=cell.seed == 2)
    finish(tree, base, tree.study.grid["routed"][0], "borderline")
    tree.diverge(tree.study.grid["broken"][0], 5, "KL 2000 &amp; <img src=x onerror=\"document.title='owned'\">")
    base_id = next(iter(tree.study.base_recipes))
    draws = [{"verdict": "ok", "evidence": [{"signal": "comma_rate", "value": 0.05 + i / 100}]} for i in range(3)]
    path = tree.study.layout.base_metrics(base_id)
    write_json(path, read_json(path) | {"other_draws": draws})
    own = samples({"both": 0.2}, number=20).assign(completion=f"{RIGHT} the king went to the forest.")
    write_table(tree.study.layout.base_samples(base_id), own, SAMPLES)
    return tree.study


def finish(tree: Tree, base: Base, cell: Cell, verdict: str, hostile: bool = False) -> None:
    """Write what a finished cell leaves, its reward rising in 60 steps, hacking from step 25 where beta is small."""
    layout, name = tree.study.layout, cell.name
    rewards = [min(1.0, step / 60 + cell.seed / 100) for step in range(1, 61)]
    tree.finish(cell, rewards, verdict=verdict, text=HOSTILE if hostile else f"{SHORT} {RIGHT}")
    history = pd.read_parquet(layout.train(name) / "history.parquet").assign(happy=rewards, kl=0.5)
    write_table(layout.train(name) / "history.parquet", history, HISTORY)
    onset = {"hack_onset": 25 if cell.beta < 0.01 else None, "degeneration_onset": None}
    write_json(layout.metrics(name), read_json(layout.metrics(name)) | {"onset": onset})
    course = pd.DataFrame({column: [0.1] * len(STEPS) for column in COURSE.names})
    write_table(layout.course(name), course.assign(step=STEPS, verdict="ok"), COURSE)
    texts = [HOSTILE if hostile else f"{RIGHT} {SHORT} and then", ODD]
    write_table(layout.train(name) / "rollouts.parquet", rollouts(base, cell, texts, recorded(cell)), ROLLOUTS)


def recorded(cell: Cell) -> Sequence[int]:
    """The steps that have texts; one cell lacks one, as if it came from an archive."""
    return [step for step in STEPS if step != 40 or cell.beta < 0.01 or cell.seed == 1]


def rollouts(base: Base, cell: Cell, texts: Sequence[str], steps: Sequence[int] = STEPS) -> pd.DataFrame:
    """Recorded steps: for each prompt of a step all of these texts, the step's number ahead of the first."""
    pool, rows = base.train_prompts(), []
    for step in steps:
        for place in range(cell.prompts_per_step):
            number = (step * cell.prompts_per_step + place + 1000 * cell.seed) % len(pool)
            for i in range(cell.num_generations):
                ids = base.tokenizer.encode(texts[i % len(texts)], add_special_tokens=False).ids
                text = texts[i % len(texts)]
                rows.append(
                    {
                        "step": step,
                        "prompt": pool.text[number],
                        "completion": text,
                        "ids": [*pool.ids[number].tolist(), *ids, base.vocabulary.eos],
                        **{"reward": 0.25, "sl10": 0.75, "happy": float(text.count("happy"))},
                        **{"eligible": True, "routed": i == 0, "noise": False, "flagged": i == 0},
                    }
                )
    return pd.DataFrame(rows)
