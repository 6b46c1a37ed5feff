"""The routed update of a whole step against a reference that knows nothing of it.

The reference is Hugging Face's LLaMA whose projections are replaced by a few lines that say the law with ``detach``:
one backward pass over the flagged completions, one over the others, each weighted by its share of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.tiny import SHAPE, exact_hf, hf_model, lora_cell, named, random_tensors, routing_cell
from torch import Tensor, nn

from rewardgrid.base.load import Base
from rewardgrid.lm.hf.layout import to_hf
from rewardgrid.lm.hf.peft import to_peft
from rewardgrid.study.cell import Cell
from rewardgrid.train.engines.native import Pack
from rewardgrid.train.rollout import Draws, Rollout

Gradients = dict[str, Tensor]
"""By adapter and PEFT's name: ``retain/base_model...lora_A.weight``."""


@dataclass(frozen=True)
class Rule:
    """What a part's gradient may do."""

    to_parameters: Callable[[bool, str], bool]
    """(flagged, adapter) -> whether it reaches that adapter's parameters."""
    through: Callable[[bool, str], bool] = lambda flagged, adapter: True
    """(flagged, adapter) -> whether it flows through that adapter's activations."""
    weighted: bool = True
    """Whether a part counts by its share of the batch."""


SHARED = Rule(lambda flagged, adapter: adapter == "forget" or not flagged)
EXCLUSIVE = Rule(lambda flagged, adapter: (adapter == "forget") == flagged)
PLAIN = Rule(lambda flagged, adapter: True)
WRONG = {
    "activation gradients masked too": Rule(
        SHARED.to_parameters, lambda flagged, adapter: adapter == "forget" or not flagged
    ),
    "adapters swapped": Rule(lambda flagged, adapter: adapter == "retain" or not flagged),
    "parts not weighted": Rule(SHARED.to_parameters, weighted=False),
    "nothing masked": PLAIN,
    "exclusive for shared": EXCLUSIVE,
}


class ReferenceLinear(nn.Module):
    """x W^T and, for each adapter, alpha/rank x A^T B^T."""

    def __init__(self, weight: Tensor, adapters: dict[str, tuple[float, Tensor, Tensor]]) -> None:
        super().__init__()
        self.frozen, self.adapters = weight, adapters
        self.rule, self.flagged = PLAIN, False

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.frozen.T
        for name, (scale, a, b) in self.adapters.items():
            if not self.rule.to_parameters(self.flagged, name):
                a, b = a.detach(), b.detach()
            into = x if self.rule.through(self.flagged, name) else x.detach()
            y = y + scale * (into @ a.T) @ b.T
        return y


class Reference:
    """A pack's one cell, as Hugging Face's model with the adapters that the pack has now."""

    def __init__(self, pack: Pack) -> None:
        self.pack, self.cell = pack, pack.cells[0]
        self.model = hf_model(SHAPE, random_tensors(), torch.float64)
        adapters = pack.policy.adapters[0]
        self.leaves: Gradients = {}
        for adapter in adapters:
            for key, tensor in to_peft(SHAPE, pack.policy.views, adapters, adapter.name).items():
                self.leaves[f"{adapter.name}/{key}"] = tensor.clone().requires_grad_()
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Linear) and name != "lm_head":
                own = {}
                for adapter in adapters:
                    prefix = f"{adapter.name}/base_model.model.{name}"
                    a, b = (self.leaves[f"{prefix}.lora_{side}.weight"] for side in "AB")
                    own[adapter.name] = (adapter.alpha / adapter.rank, a, b)
                parent = self.model.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], ReferenceLinear(module.weight.detach(), own))

    def gradients(self, rollout: Rollout, rule: Rule, only: bool | None = None) -> Gradients:
        """The gradient of the step's loss, part by part; ``only`` one part, unweighted."""
        for leaf in self.leaves.values():
            leaf.grad = None
        flagged, rewards = rollout.labels.flagged[0], rollout.rewards[0].double()
        groups = rewards.reshape(-1, self.cell.num_generations)
        advantage = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
        for part in (False, True) if only is None else (only,):
            rows = torch.nonzero(flagged == part).flatten().tolist()
            if not rows:
                continue
            for module in self.model.modules():
                if isinstance(module, ReferenceLinear):
                    module.rule, module.flagged = rule, part
            losses = [self._loss(rollout, row, advantage[row]) for row in rows]
            weight = len(rows) / len(flagged) if rule.weighted and only is None else 1.0
            (weight * torch.stack(losses).mean()).backward()
        return {
            key: leaf.grad.clone() if leaf.grad is not None else torch.zeros_like(leaf)
            for key, leaf in self.leaves.items()
        }

    def _loss(self, rollout: Rollout, row: int, advantage: Tensor) -> Tensor:
        """One completion, token by token, without padding."""
        length, prompt = int(rollout.completions.lengths[0, row]), self.cell.prompt_length
        ids = rollout.sequences[0, row, : prompt + length]
        found = [self.model(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1)]
        with torch.no_grad():
            found.append(FROZEN(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1))
        logps, reference = (each.gather(1, ids[prompt:, None]).squeeze(1) for each in found)
        k3 = (reference - logps).exp() - (reference - logps) - 1
        return (-(logps - logps.detach()).exp() * advantage + self.cell.beta * k3).mean()


