"""What parity pins: a formula is turned wrong wherever it stands, in both engines alike, and the comparison must fail.

``test_step_against_trl`` compares a mutated native side with a sound one of TRL's. Here a wrong formula reaches both:
it goes unnoticed if TRL's side takes it from the same place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.parity import native_side
from tests.parity.native_side import EXACT, follow
from tests.parity.test_step_against_trl import VARIANTS
from tests.parity.trl_side import watch
from tests.tiny import exact_hf, lora_cell, make_cell, routing_cell
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.adapters import Adapter
from rewardgrid.study.cell import Cell
from rewardgrid.train import grpo, routing
from rewardgrid.train.engines import native

Mutation = Callable[[pytest.MonkeyPatch], None]

SHORT: dict[str, Any] = {"max_steps": 2, "decay_steps": 4, "seed": 5}
"""Two steps tell: the first of advantages and losses, the second of KL and schedule. The seed has groups whose
completions are not all paid alike."""


def instead(original: Any, mutant: Any) -> Mutation:
    """Puts a mutant in the original's place in every module of rewardgrid that has it, under whatever name."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for module in [module for name, module in sys.modules.items() if name.startswith("rewardgrid")]:
            for name, value in list(vars(module).items()):
                if value is original:
                    monkeypatch.setattr(module, name, mutant)

    return patch


def constant(name: str, value: Any) -> Mutation:
    """The same of a constant of ``grpo``."""
    return instead(getattr(grpo, name), value)


def kl(value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Mutation:
    """A wrong estimate with the slope that is its own, as functions of log-probability minus reference."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        instead(grpo.kl_estimate, lambda logps, reference, *_: value(logps - reference))(monkeypatch)
        instead(grpo.kl_slope, lambda logps, reference, *_: slope(logps - reference))(monkeypatch)

    return patch


def divided(by: Callable[[Tensor, int], Tensor]) -> Mutation:
    """A loss that is averaged over something else."""
    return instead(grpo.loss_tokens, lambda mask, _type="", length=0: by(mask, length))


def of_variant(**changes: Any) -> Mutation:
    """Another objective than the cell's."""
    sound = grpo.Variant.of

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(grpo.Variant, "of", lambda cell: replace(sound(cell), **changes))

    return patch


def scaled(by: Callable[[Tensor, Tensor], Tensor]) -> Mutation:
    """Advantages with another divisor; the function is given groups (C, n, G) and rewards (C, B)."""

    def advantages(rewards: Tensor, group: int, *_: object) -> Tensor:
        groups = rewards.unflatten(-1, (-1, group))
        return ((groups - groups.mean(-1, keepdim=True)) / by(groups, rewards)).flatten(-2)

    return instead(grpo.advantages, advantages)


def rate(share: Callable[[Tensor, Tensor, int], Tensor]) -> Mutation:
    """Another schedule: the share of the peak by step, steps of decay and of the warm-up."""
    return instead(
        grpo.learning_rate, lambda peak, step, decay, _kind="linear", warmup=0: peak * share(step, decay, warmup)
    )


def alphas(change: Callable[[Adapter, Cell], float]) -> Mutation:
    """Adapters with another alpha."""
    sound = routing.adapters_of

    def adapters(cell: Cell) -> tuple[Adapter, ...]:
        return tuple(replace(adapter, alpha=change(adapter, cell)) for adapter in sound(cell))

    return instead(sound, adapters)


def sound_rate(**wrong: Any) -> Mutation:
    """The schedule as it is, but for some of its settings."""
    sound = grpo.learning_rate

    def learning_rate(peak: Tensor, step: Tensor, decay: Tensor, kind: Any = "linear", warmup: int = 0) -> Tensor:
        return sound(peak, step, decay, wrong.get("kind", kind), max(0, warmup + wrong.get("warmup", 0)))

    return instead(sound, learning_rate)


def with_beta(beta: float) -> Mutation:
    """A KL in the native loss, whatever the cell says."""

    class Wrong(native.Pack):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.beta = torch.full_like(self.beta, beta)

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native_side, "Pack", Wrong)

    return patch


WARM = make_cell(warmup_steps=3, **SHORT)
CLIPPED: dict[str, Any] = {"num_iterations": 2, "epsilon": 0.01, "epsilon_high": 0.03}

