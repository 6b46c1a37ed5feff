"""A step on a GPU: fixed shapes, nothing asked of the device, and one CUDA graph that repeats it exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.own import own_routing, source
from tests.tiny import FAMILIES
from tests.unit.train.test_packs import PACKS, advance
from torch.utils._python_dispatch import TorchDispatchMode

from rewardgrid.base.load import Base
from rewardgrid.train.engines.native import Graph, Pack
from rewardgrid.train.own import OwnCodeError
from rewardgrid.train.rollout import Draws

CPU = torch.device("cpu")
ASKS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "lift_fresh")
"""Operations that wait for the device's answer, or bring values of the host to it: none can be captured in a graph."""


class NothingAsked(TorchDispatchMode):
    """Refuses operations that a CUDA graph cannot hold, and notes the shapes of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ASKS, f"{name} asks the device"
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.shapes.append((name, tuple(out.shape)))
        return out


def as_on_a_gpu(pack: Pack) -> Pack:
    """The same pack, going the way that it would go on a GPU (its arrays stay where they are)."""
    pack.device = torch.device("cuda")
    return pack


def draws_of(pack: Pack, base: Base, step: int) -> Draws:
    return Draws.of_step(pack.cells, base.train_prompts().ids, [step] * len(pack.cells))


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("method", PACKS)
def test_a_step_asks_the_device_nothing_and_every_step_has_the_same_shapes(method: str, base: Base) -> None:
    pack = as_on_a_gpu(Pack(PACKS[method], base, CPU))
    traces = []
    for step in range(2):
        draws = draws_of(pack, base, step)
        with NothingAsked() as mode:
            pack.step(draws)
        traces.append(mode.shapes)
    assert len(traces[0]) > 500
    assert traces[0] == traces[1]


def test_only_between_its_halves_does_a_step_with_code_of_ones_own_ask(base: Base, tmp_path: Path) -> None:
    variant = {"num_iterations": 2, "loss_type": "dapo", "scale_rewards": "batch", "lr_scheduler_type": "cosine"}
    cells = [own_routing(source(tmp_path), seed=seed, warmup_steps=2, **variant) for seed in (7, 8)]
    pack = as_on_a_gpu(Pack(cells, base, CPU))
    draws = draws_of(pack, base, 0)
    with NothingAsked():
        completions = pack.sample(draws)
    with pytest.raises((AssertionError, OwnCodeError), match="asks the device"), NothingAsked():
        pack.ask(draws, completions)
    said = pack.ask(draws, completions)
    with NothingAsked():
        rollout = pack.assess(draws, completions, said)
        pack.update(rollout, pack.reference_logps(rollout))
        pack.another_update()
    assert pack.steps.tolist() == [2, 2]


@pytest.mark.parametrize(
    "asking", [lambda: torch.ones(()).item(), lambda: bool(torch.ones(2).any()), lambda: torch.tensor([1.0, 2.0])]
)
def test_an_operation_that_asks_is_noticed(asking: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError, match="asks the device"), NothingAsked():
        asking()


@pytest.mark.parametrize("method", PACKS)
def test_fixed_shapes_change_no_result(method: str, base: Base) -> None:
    plain = Pack(PACKS[method], base, CPU, torch.float64)
    fixed = as_on_a_gpu(Pack(PACKS[method], base, CPU, torch.float64))
    for (a, columns), (b, others) in advance([plain, fixed], base, 3):
        length = a.completions.ids.shape[-1]
        assert torch.equal(a.completions.ids, b.completions.ids[..., :length])
        for key, value in columns.items():
            torch.testing.assert_close(others[key], value, rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_halves_and_further_updates_are_the_step(base: Base, tmp_path: Path) -> None:
    place = torch.device("cuda")
    cells = [own_routing(source(tmp_path), seed=seed, num_iterations=2, max_steps=6) for seed in (7, 8)]
    eager, captured = (Pack(cells, base, place) for _ in range(2))
    graph = Graph(captured, draws_of(captured, base, 0).to(place))
    for step in range(3):
        draws = draws_of(eager, base, step).to(place)
        for (a, columns), (b, others) in (
            (eager.step(draws), graph(draws)),
            (eager.another_update(), graph.another_update()),
        ):
            assert torch.equal(a.completions.ids, b.completions.ids)
            torch.testing.assert_close(b.rewards, a.rewards)
            for key, value in columns.items():
                torch.testing.assert_close(others[key], value, rtol=1e-4, atol=1e-6, msg=key)
    torch.testing.assert_close(captured.policy.parameters, eager.policy.parameters, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("method", PACKS)
def test_a_captured_step_is_the_step(method: str, base: Base) -> None:
    place = torch.device("cuda")
    eager, captured = (Pack(PACKS[method], base, place) for _ in range(2))
    graph = Graph(captured, draws_of(captured, base, 0).to(place))
    for step in range(3):
        draws = draws_of(eager, base, step)
        a, columns = eager.step(draws.to(place))
        b, others = graph(draws)
        assert torch.equal(a.completions.ids, b.completions.ids)
        for key, value in columns.items():
            torch.testing.assert_close(others[key], value, rtol=1e-4, atol=1e-6, msg=key)
    torch.testing.assert_close(captured.policy.parameters, eager.policy.parameters, rtol=1e-3, atol=1e-5)
