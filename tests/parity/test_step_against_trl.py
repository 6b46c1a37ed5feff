"""The native step against TRL's, on TRL's own completions and rewards.

Compared for four steps of a full, a LoRA (PEFT) and a routing cell: advantages, reference log-probabilities, loss, KL,
entropy, every parameter's gradient before clipping, the norm before and after it, the learning rate, and every weight
after AdamW. In float64 they agree to 1e-9 of the largest value, weights to a millionth of the learning rate; in
float32, each step from TRL's weights, to 1e-4, and weights to a hundredth of the learning rate (but for 2 % whose
gradient is a rounding error).

The second half turns one thing at a time wrong on the native side: then the comparison has to fail.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.parity.conftest import Traces
from tests.parity.native_side import EXACT, SINGLE, Mask, Tolerance, follow
from tests.parity.trl_side import Step, watch
from tests.tiny import CELLS, FAMILIES, exact_hf, lora_cell, make_cell, routing_cell
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.adapters import adapted
from rewardgrid.lm.sampler import Completions
from rewardgrid.study.cell import Cell
from rewardgrid.train import grpo, policy
from rewardgrid.train.engines import native
from rewardgrid.train.routing import reach

ARITHMETIC = {torch.float64: EXACT, torch.float32: SINGLE}


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("dtype", ARITHMETIC, ids=str)
@pytest.mark.parametrize("method", CELLS)
def test_every_step_is_trls(method: str, dtype: torch.dtype, base: Base, trl_steps: Traces) -> None:
    assert follow(CELLS[method](), base, trl_steps(method, dtype), dtype, ARITHMETIC[dtype]) == []


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_the_steps_hold_what_a_wrong_engine_would_stumble_over(trl_steps: Traces) -> None:
    for method in CELLS:
        steps = trl_steps(method, torch.float64)
        masks = torch.cat([step.batch["completion_mask"].flatten() for step in steps])
        ends = torch.cat([(step.batch["completion_ids"] == 1).any(1) for step in steps])
        assert (masks == 0).any()
        assert 0 < ends.double().mean() < 1
        assert all(step.rewards.std() > 0 for step in steps)
        assert all(step.figures["kl"] > 1e-5 for step in steps[1:])
    full, routed = trl_steps("full", torch.float64), trl_steps("routing", torch.float64)
    assert any(step.figures["grad_norm"] > 1.5 for step in full)
    shares = [float(step.batch["flagged"].double().mean()) for step in routed]
    assert 0 < shares[0] < 1
    assert 0 < shares[1] < 1


OTHERS: dict[str, Cell] = {
    "exclusive routing, scale 1, a third of the labels noise": routing_cell(
        routing_mode="exclusive", adapter_alpha="own_rank", label_noise_frac=0.33, seed=3
    ),
    "ranks whose ratio is no round number": routing_cell(rank=3, forget_rank=7, seed=4),
    "prompt_eos, no penalty, small clip": lora_cell(
        prompt_eos=True, repetition_penalty=1.0, max_grad_norm=0.05, seed=5
    ),
    "an alpha that does not grow with the rank": lora_cell(adapter_alpha="constant", seed=5),
    "an alpha that grows with its root": lora_cell(adapter_alpha="sqrt", seed=5),
    "prompt_eos, all weights trained": make_cell(prompt_eos=True, seed=5),
    "one large group, another reward": make_cell(num_generations=8, reward="happy_count", seed=6),
}


@pytest.mark.parametrize("cell", OTHERS.values(), ids=OTHERS)
def test_other_cells_are_trls_too(cell: Cell, base: Base) -> None:
    assert follow(cell, base, watch(cell, base, torch.float32), torch.float32, SINGLE) == []


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_completions_that_hugging_face_generated_are_trained_on_alike(method: str, base: Base) -> None:
    # TRL tokenises prompts itself here, and with the end token that a plain encode appends: prompt_eos.
    cell = CELLS[method](prompt_eos=True, seed=8)
    with exact_hf():
        steps = watch(cell, base, torch.float64, own_rollouts=False)
    assert all(step.rewards.std() > 0 for step in steps)
    assert steps[0].batch["prompt_ids"].shape == (8, 5)
    assert (steps[0].batch["prompt_ids"][:, -1] == base.vocabulary.eos).all()
    assert follow(cell, base, steps, torch.float64, EXACT) == []


VARIANTS: dict[str, Cell] = {
    "Dr. GRPO": make_cell(loss_type="dr_grpo", scale_rewards="none", seed=5),
    "DAPO": lora_cell(loss_type="dapo", num_iterations=2, epsilon=0.01, epsilon_high=0.03, seed=5),
    "token-level loss, deviation of the batch": routing_cell(loss_type="bnpo", scale_rewards="batch", seed=3),
    "three updates, clipped on both sides": make_cell(num_iterations=3, epsilon=0.02, epsilon_high=0.05, max_steps=6),
    "several updates of a routing cell": routing_cell(num_iterations=2, epsilon=0.01, seed=3),
    "k1": make_cell(kl_estimator="k1", loss_type="dr_grpo", seed=5),
    "k2": lora_cell(kl_estimator="k2", num_iterations=2, seed=5),
    "no KL": make_cell(kl_estimator="none", seed=5),
    "linear after a warm-up": make_cell(warmup_steps=2, decay_steps=9, seed=5),
    "linear after a warm-up of a share": make_cell(warmup_ratio=0.15, decay_steps=9, seed=5),
    "cosine": make_cell(lr_scheduler_type="cosine", seed=5),
    "cosine after a warm-up": make_cell(lr_scheduler_type="cosine", warmup_steps=1, seed=5),
    "constant": make_cell(lr_scheduler_type="constant", seed=5),
    "constant after a warm-up": make_cell(lr_scheduler_type="constant_with_warmup", warmup_steps=2, seed=5),
}
DIFFERENT: dict[str, list[dict[str, Any]]] = {
    "Dr. GRPO": [{"loss_type": "grpo"}, {"loss_type": "bnpo"}, {"scale_rewards": "group"}, {"max_new_tokens": 17}],
    "DAPO": [{"loss_type": "grpo"}, {"epsilon_high": 0.01}, {"epsilon": 0.03}],
    "token-level loss, deviation of the batch": [{"loss_type": "grpo"}, {"scale_rewards": "group"}],
    "three updates, clipped on both sides": [{"epsilon": 0.2}, {"epsilon_high": 0.2}],
    "several updates of a routing cell": [{"epsilon": 0.2}],
    "k1": [{"kl_estimator": "k3"}, {"kl_estimator": "k2"}, {"beta": 0.0}],
    "k2": [{"kl_estimator": "k3"}, {"kl_estimator": "k1"}],
    "no KL": [{"beta": 0.01}],
    "linear after a warm-up": [{"warmup_steps": 1}, {"warmup_steps": 0}],
    "linear after a warm-up of a share": [{"warmup_ratio": 0.11}, {"warmup_ratio": 0.3}],
    "cosine": [{"lr_scheduler_type": "linear"}],
    "cosine after a warm-up": [{"warmup_steps": 0}, {"lr_scheduler_type": "linear"}],
    "constant": [{"lr_scheduler_type": "linear"}],
    "constant after a warm-up": [{"warmup_steps": 1}],
}
"""What makes another run of each: the comparison has to notice."""


@pytest.fixture(scope="module")
def variant_steps(base: Base) -> Callable[[str], list[Step]]:
    """TRL's steps of a variant in double precision; computed once."""

    @functools.cache
    def steps(name: str) -> list[Step]:
        with exact_hf():
            return watch(VARIANTS[name], base, torch.float64)

    return steps


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_trls(name: str, base: Base, variant_steps: Callable[[str], list[Step]]) -> None:
    assert follow(VARIANTS[name], base, variant_steps(name), torch.float64, EXACT) == []


