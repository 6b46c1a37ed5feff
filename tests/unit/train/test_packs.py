"""A cell does not feel what it is trained beside, nor in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs import OFTEN, assert_same_run, killed_at, run, tables_of, weights_of
from tests.tiny import FAMILIES, SHORT, lora_cell, make_cell, named, routing_cell
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.study.cell import Cell
from rewardgrid.train.engines.native import OWN, Pack, pack_key, train
from rewardgrid.train.rollout import Draws, Rollout

MODES: dict[str, Any] = {"eval_every": 3, "eval_samples": 4, "eval_modes": ("both", "retain_only")}
PACKS: dict[str, list[Cell]] = {
    "full": [
        make_cell(**SHORT),
        make_cell(**SHORT, lr=1e-3, seed=8, max_steps=5, decay_steps=7, beta=0.02),
        make_cell(**SHORT, repetition_penalty=1.0, seed=9, max_steps=3, max_grad_norm=0.1, kl_cap=900.0),
    ],
    "lora": [
        lora_cell(**SHORT),
        lora_cell(**SHORT, rank=1, lr=1e-3, seed=8, max_steps=5),
        lora_cell(**SHORT, rank=5, repetition_penalty=1.4, seed=9, max_steps=3),
    ],
    "routing": [
        routing_cell(**SHORT, **MODES),
        routing_cell(**SHORT, **MODES, rank=2, forget_rank=5, lr=1e-3, seed=8, max_steps=5, rh_eligible_frac=0.9),
        routing_cell(
            **SHORT,
            **MODES,
            rank=1,
            forget_rank=1,
            adapter_alpha="own_rank",
            routing_frac=0.5,
            label_noise_frac=0.0,
            seed=9,
            max_steps=3,
        ),
    ],
}


def test_what_may_differ_beside_one_another_is_what_differs_in_these_packs() -> None:
    settings = [cell.model_dump() for cells in PACKS.values() for cell in cells]
    packs = [[cell.model_dump() for cell in cells] for cells in PACKS.values()]
    differ = {name for name in settings[0] for pack in packs if any(cell[name] != pack[0][name] for cell in pack)}
    assert differ == OWN


@pytest.mark.parametrize("cells", PACKS.values(), ids=PACKS)
def test_cells_that_differ_in_anything_else_are_no_pack(cells: list[Cell]) -> None:
    assert len({pack_key(cell) for cell in cells}) == 1
    for name in set(Cell.model_fields) - OWN:
        another = 0.5 if name == "warmup_ratio" else "another"
        assert pack_key(cells[0]) != pack_key(cells[0].model_copy(update={name: another}))


def test_equal_shares_of_unequal_schedules_are_unequal_warm_ups() -> None:
    short, longer = (make_cell(warmup_ratio=0.25, max_steps=steps) for steps in (8, 16))
    assert pack_key(short) != pack_key(longer)
    assert pack_key(short) == pack_key(make_cell(warmup_ratio=0.25, max_steps=7))


@pytest.fixture(scope="module")
def alone(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every cell trained by itself: its directory by its name."""
    root = tmp_path_factory.mktemp("alone")
    return {cell.name: run(train, [cell], base, root)[0] for cells in PACKS.values() for cell in cells}


@pytest.mark.parametrize("method", PACKS)
def test_alone_beside_others_and_in_another_order_a_cell_is_the_same_bit_for_bit(
    method: str, base: Base, alone: dict[str, Path], tmp_path: Path
) -> None:
    cells = PACKS[method]
    together = run(train, cells, base, tmp_path / "together")
    run(train, cells[::-1], base, tmp_path / "permuted")
    for cell, directory in zip(cells, together, strict=True):
        assert_same_run(alone[cell.name], directory)
        assert_same_run(alone[cell.name], tmp_path / "permuted" / cell.name)
    # And the cells are not all the same one.
    assert len({tuple(weights_of(directory).values()) for directory in together}) == len(cells)
    assert [len(tables_of(directory)["history"]) for directory in together] == [cell.max_steps for cell in cells]


