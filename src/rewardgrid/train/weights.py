"""A cell's trained weights on disk, as the libraries of the field read them, and back as tensors.

``full`` is a Hugging Face model directory; ``lora`` a PEFT adapter directory; ``routing`` two of them, ``retain/`` and
``forget/``. safetensors only.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.adapters import Adapter, channel_scale, merge
from rewardgrid.lm.foreign import Architecture, Foreign
from rewardgrid.lm.hf.config import NotNative, shape_of
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.hf.models import open_foreign, with_adapter
from rewardgrid.lm.hf.peft import from_peft, peft_config
from rewardgrid.lm.model import Weights
from rewardgrid.lm.shape import Shape
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import atomic_write, sha256, write_json
from rewardgrid.train.routing import active_adapters, adapters_of

MODEL_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: it is missing or corrupt.
    """
    if not path.exists():
        raise UserError(f"{path}: no such weights file; delete its directory and run again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: corrupt weights ({error}); delete its directory and run again") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically."""
    with atomic_write(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata={"format": "pt"})


def base_weights(base: Base, dtype: torch.dtype = torch.float32) -> tuple[Shape, Weights]:
    """The frozen base as tensors with C = 1.

    Raises:
        NotNative: it is not computed here.
    """
    shape = shape_of(base.config, str(base.model_dir / "config.json"))
    tensors: dict[str, Tensor] = {}
    for path in base.weights:
        tensors |= load_tensors(path)
    try:
        weights = from_hf(shape, tensors)
    except KeyError as error:
        raise UserError(f"{base.model_dir}: the weights lack {error}; delete {base.directory} and run again") from None
    return shape, {key: weight.to(dtype) for key, weight in weights.items()}


def frozen_base(base: Base) -> tuple[Architecture, Weights]:
    """The frozen base, whatever computes it: as :func:`base_weights`, or as transformers has it."""
    try:
        return base_weights(base)
    except NotNative:
        return open_foreign(base.model_dir)


def save_model(directory: Path, base: Base, tensors: Mapping[str, Tensor]) -> None:
    """Write an ordinary Hugging Face model directory: the base's configuration and tokenizer with these weights."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(base.model_dir.iterdir()):
        if path.suffix in (".json", ".txt") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, directory / path.name)
    save_tensors(directory / MODEL_FILE, tensors)


def save_adapter(directory: Path, adapter: Adapter, tensors: Mapping[str, Tensor], base: Base) -> None:
    """Write a PEFT adapter directory."""
    directory.mkdir(parents=True, exist_ok=True)
    config = peft_config(adapter, tensors) | {"base_model_name_or_path": base.name}
    write_json(directory / "adapter_config.json", config)
    save_tensors(directory / ADAPTER_FILE, tensors)


def save_weights(
    directory: Path, cell: Cell, base: Base, tensors: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, str]:
    """Write a cell's weights.

    Args:
        tensors: ``{"model": Hugging Face tensors}`` for full cells, else one entry per adapter with PEFT tensors.

    Returns:
        SHA-256 of every weights file by its path below the directory.
    """
    adapters = adapters_of(cell)
    if not adapters:
        save_model(directory, base, tensors["model"])
    for adapter in adapters:
        save_adapter(adapter_directory(directory, adapters, adapter), adapter, tensors[adapter.name], base)
    return {str(path.relative_to(directory)): sha256(path) for path in sorted(directory.rglob("*.safetensors"))}


def adapter_directory(directory: Path, adapters: Sequence[Adapter], adapter: Adapter) -> Path:
    """Where an adapter lies: the directory itself if it is the only one."""
    return directory if len(adapters) == 1 else directory / adapter.name


def load_policy(directory: Path, cell: Cell, base: Base, mode: str = "both") -> tuple[Architecture, Weights]:
    """A trained cell as merged weights, ready to sample from.

    Args:
        directory: the cell's ``train/weights``.
        mode: which adapters are switched on (routing cells): both, retain_only, forget_only.
    """
    shape, weights = frozen_base(base)
    adapters = adapters_of(cell)
    if isinstance(shape, Foreign):
        if adapters:
            return shape, with_adapter(base.model_dir, directory)
        return shape, weights | load_tensors(directory / MODEL_FILE)
    if not adapters:
        return shape, from_hf(shape, load_tensors(directory / MODEL_FILE))
    found = [
        (adapter, load_tensors(adapter_directory(directory, adapters, adapter) / ADAPTER_FILE)) for adapter in adapters
    ]
    active = active_adapters(mode) if cell.is_routing else None
    scale = channel_scale(adapters, active).unsqueeze(0)
    return shape, merge(shape, weights, from_peft(shape, found), scale)
