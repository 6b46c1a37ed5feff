"""The architecture of a model that is computed here, in numbers alone: no tensors, and nobody's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

KINDS = ("qkv", "o", "gate_up", "down")
"""The projections of a layer; those that read the same input are one matrix."""


@dataclass(frozen=True)
class Scaling:
    """How the frequencies of the rotary embedding are changed for a context longer than the model was first trained on.

    Attributes:
        kind: ``linear``: all are divided by ``factor``. ``llama3``: those that turn less than ``low`` times in the
            first ``context`` are, those that turn more than ``high`` times stay, between them it is a mixture (Llama 3,
            2024). ``yarn``: the same mixture by the number of the frequency, from ``low`` (stays) to ``high``, and
            queries and keys are multiplied by ``attention`` (Peng et al. 2023).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low: float = 0.0
    high: float = 0.0
    context: float = 0.0
    attention: float = 1.0


@dataclass(frozen=True)
class Shape:
    """The architecture: its sizes, and which of its projections have biases."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int
    context: int
    rope_theta: float
    norm_eps: float
    tied: bool
    biases: tuple[str, ...] = ()
    rope_scaling: Scaling | None = None

    @property
    def mlp_padded(self) -> int:
        """MLP width rounded up to a multiple of 8."""
        return -(-self.mlp_width // 8) * 8

    @property
    def segments(self) -> dict[str, tuple[int, ...]]:
        """Output sizes of the parts of each fused projection."""
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (q, k, k),
            "o": (self.hidden,),
            "gate_up": (self.mlp_padded,) * 2,
            "down": (self.hidden,),
        }

    @property
    def inputs(self) -> dict[str, int]:
        """Input size of each fused projection."""
        return {
            "qkv": self.hidden,
            "o": self.heads * self.head_dim,
            "gate_up": self.hidden,
            "down": self.mlp_padded,
        }

    def projections(self) -> Iterator[tuple[str, str]]:
        """Every fused projection as (its key in the weights, its kind)."""
        for layer in range(self.layers):
            for kind in KINDS:
                yield f"{layer}.{kind}", kind

    def weight_keys(self) -> Iterator[str]:
        """The key of every weight."""
        yield from ("embed", "norm", *([] if self.tied else ["head"]))
        for layer in range(self.layers):
            kinds = ("norm1", "norm2", *(f"{kind}_bias" for kind in self.biases), *KINDS)
            yield from (f"{layer}.{kind}" for kind in kinds)
