"""bfloat16 arithmetic with float32 masters: nearly the same step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.runs import run
from tests.tiny import CELLS, FAMILIES, SHORT, make_cell

from rewardgrid.base.load import Base
from rewardgrid.study.contracts import HISTORY, read_table
from rewardgrid.train.engines.native import Pack, train
from rewardgrid.train.rollout import Draws

CPU = torch.device("cpu")


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("method", CELLS)
def test_a_step_in_bfloat16_goes_nearly_where_float32_goes(method: str, base: Base) -> None:
    single = Pack([CELLS[method]()], base, CPU)
    half = Pack([CELLS[method](precision="bf16")], base, CPU)
    rollout = single.rollout(Draws.of_step(single.cells, base.train_prompts().ids, [0]))
    for pack in (single, half):
        pack.update(rollout, pack.reference_logps(rollout))
    first, second = single.policy.gradient[0], half.policy.gradient[0]
    assert not torch.equal(first, second)
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.99
    assert {each.dtype for each in (half.policy.parameters, half.policy.gradient, half.optimizer.mean)} == {
        torch.float32
    }


@pytest.mark.parametrize("method", CELLS)
def test_a_run_in_bfloat16_records_and_saves_float32(method: str, base: Base, tmp_path: Path) -> None:
    (directory,) = run(train, [CELLS[method](**SHORT, precision="bf16")], base, tmp_path)
    history = read_table(directory / "train" / "history.parquet", HISTORY)
    assert (history["kl"][1:] > 1e-6).all()
    assert history["kl"][0] == pytest.approx(0, abs=1e-9)
    tensors = [t for path in directory.glob("train/weights/**/*.safetensors") for t in load_file(path).values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_each_cell_gets_its_own_precision_of_products(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tf32 is a setting of the process, so a cell must not find what another has left."""
    found: list[tuple[str, str]] = []
    step = Pack.step

    def noted(pack: Pack, draws: Draws) -> object:
        found.append((pack.like.precision, torch.get_float32_matmul_precision()))
        return step(pack, draws)

    monkeypatch.setattr(Pack, "step", noted)
    cells = [make_cell(**SHORT, precision=precision) for precision in ("tf32", "fp32")]
    for order in (cells, cells[::-1]):
        found.clear()
        run(train, order, base, tmp_path / order[0].precision)
        assert set(found) == {("tf32", "high"), ("fp32", "highest")}