@pytest.mark.parametrize(
    ("name", "changes"), [(name, each) for name, list_ in DIFFERENT.items() for each in list_], ids=str
)
def test_another_variant_is_noticed(
    name: str, changes: dict[str, Any], base: Base, variant_steps: Callable[[str], list[Step]]
) -> None:
    other = VARIANTS[name].model_copy(update=changes)
    assert follow(other, base, variant_steps(name), torch.float64, EXACT) != []


# --- what the comparison must notice -------------------------------------------------------------------------


def without_the_end(done: Completions) -> Tensor:
    return done.mask & (done.ids != done.eos)


def with_padding(done: Completions) -> Tensor:
    return torch.ones_like(done.mask)


def biased(rewards: Tensor, group: int, *_: object) -> Tensor:
    groups = rewards.unflatten(-1, (-1, group))
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True, correction=0) + 1e-4)).flatten(-2)


def over_the_batch(rewards: Tensor, group: int, *_: object) -> Tensor:
    groups = rewards.unflatten(-1, (-1, group))
    return ((groups - groups.mean(-1, keepdim=True)) / (rewards.std(-1)[..., None, None] + 1e-4)).flatten(-2)


def over_all_tokens(
    logps: Tensor, reference: Tensor, advantage: Tensor, mask: Tensor, beta: Tensor, *_: object
) -> Tensor:
    """The default of later TRL: every token weighs the same, whatever its sequence's length."""
    ratio = (logps - logps.detach()).exp()
    per_token = -ratio * advantage.unsqueeze(-1) + beta[:, None, None] * grpo.k3(logps, reference)
    return (per_token * mask).sum(-1) * mask.shape[1] / mask.sum((1, 2)).unsqueeze(1)


