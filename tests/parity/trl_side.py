"""TRL's side of the comparison: a trainer that keeps everything of its first steps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.study.cell import Cell
from rewardgrid.train.engines import trl as engine

CPU = torch.device("cpu")


@dataclass
class Step:
    """What TRL saw and did in one step; (B, ...) in the order in which the completions were made.

    Attributes:
        batch: TRL's batch: prompt_ids, completion_ids, completion_mask, advantages, ref_per_token_logps; flagged.
        rewards: (B,) what its reward function said.
        gradient: by name, before clipping.
        weights: by name, after the optimizer.
        figures: loss, kl, entropy, grad_norm, clipped (the norm after clipping), lr.
    """

    batch: dict[str, Tensor]
    rewards: Tensor
    gradient: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


class Watched(engine.Trainer):
    """The engine's trainer, which remembers. ``dtype`` is that of its whole arithmetic."""

    def __init__(self, cell: Cell, base: Base, dtype: torch.dtype, own_rollouts: bool = True) -> None:
        transformers.logging.set_verbosity_error()
        warnings.filterwarnings("ignore", category=FutureWarning)
        self.dtype = dtype
        super().__init__(cell, base, 0, CPU, own_rollouts)
        self.model.to(dtype)
        if self.ref_model is not None:
            self.ref_model.to(dtype)
        self.frozen = {key: weight.to(dtype) for key, weight in self.frozen.items()}
        self.seen: list[Step] = []
        self.add_callback(Watcher(self))
        self.remove_callback(transformers.PrinterCallback)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *rest: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None, None]:
        if self.dtype == torch.float32:
            found: tuple[Tensor, Tensor | None, None] = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *rest, **options
            )
            return found
        # TRL's own head computes in float32 whatever the model's type: the same words in float64.
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -logits_to_keep - 1 : -1]
        every = logits.log_softmax(-1)
        chosen = every.gather(-1, input_ids[:, -logits_to_keep:, None]).squeeze(-1)
        self.logps = chosen
        return chosen, -(every.exp() * every).sum(-1).detach(), None

    def _calculate_rewards(self, *arguments: Any) -> Tensor:
        found: Tensor = super()._calculate_rewards(*arguments).to(self.dtype)
        self.paid = found[:, 0].clone()
        return found

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        out = super()._generate_and_score_completions(inputs)
        batch = {key: value.detach().clone() for key, value in out.items() if isinstance(value, Tensor)}
        self.seen.append(Step(batch, self.paid))
        return out

    def training_step(self, *arguments: Any) -> Tensor:
        loss: Tensor = super().training_step(*arguments)
        if len(self.seen) <= self.state.global_step:  # a further update on the same completions
            self.seen.append(Step(self.seen[-1].batch, self.seen[-1].rewards))
        self.seen[-1].gradient = by_name(self, gradients=True)
        return loss


class Watcher(transformers.TrainerCallback):  # type: ignore[misc]
    """Notes what only the loop knows."""

    def __init__(self, trainer: Watched) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The rate that the optimizer is about to use, and the norm of what clipping left."""
        trainer = self.trainer
        clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        trainer.seen[-1].figures |= {"lr": trainer.optimizer.param_groups[0]["lr"], "clipped": float(clipped)}

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        """After the optimizer's step."""
        if "grad_norm" in logs:
            step = self.trainer.seen[-1]
            step.figures |= self.trainer.row | {"grad_norm": float(logs["grad_norm"])}
            step.weights = by_name(self.trainer, gradients=False)


@torch.no_grad()
def by_name(trainer: Watched, gradients: bool) -> dict[str, Tensor]:
    """Trained values or their gradients under the names of Hugging Face, or of PEFT after the adapter's name."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    values = [p.data for p in trained]
    if gradients:
        for parameter in trained:
            assert parameter.grad is not None
            parameter.data = parameter.grad
    found = {
        name if adapter == "model" else f"{adapter}/{name}": value.clone()
        for adapter, tensors in trainer.tensors().items()
        for name, value in tensors.items()
    }
    for parameter, value in zip(trained, values, strict=True):
        parameter.data = value
    return found


def watch(cell: Cell, base: Base, dtype: torch.dtype, own_rollouts: bool = True) -> list[Step]:
    """Train a cell with TRL and return all of its steps."""
    # TRL divides counts of completions in torch's default type.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        trainer = Watched(cell, base, dtype, own_rollouts)
        trainer.train()
    finally:
        torch.set_default_dtype(before)
    assert len(trainer.seen) == cell.max_steps
    return trainer.seen