# Ranks by which the scale is a round number: it is a float32, whatever the arithmetic.
MUTATIONS: dict[str, tuple[Cell, Mutation]] = {
    "k1: half of it": (make_cell(kl_estimator="k1"), kl(lambda d: d / 2, lambda d: torch.full_like(d, 0.5))),
    "k1: the other way round": (make_cell(kl_estimator="k1"), kl(lambda d: -d, lambda d: -torch.ones_like(d))),
    "k2: not halved": (make_cell(kl_estimator="k2"), kl(lambda d: d * d, lambda d: 2 * d)),
    "k2: of absolute values": (make_cell(kl_estimator="k2"), kl(torch.abs, torch.sign)),
    "k3: the other way round": (make_cell(), kl(lambda d: d.exp() - d - 1, lambda d: d.exp() - 1)),
    "k3: its slope alone": (make_cell(), instead(grpo.kl_slope, lambda logps, reference, *_: logps - reference)),
    "none: with a KL": (make_cell(kl_estimator="none"), with_beta(0.1)),
    "grpo: over all that might be": (
        make_cell(),
        divided(lambda mask, length: torch.full_like(mask.sum(-1), length)),
    ),
    "dr_grpo: one token less": (
        make_cell(loss_type="dr_grpo"),
        divided(lambda mask, length: torch.full_like(mask.sum(-1), length - 1)),
    ),
    "k1 under dr_grpo: over its own tokens": (
        make_cell(loss_type="dr_grpo", kl_estimator="k1"),
        divided(lambda mask, _: mask.sum(-1)),
    ),
    "dapo: the longest of the batch": (
        make_cell(loss_type="dapo"),
        divided(lambda mask, _: mask.sum(-1).amax(-1, keepdim=True).expand(mask.shape[:2])),
    ),
    "epsilon_high: epsilon": (make_cell(**CLIPPED), of_variant(epsilon_high=0.01)),
    "epsilon: epsilon_high": (make_cell(**CLIPPED), of_variant(epsilon=0.03)),
    "num_iterations: as if on policy": (
        make_cell(num_iterations=2),
        lambda patch: instead(
            grpo.logp_grads,
            lambda logps, reference, advantage, share, beta, old, variant, sound=grpo.logp_grads: sound(
                logps, reference, advantage, share, beta, None, variant
            ),
        )(patch),
    ),
    "scale_rewards group: biased": (
        make_cell(),
        scaled(lambda groups, _: groups.std(-1, keepdim=True, correction=0) + 1e-4),
    ),
    "scale_rewards group: another epsilon": (make_cell(), constant("ADVANTAGE_EPSILON", 1e-6)),
    "scale_rewards batch: of the group": (
        make_cell(scale_rewards="batch"),
        scaled(lambda groups, _: groups.std(-1, keepdim=True) + 1e-4),
    ),
    "scale_rewards batch: biased": (
        make_cell(scale_rewards="batch"),
        scaled(lambda _, rewards: rewards.std(-1, correction=0)[..., None, None] + 1e-4),
    ),
    "scale_rewards none: of the group": (
        make_cell(scale_rewards="none"),
        scaled(lambda groups, _: groups.std(-1, keepdim=True) + 1e-4),
    ),
    "adapter_alpha rank: 8": (lora_cell(), alphas(lambda *_: 8)),
    "adapter_alpha constant: 16": (lora_cell(rank=4, adapter_alpha="constant"), alphas(lambda *_: 16)),
    "adapter_alpha sqrt: without the root": (
        lora_cell(rank=2, adapter_alpha="sqrt"),
        alphas(lambda each, _: 8 * each.rank),
    ),
    "adapter_alpha retain_rank: own": (routing_cell(), alphas(lambda each, _: each.rank)),
    "adapter_alpha own_rank: retain's": (
        routing_cell(adapter_alpha="own_rank"),
        alphas(lambda _, cell: cell.rank or 0),
    ),
    "linear: a step ahead": (make_cell(), rate(lambda step, decay, _: 1 - (step + 1) / decay)),
    "cosine: linear": (make_cell(lr_scheduler_type="cosine"), sound_rate(kind="linear")),
    "cosine: half a wave too far": (
        make_cell(lr_scheduler_type="cosine"),
        rate(lambda step, decay, _: (1 + (2 * torch.pi * step / decay).cos()) / 2),
    ),
    "constant: linear": (make_cell(lr_scheduler_type="constant"), sound_rate(kind="linear")),
    "constant_with_warmup: without": (
        make_cell(lr_scheduler_type="constant_with_warmup", warmup_steps=3),
        sound_rate(warmup=-3),
    ),
    "warmup_steps: one less": (WARM, sound_rate(warmup=-1)),
    "warmup_steps: from the first step on": (WARM, rate(lambda step, _, warmup: (step + 1) / max(1, warmup))),
    "warmup_ratio: rounded down": (make_cell(warmup_ratio=0.3), sound_rate(warmup=-1)),
    "Adam: its betas": (make_cell(), constant("BETAS", (0.9, 0.99))),
    "Adam: its epsilon": (make_cell(), constant("ADAM_EPSILON", 1e-6)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_formula_that_is_wrong_everywhere_is_noticed(name: str, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, mutate = MUTATIONS[name]
    mutate(monkeypatch)
    cell = cell.model_copy(update=SHORT)
    with exact_hf():
        steps = watch(cell, base, torch.float64)
    assert follow(cell, base, steps, torch.float64, EXACT) != []
    # TRL's side was sound all the while: it does not take the formula from where the native engine does.
    monkeypatch.undo()
    assert follow(cell, base, steps, torch.float64, EXACT) == []


def test_every_variant_is_mutated() -> None:
    settings: dict[str, set[str]] = {
        key: set() for key in ("loss_type", "scale_rewards", "kl_estimator", "lr_scheduler_type")
    }
    for cell, _ in MUTATIONS.values():
        for key, seen in settings.items():
            seen.add(getattr(cell, key))
    varied = {key: {getattr(cell, key) for cell in VARIANTS.values()} for key in settings}
    for key, wanted in varied.items():
        # dapo and bnpo are one loss.
        assert {"dapo" if each == "bnpo" else each for each in wanted} <= settings[key], key
