"""What trains a cell. Every engine has one entry point: ``train(cells, base, directories, recording)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from rewardgrid.lm.hf.config import NotNative, shape_of
from rewardgrid.study.cell import Cell, Engine
from rewardgrid.study.errors import UserError


def engine(name: Engine) -> Callable[..., object]:
    """The ``train`` function of that engine; imported only now, because trl takes seconds to load."""
    train: Callable[..., object] = import_module(f"rewardgrid.train.engines.{name}").train
    return train


def check_engine(cell: Cell, config: Mapping[str, Any], source: str) -> None:
    """Make sure that a cell's engine can train the model of this ``config.json``.

    Raises:
        UserError: the model is one that transformers alone computes, and the cell's engine is native or its method is
            routing.
    """
    try:
        shape_of(config, source)
    except KeyError:
        return  # which is told when the base is built
    except NotNative as why:
        if cell.engine == "native" and not cell.is_routing:
            raise UserError(f"{why} (base {cell.base})") from None
        if cell.is_routing:
            raise UserError(
                f'{source}: method: read "routing", which needs a model that the native engine computes, and this is a '
                f"{config.get('model_type')}: write method: full or lora, or choose a LLaMA or Qwen2 (base {cell.base})"
            ) from None
