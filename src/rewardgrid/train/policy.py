"""The trained tensors of C cells as one flat vector per cell, seen through named views.

One vector makes the optimizer, the gradient norm and a checkpoint one operation each, and lets cells be frozen by a
mask. The views share its memory: autograd accumulates into the flat gradient directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rewardgrid.lm.adapters import Adapter, adapted, channel_scale, initial, merge, total_rank
from rewardgrid.lm.hf.layout import to_hf
from rewardgrid.lm.hf.peft import to_peft
from rewardgrid.lm.model import Project, Weights, head, multiply
from rewardgrid.lm.shape import KINDS, Shape
from rewardgrid.study.cell import Cell
from rewardgrid.train.routing import FORGET, active_adapters, adapters_of


class Policy:
    """What a pack of cells trains: all weights (``full``), or adapters on a frozen base.

    Attributes:
        parameters: (C, P) flat trained values.
        gradient: (C, P) their gradient, accumulated by ``backward``.
        views: the same memory by name, each (C, ...), requiring gradients.
        head: the output matrix (C, V, H) among them, if it is trained.
    """

    def __init__(self, shape: Shape, base: Weights, cells: Sequence[Cell], compute: torch.dtype | None = None) -> None:
        """Start from the base; cells must agree in method and, on a pack of width C, are padded to the largest rank.

        Args:
            base: frozen weights with C = 1.
            compute: arithmetic of the forward pass, if it is not that of the parameters (bfloat16): see :meth:`cast`.
        """
        self.shape, self.base, self.compute = shape, base, compute
        self.adapters: list[tuple[Adapter, ...]] = [adapters_of(cell) for cell in cells]
        self.width = max(total_rank(adapters) for adapters in self.adapters)
        like = base["embed"]
        if not self.width:
            start = {key: weight.expand(len(cells), *weight.shape[1:]) for key, weight in base.items()}
        else:
            fresh = [
                self._widen(initial(shape, adapters, cell.seed), total_rank(adapters))
                for adapters, cell in zip(self.adapters, cells, strict=True)
            ]
            start = {key: torch.cat([weights[key] for weights in fresh]) for key in fresh[0]}
        sizes = [value[0].numel() for value in start.values()]
        self.parameters = torch.empty(len(cells), sum(sizes), dtype=like.dtype, device=like.device)
        self.gradient = torch.zeros_like(self.parameters)
        self.views: Weights = {}
        place = 0
        for (key, value), size in zip(start.items(), sizes, strict=True):
            view = self.parameters[:, place : place + size].view(value.shape)
            view.copy_(value)
            view = view.detach().requires_grad_()
            view.grad = self.gradient[:, place : place + size].view(value.shape)
            self.views[key] = view
            place += size
        self.head = None if self.width else head(self.views)
        self.scale = self.scale_of(None) if self.width else None
        self.is_forget = self._channels_of(FORGET) if self.width else None

    def _widen(self, weights: Weights, rank: int) -> Weights:
        """Pad one cell's adapters with zero channels to the pack's width."""
        extra, padded = self.width - rank, {}
        for key, _ in self.shape.projections():
            a, b = weights[f"{key}.A"], weights[f"{key}.B"]
            parts = a.split(rank, dim=1)
            padded[f"{key}.A"] = torch.cat([torch.nn.functional.pad(part, (0, 0, 0, extra)) for part in parts], 1)
            padded[f"{key}.B"] = torch.nn.functional.pad(b, (0, extra))
        return padded

    def _channels_of(self, name: str) -> Tensor:
        """(C, R) True for the channels of the adapter of that name."""
        rows = [
            [adapter.name == name for adapter in adapters for _ in range(adapter.rank)]
            + [False] * (self.width - total_rank(adapters))
            for adapters in self.adapters
        ]
        return torch.tensor(rows, device=self.parameters.device)

    def own(self, flat: Tensor, cell: int) -> Weights:
        """One cell's part of a flat array (C, P) by name, as views, without the pack's padding channels."""
        rank, named, place = total_rank(self.adapters[cell]), {}, 0
        for key, view in self.views.items():
            part = flat[cell, place : place + view[0].numel()].view(view.shape[1:])
            place += view[0].numel()
            if key.endswith(".A"):
                part = part.view(-1, self.width, part.shape[-1])[:, :rank]
            elif key.endswith(".B"):
                part = part[:, :rank]
            named[key] = part
        return named

    def scale_of(self, mode: str | None) -> Tensor:
        """(C, R) factor of every channel with the adapters of that evaluation mode switched on (None: all)."""
        active = active_adapters(mode) if mode else None
        rows = [channel_scale(adapters, active, self.width) for adapters in self.adapters]
        return torch.stack(rows).to(self.parameters)

    @torch.no_grad()
    def merged(self, mode: str | None = None) -> Weights:
        """Weights to sample from: (C or 1, ...), adapters added in.

        On a GPU they are in the arithmetic of the forward pass. On a CPU, where a token is few products of few rows,
        they stay as they are: what is sampled is the policy itself then.
        """
        weights = (
            self.views
            if self.scale is None
            else merge(self.shape, self.base, self.views, self.scale if mode is None else self.scale_of(mode))
        )
        return self.cast(weights) if self.parameters.is_cuda else dict(weights)

    def frozen(self) -> Weights:
        """The base's weights, laid out like the policy's: where that has an array per cell, so has this.

        Both then go through the same products, which round alike: a policy that equals its base has a KL of exactly 0.
        """
        own = [key for key, _ in self.shape.projections()] if self.width else list(self.base)
        repeated = {key: self.base[key].repeat(len(self.parameters), *[1] * (self.base[key].ndim - 1)) for key in own}
        return self.cast(self.base | repeated)

    def cast(self, weights: Weights) -> Weights:
        """Weights in the arithmetic of the forward pass.

        On a GPU that is all of it. On a CPU it is the products of projections; what lies between them stays in the
        parameters' type, because passes over activations are not faster in bfloat16.
        """
        if self.compute is None:
            return weights
        return {
            key: weight.to(self.compute) if weight.is_cuda or key.split(".")[-1] in KINDS else weight
            for key, weight in weights.items()
        }

    def trainable(self, reach: Tensor | None) -> tuple[Weights, Project]:
        """Weights and projections for the update's forward pass.

        Args:
            reach: (C, B, R) whose parameters each sequence's gradient reaches; None: all.
        """
        views = self.cast(self.views)
        if self.scale is None:
            return views, lambda key, h: multiply(h, views[key])
        weights = self.cast(self.base) if self.parameters.is_cuda else self.base
        scale = self.scale.to(weights["embed"].dtype)
        mask = None if reach is None else reach.to(scale.dtype)

        def project(key: str, h: Tensor) -> Tensor:
            segments = self.shape.segments[key.split(".")[1]]
            a, b = views[f"{key}.A"], views[f"{key}.B"]
            return adapted(h, weights[key], a, b, scale, segments, mask, self.compute)

        return weights, project

    def export(self, cell: int) -> dict[str, dict[str, Tensor]]:
        """One cell's weights under the names of Hugging Face (``model``) or PEFT (one entry per adapter), in fp32."""
        adapters = self.adapters[cell]
        own = {key: view[cell : cell + 1].detach().float().cpu() for key, view in self.views.items()}
        if not adapters:
            return {"model": to_hf(self.shape, own)}
        return {adapter.name: to_peft(self.shape, own, adapters, adapter.name) for adapter in adapters}
