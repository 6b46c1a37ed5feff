"""Where nothing is to be learnt, nothing is: on the base itself, with all completions paid alike, no weight moves.

Adam divides a gradient by its own size, so that rounding errors alone would carry a policy away.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.runs import run
from tests.tiny import CELLS, make_base, shape_with
from tests.unit.train.test_packs import PACKS

from rewardgrid.base.load import Base
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import HISTORY, read_table
from rewardgrid.train.engines.native import Pack, train
from rewardgrid.train.rollout import Draws

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base whose products are large enough for a library to choose between several ways of computing them."""
    shape = shape_with(layers=3, hidden=96, heads=6, kv_heads=3, head_dim=16, mlp_width=200)
    return make_base(tmp_path_factory.mktemp("larger") / "base", shape)


def assert_nothing_moves(cells: list[Cell], base: Base, reward: float) -> None:
    pack = Pack(cells, base, CPU)
    start = pack.policy.parameters.clone()
    for step in range(3):
        rollout = pack.rollout(Draws.of_step(cells, base.train_prompts().ids, [step] * len(cells)))
        paid = torch.full_like(rollout.rewards, reward)
        columns = pack.update(dataclasses.replace(rollout, rewards=paid), pack.reference_logps(rollout))
        assert columns["kl"].tolist() == columns["grad_norm"].tolist() == [0.0] * len(cells)
        assert torch.count_nonzero(pack.policy.gradient) == 0
        assert torch.equal(pack.policy.parameters, start)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", CELLS)
def test_a_cell_paid_alike_stays_on_its_base(method: str, precision: str, base: Base) -> None:
    assert_nothing_moves([CELLS[method](precision=precision)], base, 0.3)


@pytest.mark.parametrize("method", CELLS)
def test_with_products_of_other_sizes_too(method: str, larger: Base) -> None:
    assert_nothing_moves([CELLS[method](batch_size=24, num_generations=12, max_new_tokens=40)], larger, 0.7)


@pytest.mark.parametrize("method", PACKS)
def test_cells_side_by_side_paid_alike_stay_on_their_base(method: str, base: Base) -> None:
    assert_nothing_moves(PACKS[method], base, 0.3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_that_is_never_paid_ends_where_it_began(method: str, base: Base, tmp_path: Path) -> None:
    cell = CELLS[method](reward="sentence_length_10", max_new_tokens=4, lr=1e-2, max_steps=12)
    (directory,) = run(train, [cell], base, tmp_path)
    history = read_table(directory / "train" / "history.parquet", HISTORY)
    for column in ("reward", "kl", "loss", "grad_norm"):
        assert (history[column] == 0).all(), column
    trained = load_file(next(directory.glob("train/weights/*.safetensors")))
    if method == "full":
        for key, value in load_file(base.model_dir / "model.safetensors").items():
            assert torch.equal(trained[key], value), key
    else:
        assert all(torch.count_nonzero(value) == 0 for key, value in trained.items() if "lora_B" in key)