def k1(logps: Tensor, reference: Tensor) -> Tensor:
    return logps - reference


def constant(peak: Tensor, step: Tensor, max_steps: Tensor, *_: object) -> Tensor:
    return peak


def one_step_ahead(peak: Tensor, step: Tensor, max_steps: Tensor, *_: object) -> Tensor:
    return peak * (1 - (step + 1) / max_steps).clamp(min=0)


def unclipped(norm: Tensor, largest: Tensor) -> Tensor:
    return torch.ones_like(norm)


def unrouted(flagged: Tensor, is_forget: Tensor, exclusive: bool) -> Tensor:
    return torch.ones_like(reach(flagged, is_forget, exclusive))


def swapped(flagged: Tensor, is_forget: Tensor, exclusive: bool) -> Tensor:
    return reach(flagged, ~is_forget, exclusive)


def inverted(flagged: Tensor, is_forget: Tensor, exclusive: bool) -> Tensor:
    return reach(~flagged, is_forget, exclusive)


def reweighted(flagged: Tensor, is_forget: Tensor, exclusive: bool) -> Tensor:
    """Each part counts as if it were the whole batch."""
    share = flagged.float().mean(1, keepdim=True)
    weight = torch.where(flagged, 1 / share.clamp(min=0.1), 1 / (1 - share).clamp(min=0.1))
    return reach(flagged, is_forget, exclusive) * weight.unsqueeze(-1)


