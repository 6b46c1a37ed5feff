"""The native engine's side: it is given TRL's completions and rewards, and followed step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from tests.parity.trl_side import CPU, Step
from tests.tiny import named
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.hf.peft import from_peft
from rewardgrid.lm.sampler import Completions
from rewardgrid.study.cell import Cell
from rewardgrid.train import grpo
from rewardgrid.train.engines.native import Pack
from rewardgrid.train.policy import Policy
from rewardgrid.train.rewards import Scores
from rewardgrid.train.rollout import Rollout
from rewardgrid.train.routing import Labels

Mask = Callable[[Completions], Tensor]


@dataclass(frozen=True)
class Tolerance:
    """Largest differences: ``relative`` to the largest value of a tensor; ``weights`` in learning rates."""

    relative: float
    weights: float
    stray: float
    """Share of a tensor's weights that may differ by more than ``weights``; of a small tensor, one of them."""
    afresh: bool
    """Whether each step starts from TRL's weights."""


EXACT = Tolerance(relative=1e-9, weights=1e-6, stray=0.0, afresh=False)
# In float32 an element whose gradient is itself a rounding error is moved by up to a learning rate, one way or the
# other, because Adam divides by its size. Those few strays would grow from step to step.
SINGLE = Tolerance(relative=1e-4, weights=1e-2, stray=0.02, afresh=True)


def rollout_of(step: Step, eos: int, mask: Mask | None = None) -> Rollout:
    """TRL's batch as the native engine's rollout (C = 1)."""
    ids = step.batch["completion_ids"].unsqueeze(0)
    completions = Completions(ids, step.batch["completion_mask"].bool().unsqueeze(0), eos)
    if mask is not None:
        completions = Completions(ids, mask(completions), eos)
    flagged = step.batch.get("flagged", torch.zeros(ids.shape[1], dtype=torch.bool)).unsqueeze(0)
    rewards = step.rewards.unsqueeze(0)
    none = torch.zeros_like(flagged)
    return Rollout(
        torch.cat([step.batch["prompt_ids"].unsqueeze(0), ids], -1),
        completions,
        Scores(rewards, rewards, torch.zeros_like(rewards)),
        Labels(none, none, none, flagged),
        rewards,
        none,
    )


def follow(
    cell: Cell, base: Base, steps: Sequence[Step], dtype: torch.dtype, tolerance: Tolerance, mask: Mask | None = None
) -> list[str]:
    """Everything in which a native run of the cell on TRL's completions differs from TRL's; nothing: parity.

    Args:
        mask: replaces the native engine's mask of completion tokens (a mutation).
    """
    pack = Pack([cell], base, CPU, dtype)
    found: list[str] = []
    for number, step in enumerate(steps, 1):
        rollout = rollout_of(step, base.vocabulary.eos, mask)
        shown = step.batch["completion_mask"].bool()
        advantage = grpo.advantages(rollout.rewards, cell.num_generations, cell.scale_rewards)[0]
        reference = pack.reference_logps(rollout)
        fresh = (number - 1) % cell.num_iterations == 0
        columns = pack.update(rollout, reference) if fresh else pack.another_update()[1]
        clipped = columns["grad_norm"] * grpo.clip_factor(columns["grad_norm"], pack.max_grad_norm)
        figures = {key: float(columns[key]) for key in ("loss", "kl", "entropy", "grad_norm", "lr")}
        pairs: list[tuple[str, Tensor, Tensor]] = [
            ("advantages", advantage, step.batch["advantages"]),
        ]
        if "ref_per_token_logps" in step.batch:
            pairs.append(("reference", reference[0][shown], step.batch["ref_per_token_logps"][shown]))
        for key, value in (figures | {"clipped": float(clipped)}).items():
            pairs.append((key, *torch.tensor([[value], [step.figures[key]]], dtype=torch.float64)))
        pairs += _by_name("gradient", named(pack.policy, pack.policy.gradient), step.gradient)
        for what, ours, theirs in pairs:
            difference = apart(ours, theirs)
            # Loss and KL are differences of larger numbers: what is left is compared with those.
            scale = 1.0 if what in ("loss", "kl") else max(float(theirs.abs().max()), 1e-6)
            if not difference <= tolerance.relative * scale:
                found.append(f"step {number}: {what} differs by {difference:.3g} of {scale:.3g}")
        lr = figures["lr"]
        for what, ours, theirs in _by_name("weights", named(pack.policy, pack.policy.parameters), step.weights):
            far = (ours - theirs).abs() > tolerance.weights * lr + torch.finfo(dtype).eps * theirs.abs()
            if int(far.sum()) > max(tolerance.stray * far.numel(), float(tolerance.stray > 0)):
                found.append(f"step {number}: {what}: {int(far.sum())} of {far.numel()} differ")
        if tolerance.afresh:
            put(pack.policy, step.weights)
    return found


@torch.no_grad()
def put(policy: Policy, tensors: dict[str, Tensor]) -> None:
    """Set the trained weights of a pack of one cell from tensors by name."""
    adapters = policy.adapters[0]
    if adapters:
        split = [
            (each, {key.removeprefix(f"{each.name}/"): t for key, t in tensors.items() if key.startswith(each.name)})
            for each in adapters
        ]
        weights = from_peft(policy.shape, split)
    else:
        weights = from_hf(policy.shape, tensors)
    for key, view in policy.views.items():
        view.copy_(weights[key])


def _by_name(what: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Iterable[tuple[str, Tensor, Tensor]]:
    assert ours.keys() == theirs.keys()
    return [(f"{what} of {name}", ours[name], theirs[name]) for name in theirs]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; infinite where one of the two is not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    difference = (ours.double() - theirs.double()).abs().max()
    return float(difference) if torch.isfinite(difference) else float("inf")
