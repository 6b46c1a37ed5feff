"""A language model that is not computed here: a module that turns token ids into logits, called as a whole.

Its weights are those of its state dict, by name and without a cell axis: one policy at a time. They are given on each
call, so a policy and its base share one module.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rewardgrid.lm.shape import Shape

ROWS = 8
"""Sequences whose full distributions are in memory at once."""


class Foreign:
    """What a model of another kind is to the functions of this package, in place of a :class:`Shape`.

    The module takes ``input_ids``, ``attention_mask`` and, where it can, ``past_key_values``, as in transformers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)
        self.caches = "past_key_values" in inspect.signature(module.forward).parameters

    def __call__(self, weights: Mapping[str, Tensor], ids: Tensor, seen: int = 0, **more: Any) -> Any:
        """The module's output for ids (B, T), which come after so many that it has seen."""
        mask = torch.ones(len(ids), seen + ids.shape[1], dtype=torch.long, device=ids.device)
        return functional_call(self.module, dict(weights), (), {"input_ids": ids, "attention_mask": mask, **more})

    def logits(self, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Next-token logits of whole sequences: ids (1, B, T) -> (1, B, T, V)."""
        found: Tensor = self(weights, ids[0]).logits
        return found.unsqueeze(0)

    def token_logps(self, weights: Mapping[str, Tensor], ids: Tensor, prompt_length: int) -> Tensor:
        """Log-probability (1, B, T - prompt_length), in nats, of each token of the completions."""
        parts = []
        for rows in ids.split(ROWS, 1):
            predicted = self.logits(weights, rows)[:, :, prompt_length - 1 : -1].float().log_softmax(-1)
            parts.append(predicted.gather(-1, rows[:, :, prompt_length:, None]).squeeze(-1))
        return torch.cat(parts, 1)

    def decoder(self, weights: Mapping[str, Tensor]) -> Cached:
        """The model a token at a time."""
        return Cached(self, weights)


class Cached:
    """A foreign model a token at a time, with its own cache; without one, it reads the whole sequences again.

    As :class:`rewardgrid.lm.sampler.Decoder`.
    """

    def __init__(self, model: Foreign, weights: Mapping[str, Tensor]) -> None:
        self.model, self.weights = model, weights

    def begin(self, sequences: int, positions: int) -> None:
        """Nothing has been read yet; a cache makes its own room."""
        self.cache: Any = None
        self.seen: Tensor | None = None

    def __call__(self, ids: Tensor, start: int) -> Tensor:
        """Feed ids (B, T) at positions start, start+1, ...; returns the logits (B, V) of the token after them."""
        self.seen = ids if self.seen is None else torch.cat([self.seen, ids], 1)
        if self.cache is not None:
            out = self.model(self.weights, ids, start, past_key_values=self.cache, use_cache=True)
        else:
            out = self.model(self.weights, self.seen, **({"use_cache": True} if self.model.caches else {}))
        cache = getattr(out, "past_key_values", None)
        self.cache = cache if hasattr(cache, "batch_select_indices") else None
        found: Tensor = out.logits[:, -1].float()
        return found

    def keep(self, rows: Tensor) -> None:
        """Go on with some sequences only: rows (B,) of booleans."""
        assert self.seen is not None
        self.seen = self.seen[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows.nonzero().squeeze(1))


Architecture = Shape | Foreign
"""What says how a model's weights are computed with."""
