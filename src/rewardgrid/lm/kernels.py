"""How a model is computed that reads a token at a time: weights laid out once for many products, and attention.

Both ways take matrices (C or 1, out, in) and biases (C or 1, out), and multiply activations (C, N, in), or (N, in)
where there is one cell only. Attention is that of many small arrays: queries (b, n, k), keys and values (b, m, k), and
optionally which keys lie in the future (n, m) of which queries.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Kernels(Protocol):
    """A way to compute: arrange a weight once, multiply by it often."""

    def matrix(self, weight: Tensor) -> Any:
        """Lay out a matrix for :meth:`multiply` and :meth:`add`."""

    def gates(self, weight: Tensor) -> Any:
        """Lay out the matrices of gate and up, one below the other, for :meth:`gated`."""

    def bias(self, bias: Tensor) -> Tensor:
        """Lay out a bias for :meth:`multiply`."""

    def multiply(self, x: Tensor, matrix: Any, bias: Tensor | None = None) -> Tensor:
        """x W^T, plus the bias."""

    def add(self, x: Tensor, y: Tensor, matrix: Any) -> Tensor:
        """x + y W^T."""

    def gated(self, x: Tensor, gates: Any) -> Tensor:
        """silu(x G^T) * (x U^T)."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, future: Tensor | None = None) -> Tensor:
        """softmax(Q K^T) V: (b, n, k)."""

    def attend_in_part(
        self, queries: Tensor, keys: Tensor, values: Tensor, future: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same where there are other keys besides, and log sum exp(Q K^T) (b, n): the weight of this part."""


class Plain:
    """Any type, device and number of cells.

    Matrices lie transposed, (in, out), and without their cell axis where there is one cell only, because products of
    two dimensions are faster than of three.
    """

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self._multiply = torch.mm if cells == 1 else torch.bmm
        self._multiply_add = torch.addmm if cells == 1 else torch.baddbmm

    def matrix(self, weight: Tensor) -> Tensor:
        """(C, in, out), or (in, out)."""
        return weight.mT[0].contiguous() if self.cells == 1 else weight.mT.expand(self.cells, -1, -1).contiguous()

    gates = matrix

    def bias(self, bias: Tensor) -> Tensor:
        """(C, 1, out), or (out,)."""
        return bias[0] if self.cells == 1 else bias.unsqueeze(1)

    def multiply(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """One product."""
        return self._multiply(x, matrix) if bias is None else self._multiply_add(bias, x, matrix)

    def add(self, x: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
        """One product, which begins with x."""
        return self._multiply_add(x, y, matrix)

    def gated(self, x: Tensor, gates: Tensor) -> Tensor:
        """One product for both."""
        gate, up = self.multiply(x, gates).chunk(2, -1)
        return F.silu(gate).mul_(up)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, future: Tensor | None = None) -> Tensor:
        """Two products."""
        return torch.bmm(_scores(queries, keys, future).softmax(-1), values)

    def attend_in_part(
        self, queries: Tensor, keys: Tensor, values: Tensor, future: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two products, and another sum."""
        scores = _scores(queries, keys, future)
        return torch.bmm(scores.softmax(-1), values), scores.logsumexp(-1)


def _scores(queries: Tensor, keys: Tensor, future: Tensor | None) -> Tensor:
    scores = torch.bmm(queries, keys.mT)
    return scores if future is None else scores.masked_fill(future, -torch.inf)


class Packed:
    """bfloat16 on a CPU, one cell: weights in the order in which oneDNN's kernels read them.

    A CPU with AMX multiplies so fast that reordering a matrix on each use, and every pass over activations, is a large
    part of a product's time. torch keeps these operations for itself and promises nothing of them: see :meth:`work`.
    """

    def __init__(self, rows: int) -> None:
        """For products of about this many rows."""
        self.rows = rows

    @staticmethod
    def work(dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this torch has these operations, for this type on this device, and they give what they should."""
        if device.type != "cpu" or dtype != torch.bfloat16:
            return False
        try:
            found, wanted = (_trial(kernels) for kernels in (Packed(2), Plain(1)))
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(found, wanted, rtol=0.05)

    def matrix(self, weight: Tensor) -> Tensor:
        """An array that only oneDNN can read."""
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight[0].contiguous(), self.rows)
        return packed

    def gates(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Two of them."""
        gate, up = weight.chunk(2, 1)
        return self.matrix(gate), self.matrix(up)

    def bias(self, bias: Tensor) -> Tensor:
        """(out,)"""
        return bias[0]

    def multiply(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
        """One product, and what comes ``then`` before its numbers leave the cache."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix, bias, then, [], "")
        return product

    def add(self, x: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
        """One product, to which x is added before its numbers leave the cache."""
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(y, x, matrix, None, "add")
        return total

    def gated(self, x: Tensor, gates: tuple[Tensor, Tensor]) -> Tensor:
        """Two products, of which the first ends with silu and the second with the multiplication by it."""
        gate, up = gates
        gated: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, self.multiply(x, gate, then="swish"), up, None, "mul"
        )
        return gated

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, future: Tensor | None = None) -> Tensor:
        """As a part, of which there is no other."""
        return self.attend_in_part(queries, keys, values, future)[0]

    def attend_in_part(
        self, queries: Tensor, keys: Tensor, values: Tensor, future: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores are used up where they are made (Dao et al. 2022), and keys and values are read where they lie."""
        mask = None
        if future is not None:
            mask = torch.zeros(future.shape, dtype=queries.dtype).masked_fill_(future, -torch.inf)
        out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries[:, None], keys[:, None], values[:, None], attn_mask=mask, scale=1.0
        )
        return out[:, 0], weight[:, 0]


def _trial(kernels: Kernels) -> Tensor:
    """Every operation once."""
    one, x = torch.eye(32, dtype=torch.bfloat16), torch.ones(2, 32, dtype=torch.bfloat16)
    matrix, gates = kernels.matrix(one[None]), kernels.gates(torch.cat([one, one])[None])
    y = kernels.add(x, kernels.gated(kernels.multiply(x, matrix, x[0]), gates), matrix)
    future = torch.tensor([[False, True], [False, False]])
    out, weight = kernels.attend_in_part(y[None] / 32, x[None], (y + one[:2])[None], future)
    return out + weight.to(out.dtype).unsqueeze(-1)
