"""The ways to compute give the same, as far as their type allows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rewardgrid.lm.kernels import Kernels, Packed, Plain, Wide, _onednn_is_exact, large_products

CPU = torch.device("cpu")
packed = pytest.mark.skipif(not Packed.work(torch.bfloat16, CPU), reason="this torch has no packed products")
wide = pytest.mark.skipif(not Wide.work(torch.float32, CPU), reason="this torch has no packed products")
EACH = pytest.mark.parametrize(
    ("kernels", "dtype"),
    [
        pytest.param(Plain(1), torch.float32, id="plain"),
        pytest.param(Plain(1), torch.bfloat16, id="plain bf16"),
        pytest.param(Packed(8), torch.bfloat16, id="packed", marks=packed),
        pytest.param(Wide(8), torch.float32, id="wide", marks=wide),
    ],
)


def normal(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """As near as numbers of this type can be, after a few operations."""
    assert found.dtype == dtype
    scale = float(exact.abs().max())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=scale * (1e-5 if dtype == torch.float32 else 0.02))


@EACH
def test_products_are_those_of_the_matrices_that_were_laid_out(kernels: Kernels, dtype: torch.dtype) -> None:
    x, y, bias = (normal(*size, dtype=dtype, seed=seed) for seed, size in enumerate([(8, 48), (8, 32), (1, 64)]))
    up, down = normal(1, 64, 48, dtype=dtype, seed=3), normal(1, 48, 32, dtype=dtype, seed=4)
    wide = x.double() @ up[0].double().mT
    near(kernels.multiply(x, kernels.matrix(up)), wide, dtype)
    near(kernels.multiply(x, kernels.matrix(up), kernels.bias(bias)), wide + bias.double(), dtype)
    near(kernels.add(x, y, kernels.matrix(down)), x.double() + y.double() @ down[0].double().mT, dtype)
    gate, other = wide.chunk(2, -1)
    near(kernels.gated(x, kernels.gates(up)), F.silu(gate) * other, dtype)


@EACH
def test_products_with_many_outputs_too(kernels: Kernels, dtype: torch.dtype) -> None:
    x, y, bias = (normal(*size, dtype=dtype, seed=seed) for seed, size in enumerate([(8, 48), (8, 1024), (1, 1024)]))
    matrix = normal(1, 1024, 48, dtype=dtype, seed=3)
    product = x.double() @ matrix[0].double().mT
    near(kernels.multiply(x, kernels.matrix(matrix), kernels.bias(bias)), product + bias.double(), dtype)
    near(kernels.add(y, x, kernels.matrix(matrix)), y.double() + product, dtype)
    gate, other = product.chunk(2, -1)
    near(kernels.gated(x, kernels.gates(matrix)), F.silu(gate) * other, dtype)


@EACH
@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_the_weight_of_a_part(kernels: Kernels, dtype: torch.dtype, causal: bool) -> None:
    q, k, v = (normal(6, n, 16, dtype=dtype, seed=n) for n in (4, 9, 10))
    v = v[:, :9]
    future = torch.ones(4, 9, dtype=torch.bool).triu(6) if causal else None
    scores = q.double() @ k.double().mT
    if future is not None:
        scores = scores.masked_fill(future, -torch.inf)
    exact = scores.softmax(-1) @ v.double()
    near(kernels.attend(q, k, v, future), exact, dtype)
    out, weight = kernels.attend_in_part(q, k, v, future)
    near(out, exact, dtype)
    near(weight.to(dtype), scores.logsumexp(-1), dtype)


def test_packed_products_are_for_bf16_on_a_cpu_whose_torch_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Packed.work(torch.float32, CPU)
    assert not Packed.work(torch.bfloat16, torch.device("cuda"))

    def gone(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(Packed, "multiply", gone)
    assert not Packed.work(torch.bfloat16, CPU)


@packed
def test_packed_products_that_give_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packed, "add", lambda self, x, y, matrix: self.multiply(y, matrix))
    assert not Packed.work(torch.bfloat16, CPU)


@wide
def test_wide_products_are_for_float32_on_a_cpu_whose_torch_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Wide.work(torch.bfloat16, CPU)
    assert not Wide.work(torch.float32, torch.device("cuda"))
    monkeypatch.setattr(Wide, "multiply", lambda self, x, matrix, bias=None: Plain.multiply(self, x, matrix, bias))
    assert not Wide.work(torch.float32, CPU)  # an array that only oneDNN can read


@pytest.mark.parametrize("sizes", [(1088, 128, 688), (64, 128, 4096), (272, 32, 136)])
def test_large_products_are_as_near_as_float32_allows(sizes: tuple[int, int, int]) -> None:
    rows, width, outputs = sizes
    x, y = normal(2, rows, width), normal(2, width, outputs, seed=1)
    exact = x.double() @ y.double()
    with large_products(CPU):
        near(torch.bmm(x, y), exact, torch.float32)
        near(torch.mm(x[0], y[0]), exact[0], torch.float32)
        near(torch.mm(x[0].mT, torch.ones(rows, 64)), x[0].double().mT @ torch.ones(rows, 64).double(), torch.float32)


@pytest.mark.parametrize("before", ["highest", "high"])
def test_the_setting_of_large_products_ends_with_them(before: str) -> None:
    torch.set_float32_matmul_precision(before)
    try:
        with pytest.raises(ZeroDivisionError), large_products(CPU):
            _ = 1 / 0
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_permission_that_is_made_use_of_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.mm

    def rounded(x: Tensor, y: Tensor) -> Tensor:
        return product(x.bfloat16(), y.bfloat16()).float()

    monkeypatch.setattr(torch, "mm", rounded)
    _onednn_is_exact.cache_clear()
    try:
        with large_products(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        _onednn_is_exact.cache_clear()