@pytest.mark.parametrize("method", PACKS)
def test_after_a_resume_too(
    method: str, base: Base, alone: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = PACKS[method]
    with killed_at(5, monkeypatch):
        run(train, cells, base, tmp_path / "resumed", OFTEN)
    resumed = run(train, cells[::-1], base, tmp_path / "resumed", OFTEN)
    for cell, directory in zip(cells[::-1], resumed, strict=True):
        assert_same_run(alone[cell.name], directory)


# --- the leading axis itself ---------------------------------------------------------------------------------


def advance(packs: Sequence[Pack], base: Base, steps: int) -> list[list[tuple[Rollout, dict[str, Tensor]]]]:
    """Train packs for some steps, all cells from step 0."""
    pool = base.train_prompts().ids
    return [
        [
            pack.step(Draws.of_step(pack.cells, pool, [min(step, cell.max_steps - 1) for cell in pack.cells]))
            for pack in packs
        ]
        for step in range(steps)
    ]


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("method", PACKS)
def test_cells_on_the_leading_axis_train_as_they_would_alone(method: str, base: Base) -> None:
    cells, place = PACKS[method], torch.device("cpu")
    wide = Pack(cells, base, place, torch.float64)
    narrow = [Pack([cell], base, place, torch.float64) for cell in cells]
    for rows in advance([wide, *narrow], base, 5):
        (rollout, columns), alone = rows[0], rows[1:]
        for index, (own, row) in enumerate(alone):
            length = own.completions.ids.shape[-1]
            assert torch.equal(rollout.completions.ids[index, :, :length], own.completions.ids[0])
            for key, value in row.items():
                torch.testing.assert_close(columns[key][index], value[0], rtol=1e-9, atol=1e-11, msg=key)
    for index, pack in enumerate(narrow):
        expected = named(pack.policy, pack.policy.parameters)
        for key, value in named(wide.policy, wide.policy.parameters, index).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("method", ["lora", "routing"])
def test_padding_channels_stay_exactly_zero(method: str, base: Base) -> None:
    pack = Pack(PACKS[method], base, torch.device("cpu"))
    advance([pack], base, 3)
    ranks = [sum(adapter.rank for adapter in adapters) for adapters in pack.policy.adapters]
    assert len(set(ranks)) > 1
    for index, rank in enumerate(ranks):
        for key, view in pack.policy.views.items():
            if key.endswith(".A"):
                view = view.unflatten(1, (-1, pack.policy.width)).transpose(2, 3)
            assert torch.count_nonzero(view[index][..., rank:]) == 0, key


def test_a_finished_cell_stays_as_it_is_while_its_neighbours_go_on(base: Base) -> None:
    cells = PACKS["lora"]
    pack = Pack(cells, base, torch.device("cpu"))
    advance([pack], base, 3)
    finished = pack.policy.parameters[2].clone(), pack.optimizer.mean[2].clone()
    others = pack.policy.parameters[:2].clone()
    pool = base.train_prompts().ids
    pack.step(Draws.of_step(cells, pool, [3, 3, 2]))
    assert torch.equal(pack.policy.parameters[2], finished[0])
    assert torch.equal(pack.optimizer.mean[2], finished[1])
    assert all(not torch.equal(pack.policy.parameters[index], others[index]) for index in range(2))


def test_a_diverged_cell_is_frozen_and_harms_no_neighbour(base: Base) -> None:
    healthy, place = make_cell(seed=3), torch.device("cpu")
    sick = make_cell(seed=4, lr=1e30)
    pack = Pack([healthy, sick], base, place)
    alone = Pack([healthy], base, place)
    pool = base.train_prompts().ids
    kept = pack.policy.parameters[1].clone()
    for step in range(4):
        before = pack.policy.parameters[1].clone()
        was_alive = bool(pack.alive[1])
        pack.step(Draws.of_step(pack.cells, pool, [step, step]))
        alone.step(Draws.of_step([healthy], pool, [step]))
        if not pack.alive[1]:
            kept = before if was_alive else kept
            assert torch.equal(pack.policy.parameters[1], kept)
    assert pack.alive.tolist() == [True, False]
    assert torch.isfinite(pack.policy.parameters).all()
    torch.testing.assert_close(pack.policy.parameters[0], alone.policy.parameters[0], rtol=0, atol=1e-5)


def test_what_a_cell_draws_is_its_own(base: Base) -> None:
    cells, pool = PACKS["full"], base.train_prompts().ids
    wide = Draws.of_step(cells, pool, [5, 2, 0])
    for index, (cell, step) in enumerate(zip(cells, [5, 2, 0], strict=True)):
        own = Draws.of_step([cell], pool, [step])
        for field in dataclasses.fields(Draws):
            assert torch.equal(getattr(wide, field.name)[index], getattr(own, field.name)[0])


def test_every_prompt_of_a_step_is_repeated_for_its_group(base: Base) -> None:
    draws = Draws.of_step([make_cell()], base.train_prompts().ids, [0])
    groups = draws.prompts[0].unflatten(0, (2, 4))
    assert (groups == groups[:, :1]).all()
    assert not torch.equal(groups[0, 0], groups[1, 0])


def test_a_pack_of_any_width_continues_where_a_cell_stopped(base: Base) -> None:
    cells, place, pool = PACKS["routing"], torch.device("cpu"), base.train_prompts().ids
    whole, first = Pack(cells, base, place, torch.float64), Pack(cells, base, place, torch.float64)
    for step in range(2):
        for pack in (whole, first):
            pack.step(Draws.of_step(cells, pool, [step] * 3))
    order = [2, 0]
    later = Pack([cells[index] for index in order], base, place, torch.float64)
    for slot, index in enumerate(order):
        later.restore(slot, first.state(index))
    whole.step(Draws.of_step(cells, pool, [2] * 3))
    later.step(Draws.of_step(later.cells, pool, [2] * 2))
    for slot, index in enumerate(order):
        expected = named(whole.policy, whole.policy.parameters, index)
        for key, value in named(later.policy, later.policy.parameters, slot).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-11, msg=key)
