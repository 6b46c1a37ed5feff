"""PEFT's layout of LoRA adapters: the names of their tensors, and their ``adapter_config.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rewardgrid.lm.adapters import Adapter, total_rank
from rewardgrid.lm.hf.layout import MODULES, ROTATED, pair, unpair
from rewardgrid.lm.model import Weights
from rewardgrid.lm.shape import Shape

PREFIX = "base_model.model."
"""Before the name of a module of the model that is adapted."""

TARGETS = sorted(module.split(".")[1] for kind in MODULES.values() for module in kind)
"""The modules of a LLaMA or Qwen2 that have an adapter: all projections."""


def to_peft(shape: Shape, weights: Weights, adapters: Sequence[Adapter], name: str, cell: int = 0) -> dict[str, Tensor]:
    """One adapter's tensors under PEFT's names (``base_model.model.model.layers.0...lora_A.weight``)."""
    start = total_rank(adapters[: [adapter.name for adapter in adapters].index(name)])
    own = next(adapter for adapter in adapters if adapter.name == name)
    tensors = {}
    for key, kind in shape.projections():
        layer = key.split(".")[0]
        a, b = weights[f"{key}.A"][cell], weights[f"{key}.B"][cell]
        channels = b.shape[-1]
        for place, (module, out) in enumerate(zip(MODULES[kind], b.split(shape.segments[kind]), strict=True)):
            left = a[place * channels + start :][: own.rank]
            right = out[:, start : start + own.rank]
            if kind == "down":
                left = left[:, : shape.mlp_width]
            if kind == "gate_up":
                right = right[: shape.mlp_width]
            if module in ROTATED:
                right = unpair(shape, right)
            prefix = f"{PREFIX}model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = left.detach().contiguous().clone()
            tensors[f"{prefix}.lora_B.weight"] = right.detach().contiguous().clone()
    return tensors


def from_peft(shape: Shape, adapters: Sequence[tuple[Adapter, Mapping[str, Tensor]]]) -> Weights:
    """The inverse of :func:`to_peft`: several adapters' tensors side by side, with C = 1."""
    weights: Weights = {}
    for key, kind in shape.projections():
        layer = key.split(".")[0]
        left, right = [], []
        for module, size in zip(MODULES[kind], shape.segments[kind], strict=True):
            prefix = f"{PREFIX}model.layers.{layer}.{module}"
            row = []
            for _, tensors in adapters:
                a, b = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
                left.append(torch.nn.functional.pad(a, (0, shape.inputs[kind] - a.shape[1])))
                if module in ROTATED:
                    b = pair(shape, b)
                row.append(torch.nn.functional.pad(b, (0, 0, 0, size - b.shape[0])))
            right.append(torch.cat(row, 1))
        weights[f"{key}.A"] = torch.cat(left).unsqueeze(0)
        weights[f"{key}.B"] = torch.cat(right).unsqueeze(0)
    return weights


def peft_config(adapter: Adapter, names: Iterable[str]) -> dict[str, object]:
    """The ``adapter_config.json`` that lets PEFT load this adapter, whose tensors have these names."""
    modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in names}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "base_model_name_or_path": None,
    }