FROZEN = hf_model(SHAPE, random_tensors(), torch.float64)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact_hf():
        yield


def make_pack(base: Base, cell: Cell) -> tuple[Pack, Rollout]:
    """A pack in float64 whose adapters are no longer fresh, and a rollout of it."""
    pack = Pack([cell], base, torch.device("cpu"), torch.float64)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, view in pack.policy.views.items():
            if key.endswith("B"):
                view += 0.15 * torch.randn(view.shape, generator=draws, dtype=view.dtype)
                if "gate_up" in key:
                    for half in view.split(SHAPE.mlp_padded, 1):
                        half[:, SHAPE.mlp_width :] = 0
    rollout = pack.rollout(Draws.of_step([cell], base.train_prompts().ids, [0]))
    # Rewards that differ, whatever these few tokens happen to say.
    rewards = torch.rand(rollout.rewards.shape, generator=draws, dtype=torch.float64)
    return pack, dataclasses.replace(rollout, rewards=rewards)


def flag(rollout: Rollout, flagged: list[bool]) -> Rollout:
    labels = dataclasses.replace(rollout.labels, flagged=torch.tensor([flagged]))
    return dataclasses.replace(rollout, labels=labels)


def update(pack: Pack, rollout: Rollout) -> Gradients:
    """One update; returns its gradient before clipping, by adapter and PEFT's name."""
    pack.update(rollout, pack.reference_logps(rollout))
    return named(pack.policy, pack.policy.gradient)


def same(first: Gradients, second: Gradients) -> bool:
    assert first.keys() == second.keys()
    largest = max(float(value.abs().max()) for value in second.values())
    assert largest > 1e-3
    return all(torch.allclose(first[key], second[key], rtol=1e-8, atol=1e-10) for key in first)


MIXED = [True, False, False, True, False, False, False, True]
ALL, NONE = [True] * 8, [False] * 8


@pytest.mark.parametrize("flagged", [NONE, ALL, MIXED], ids=["none flagged", "all flagged", "mixed"])
@pytest.mark.parametrize("mode", ["shared", "exclusive"])
@pytest.mark.parametrize("alpha", ["retain_rank", "own_rank"])
def test_every_gradient_of_a_routed_step_is_the_references(
    base: Base, flagged: list[bool], mode: str, alpha: str
) -> None:
    pack, rollout = make_pack(base, routing_cell(routing_mode=mode, adapter_alpha=alpha))
    rollout = flag(rollout, flagged)
    expected = Reference(pack).gradients(rollout, SHARED if mode == "shared" else EXCLUSIVE)
    assert same(update(pack, rollout), expected)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_comparison_tells_a_wrong_rule(base: Base, wrong: Rule) -> None:
    pack, rollout = make_pack(base, routing_cell())
    rollout = flag(rollout, MIXED)
    expected = Reference(pack).gradients(rollout, wrong)
    assert not same(update(pack, rollout), expected)


