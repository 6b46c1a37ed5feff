"""How products are made on a CPU, and how a model is computed that reads a token at a time.

For the latter weights are laid out once for many products. All ways to do so take matrices (C or 1, out, in) and biases
(C or 1, out), and multiply activations (C, N, in), or (N, in) where there is one cell only. Attention is that of many
small arrays: queries (b, n, k), keys and values (b, m, k), and optionally which keys lie in the future (n, m) of which
queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def large_products(device: torch.device) -> Iterator[None]:
    """Let oneDNN make the products of float32 matrices in here, if it makes them in float32.

    torch leaves them to MKL, which on CPUs of other makers than its own uses half of their width, unless products in
    bfloat16 are allowed. oneDNN gets them then, and makes no use of that permission where bfloat16 is not much faster:
    on any CPU without AMX. :func:`_onednn_is_exact` tries it. For small products, and for torch's own attention, it is
    the slower of the two.
    """
    if device.type != "cpu" or not _onednn_is_exact():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _onednn_is_exact() -> bool:
    """Whether products that may be in bfloat16 are in float32: numbers of 24 bits, times one, are what they were."""
    if not torch.backends.mkldnn.is_available():
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return all(_is_exact(rows, width) for rows in (64, 1024) for width in (32, 128, 512))
    finally:
        torch.set_float32_matmul_precision(before)


def _is_exact(rows: int, width: int) -> bool:
    x = 1 + torch.arange(1.0, rows * width + 1).view(rows, width) * 2.0**-23
    one, many = torch.eye(width), x.expand(2, -1, -1)
    products = torch.mm(x, one), torch.mm(x.T.contiguous().T, one), *torch.bmm(many, one.expand(2, -1, -1))
    return all(torch.equal(product, x) for product in products)


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

    def add(self, x: Tensor, y: Tensor, matrix: Any, bias: Tensor | None = None) -> Tensor:
        """x + y W^T, plus the bias."""

    def gated(self, x: Tensor, gates: Any, bias: Tensor | None = None) -> Tensor:
        """silu(x G^T) * (x U^T), with the bias of both."""

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

    def add(self, x: Tensor, y: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """One product, which begins with x."""
        return self._multiply_add(x if bias is None else x + bias, y, matrix)

    def gated(self, x: Tensor, gates: Tensor, bias: Tensor | None = None) -> Tensor:
        """One product for both."""
        gate, up = self.multiply(x, gates, bias).chunk(2, -1)
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


class Wide(Plain):
    """float32 on a CPU, one cell: matrices with many outputs in the order in which oneDNN's kernels read them.

    MKL, to which torch leaves products in float32, uses half of the width of CPUs of other makers than its own. Where
    outputs are few, a call of oneDNN's costs as much as it saves. About its operations see :class:`Packed`.
    """

    OUTPUTS = 512
    """So many are many."""

    def __init__(self, rows: int) -> None:
        """For products of about this many rows."""
        super().__init__(cells=1)
        self.rows = rows

    @classmethod
    def work(cls, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this torch has these operations, for this type on this device, and they give what they should."""
        return device.type == "cpu" and dtype == torch.float32 and _agree(cls(2), dtype, rtol=1e-5)

    def matrix(self, weight: Tensor) -> Tensor:
        """An array that only oneDNN can read, or (in, out)."""
        if weight.shape[1] < self.OUTPUTS:
            return super().matrix(weight)
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight[0].contiguous(), self.rows)
        return packed

    gates = matrix

    def multiply(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """One product."""
        if not matrix.is_mkldnn:
            return super().multiply(x, matrix, bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix, bias, "none", [], "")
        return product

    def add(self, x: Tensor, y: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """One product, and x."""
        return self.multiply(y, matrix, bias).add_(x) if matrix.is_mkldnn else super().add(x, y, matrix, bias)


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
        return device.type == "cpu" and dtype == torch.bfloat16 and _agree(Packed(2), dtype, rtol=0.05)

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

    def add(self, x: Tensor, y: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """One product, to which x is added before its numbers leave the cache."""
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(y, x, matrix, bias, "add")
        return total

    def gated(self, x: Tensor, gates: tuple[Tensor, Tensor], bias: Tensor | None = None) -> Tensor:
        """Two products, of which the first ends with silu and the second with the multiplication by it."""
        gate, up = gates
        of_gate, of_up = (None, None) if bias is None else bias.chunk(2, -1)
        gated: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, self.multiply(x, gate, of_gate, then="swish"), up, of_up, "mul"
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


def _agree(kernels: Kernels, dtype: torch.dtype, rtol: float) -> bool:
    """Whether these kernels give what plain ones do."""
    try:
        return torch.allclose(_trial(kernels, dtype), _trial(Plain(1), dtype), rtol=rtol)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _trial(kernels: Kernels, dtype: torch.dtype) -> Tensor:
    """Every operation once, with matrices of few and of many outputs."""
    one, x = torch.eye(32, dtype=dtype), torch.ones(2, 32, dtype=dtype)
    matrix, gates = kernels.matrix(one[None]), kernels.gates(torch.cat([one, one])[None])
    y = kernels.add(x, kernels.gated(kernels.multiply(x, matrix, x[0]), gates), matrix)
    future = torch.tensor([[False, True], [False, False]])
    out, weight = kernels.attend_in_part(y[None] / 32, x[None], (y + one[:2])[None], future)
    wide = kernels.matrix(torch.cat([one] * 32)[None])
    many = kernels.add(kernels.multiply(out[0], wide), out[0], wide)
    return many.unflatten(-1, (-1, 32)) + (out + weight.to(out.dtype).unsqueeze(-1))[0, :, None]
