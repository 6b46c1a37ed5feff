"""Code of one's own for tests: a file with some functions, and cells that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewardgrid.study.cell import Cell
from rewardgrid.study.own import Code, OwnFunction, OwnReward, code_of
from tests.tiny import make_cell, routing_cell

SOURCE = """
import torch

def words(completions, **_):
    return [len(text.split()) / 10 for text in completions]

def tokens(completion_ids, prompt_ids):
    return torch.tensor([len(row) / 20 for row in completion_ids]) + 0 * len(prompt_ids)

def long(completions, prompts, **_):
    return [len(text.split()) > 8 for text in completions]
"""


def source(directory: Path, text: str = SOURCE) -> Path:
    """Write a file of one's own."""
    path = directory / "mine.py"
    path.write_text(text)
    return path


def function(path: Path, name: str) -> Code:
    """A function of that file by its own name."""
    return code_of(name, OwnFunction(python=f"{path}:{name}"))


def own_cell(path: Path, name: str = "words", **changes: Any) -> Cell:
    """A cell that is paid by that function."""
    return make_cell(reward=name, own=(function(path, name),), **changes)


def own_routing(path: Path, **changes: Any) -> Cell:
    """A routing cell with a sum as its reward, a base reward and a detector of its own."""
    total = code_of("total", OwnReward(sum=("words", "sentence_length_10_smooth"), reward_weights=(0.5, 2.0)))
    codes = (function(path, "long"), function(path, "tokens"), total, function(path, "words"))
    return routing_cell(
        **{"reward": "total", "base_reward": "tokens", "detector": "long", "own": codes, "hack_threshold": None}
        | changes
    )