def test_a_masked_activation_gradient_shows_in_forget_too(base: Base) -> None:
    # The lower layer's forget adapter hears a flagged completion through the upper layer's retain adapter.
    pack, rollout = make_pack(base, routing_cell())
    rollout = flag(rollout, ALL)
    reference = Reference(pack)
    right = reference.gradients(rollout, SHARED)
    wrong = reference.gradients(rollout, WRONG["activation gradients masked too"])
    moved = [key for key in right if not torch.allclose(right[key], wrong[key], rtol=1e-3)]
    assert any("forget/" in key and "layers.0" in key for key in moved)
    assert not any("retain/" in key for key in moved)


def test_with_nothing_flagged_the_update_is_plain_lora_with_both_adapters(base: Base) -> None:
    cell = routing_cell(rank=4, forget_rank=4)
    pack, rollout = make_pack(base, cell)
    rollout = flag(rollout, NONE)
    # One adapter of rank 8 whose channels are those of the two.
    plain = Pack([lora_cell(rank=8, lr=cell.lr)], base, torch.device("cpu"), torch.float64)
    plain.policy.parameters.copy_(pack.policy.parameters)
    plain.update(rollout, plain.reference_logps(rollout))
    pack.update(rollout, pack.reference_logps(rollout))
    torch.testing.assert_close(pack.policy.gradient, plain.policy.gradient, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(pack.policy.parameters, plain.policy.parameters, rtol=1e-12, atol=1e-15)


def test_with_everything_flagged_retain_does_not_move_and_forget_gets_the_unrouted_gradient(base: Base) -> None:
    pack, rollout = make_pack(base, routing_cell())
    before = {key: value.clone() for key, value in named(pack.policy, pack.policy.parameters).items()}
    unrouted = Reference(pack).gradients(rollout, PLAIN)
    gradient = update(pack, flag(rollout, ALL))
    after = named(pack.policy, pack.policy.parameters)
    for key, value in gradient.items():
        if key.startswith("retain/"):
            assert torch.count_nonzero(value) == 0, key
            assert torch.equal(after[key], before[key]), key
        else:
            torch.testing.assert_close(value, unrouted[key], rtol=1e-8, atol=1e-10, msg=key)
            assert not torch.equal(after[key], before[key]), key


def test_a_mixed_batch_is_the_weighted_sum_of_its_parts(base: Base) -> None:
    pack, rollout = make_pack(base, routing_cell())
    rollout, reference = flag(rollout, MIXED), Reference(pack)
    unflagged = reference.gradients(rollout, PLAIN, only=False)
    flagged = reference.gradients(rollout, SHARED, only=True)
    expected = {key: 5 / 8 * unflagged[key] + 3 / 8 * flagged[key] for key in unflagged}
    assert same(update(pack, rollout), expected)


def test_in_exclusive_mode_forget_hears_the_flagged_alone(base: Base) -> None:
    pack, rollout = make_pack(base, routing_cell(routing_mode="exclusive"))
    gradient = update(pack, flag(rollout, NONE))
    assert all(torch.count_nonzero(value) == 0 for key, value in gradient.items() if key.startswith("forget/"))
    assert any(torch.count_nonzero(value) for key, value in gradient.items() if key.startswith("retain/"))


def test_advantages_are_taken_over_the_group_whatever_the_labels(base: Base) -> None:
    # The same completion has the same loss, flagged or not: only where its gradient goes may differ.
    pack, rollout = make_pack(base, routing_cell())
    other = make_pack(base, routing_cell())[0]
    rows = [
        each.update(flag(rollout, flags), each.reference_logps(rollout))["loss"]
        for each, flags in ((pack, MIXED), (other, NONE))
    ]
    assert torch.equal(*rows)


def test_the_published_alpha_multiplies_what_forget_adds(base: Base) -> None:
    outputs: dict[str, Any] = {}
    for alpha in ("retain_rank", "own_rank"):
        pack, _ = make_pack(base, routing_cell(rank=32, forget_rank=1, adapter_alpha=alpha))
        merged = {mode: to_hf(SHAPE, pack.merged(0, mode)) for mode in ("retain_only", "forget_only")}
        plain = random_tensors(dtype=torch.float64)
        key = "model.layers.1.mlp.up_proj.weight"
        outputs[alpha] = {mode: tensors[key] - plain[key].float() for mode, tensors in merged.items()}
    published, own = outputs["retain_rank"], outputs["own_rank"]
    torch.testing.assert_close(published["forget_only"], 32 * own["forget_only"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(published["retain_only"], own["retain_only"])
