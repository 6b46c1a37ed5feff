"""What trains a cell. Every engine has one entry point: ``train(cells, base, directories, recording)``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rewardgrid.study.cell import Engine


def engine(name: Engine) -> Callable[..., object]:
    """The ``train`` function of that engine; imported only now, because trl takes seconds to load."""
    train: Callable[..., object] = import_module(f"rewardgrid.train.engines.{name}").train
    return train
