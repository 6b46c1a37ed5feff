"""Products with weights that serve for many steps: laid out once, for the fastest product that there is.

Both ways take matrices (C or 1, out, in) and biases (C or 1, out), and multiply activations (C, N, in), or (N, in)
where there is one cell only.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Products(Protocol):
    """A way to multiply: arrange a weight once, multiply by it often."""

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

    def meet(self, queries: Tensor, keys: Tensor) -> Tensor:
        """q K^T of many small arrays: (b, n, k) and (b, m, k) -> (b, n, m)."""


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

    def meet(self, queries: Tensor, keys: Tensor) -> Tensor:
        """An ordinary product."""
        return torch.bmm(queries, keys.mT)


class Packed:
    """bfloat16 on a CPU, one cell: weights in the order in which oneDNN's kernels read them.

    A fourth faster than the same products of ordinary matrices at 224 rows on a CPU with AMX, where the multiplication
    itself takes so little time that reordering a matrix on each use is a large part of it. torch keeps these operations
    for its own compiler and promises nothing of them: see :meth:`work`.
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
            x, one, packed = torch.ones(2, 32, dtype=dtype), torch.eye(32, dtype=dtype), Packed(2)
            gates = packed.gates(torch.cat([one, one]).unsqueeze(0))
            matrix = packed.matrix(one.unsqueeze(0))
            found = packed.add(x, packed.gated(packed.multiply(x, matrix, x[0]), gates), matrix)
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(found, x + F.silu(2 * x) * 2)

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
        """Two products, of which the first ends with silu."""
        gate, up = gates
        return self.multiply(x, gate, then="swish").mul_(self.multiply(x, up))

    def meet(self, queries: Tensor, keys: Tensor) -> Tensor:
        """A view: in bfloat16 the product is twice as fast the other way round."""
        return torch.bmm(keys, queries.mT).mT