def through_forget_alone(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    segments: tuple[int, ...],
    mask: Tensor | None,
    _compute: object = None,
) -> Tensor:
    """Adapters whose activation gradient is masked like that of the parameters."""
    if mask is None:
        return adapted(x, weight, a, b, scale, segments)
    rows = mask.repeat_interleave(x.shape[1] // mask.shape[1], 1).to(x.dtype)
    parts = []
    rank = b.shape[-1]
    places = range(len(segments))
    for place, right, w in zip(places, b.split(segments, 1), weight.split(segments, 1), strict=True):
        z = torch.bmm(x, a[:, place * rank : (place + 1) * rank].mT) * scale.unsqueeze(1)
        z = z * rows + (z * (1 - rows)).detach()
        parts.append(torch.matmul(x, w.mT) + torch.bmm(z, right.mT))
    return torch.cat(parts, -1)


def set_betas(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(grpo, "BETAS", (0.8, 0.999))


@dataclass(frozen=True)
class Mutant:
    """One thing wrong with the native side."""

    methods: tuple[str, ...] = ("full", "lora", "routing")
    spec: dict[str, Any] = field(default_factory=dict)
    replace: dict[str, Any] = field(default_factory=dict)
    """Names in ``native`` and what stands there instead."""
    patch: Callable[[pytest.MonkeyPatch], None] | None = None
    mask: Mask | None = None


MUTANTS: dict[str, Mutant] = {
    "beta": Mutant(spec={"beta": 0.105}),
    "no KL": Mutant(spec={"beta": 0.0}),
    "another estimate of the KL": Mutant(replace={"k3": k1}),
    "learning rate": Mutant(spec={"lr": 3.03e-3}, methods=("full",)),
    "length of the schedule": Mutant(spec={"max_steps": 5}),
    "no decay": Mutant(replace={"learning_rate": constant}),
    "decay one step early": Mutant(replace={"learning_rate": one_step_ahead}),
    "clip": Mutant(spec={"max_grad_norm": 0.99}, methods=("full",)),
    "no clip": Mutant(replace={"clip_factor": unclipped}, methods=("full",)),
    "advantage epsilon": Mutant(patch=lambda patch: patch.setattr(grpo, "ADVANTAGE_EPSILON", 1e-6)),
    "biased deviation": Mutant(replace={"advantages": biased}),
    "deviation of the batch": Mutant(replace={"advantages": over_the_batch}),
    "size of the groups": Mutant(spec={"num_generations": 2}),
    "end token left out": Mutant(mask=without_the_end),
    "padding counted": Mutant(mask=with_padding),
    "loss over all tokens": Mutant(replace={"sequence_losses": over_all_tokens}),
    "betas of Adam": Mutant(patch=set_betas),
    "epsilon of Adam": Mutant(patch=lambda patch: patch.setattr(grpo, "ADAM_EPSILON", 1e-3)),
    "nothing routed": Mutant(("routing",), replace={"reach": unrouted}),
    "adapters swapped": Mutant(("routing",), replace={"reach": swapped}),
    "labels inverted": Mutant(("routing",), replace={"reach": inverted}),
    "parts not weighted": Mutant(("routing",), replace={"reach": reweighted}),
    "exclusive for shared": Mutant(("routing",), spec={"routing_mode": "exclusive"}),
    "scale of the adapter": Mutant(("lora",), spec={"adapter_alpha": "sqrt"}),
    "scale of forget": Mutant(("routing",), spec={"adapter_alpha": "own_rank"}),
    "activation gradients masked": Mutant(
        ("routing",), patch=lambda patch: patch.setattr(policy, "adapted", through_forget_alone)
    ),
    "seed of the adapters": Mutant(("lora", "routing"), spec={"seed": 8}),
}


@pytest.mark.parametrize("tolerance", [EXACT, SINGLE], ids=["exact", "single"])
@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name, mutant in MUTANTS.items() for method in mutant.methods]
)
def test_the_comparison_notices(
    name: str,
    method: str,
    tolerance: Tolerance,
    base: Base,
    trl_steps: Traces,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant, dtype = MUTANTS[name], torch.float64 if tolerance is EXACT else torch.float32
    for key, value in mutant.replace.items():
        monkeypatch.setattr(native, key, value)
        if key == "advantages":
            monkeypatch.setattr(grpo, key, value)
    if mutant.patch:
        mutant.patch(monkeypatch)
    cell = CELLS[method]().model_copy(update=mutant.spec)
    assert follow(cell, base, trl_steps(method, dtype), dtype, tolerance, mutant.mask) != []
