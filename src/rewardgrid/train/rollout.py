"""One step's rollout and what is made of it: draws, scores, labels, table rows. Shared by the engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.draws import prompt_order, uniforms
from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights
from rewardgrid.lm.sampler import Completions, sample
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import SAYS
from rewardgrid.study.own import Code
from rewardgrid.train.own import Functions
from rewardgrid.train.record import Outcome
from rewardgrid.train.rewards import Scores, TextTables, score, text_tables
from rewardgrid.train.routing import Labels, label


@dataclass(frozen=True)
class Draws:
    """Everything random about one step of C cells.

    Attributes:
        prompts: (C, B, P) token ids, each prompt repeated num_generations times.
        tokens: (C, B, L) uniforms of the rollout.
        labels: (C, B, 3) uniforms of eligibility, routing and label noise.
    """

    prompts: Tensor
    tokens: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Draws:
        """The same draws on another device."""
        return Draws(self.prompts.to(device), self.tokens.to(device), self.labels.to(device))

    @classmethod
    def of_step(cls, cells: Sequence[Cell], prompts: np.ndarray, steps: Sequence[int]) -> Draws:
        """The draws of one step (from 0) of each cell; prompts is (number, P)."""
        chosen, tokens, labels = [], [], []
        for cell, step in zip(cells, steps, strict=True):
            order = prompt_order(cell.seed, step, cell.prompts_per_step, len(prompts))
            chosen.append(np.repeat(prompts[order], cell.num_generations, axis=0))
            tokens.append(uniforms(cell.seed, "rollout", step, (cell.batch_size, cell.max_new_tokens)))
            labels.append(uniforms(cell.seed, "labels", step, (cell.batch_size, 3)))
        return cls(*(torch.from_numpy(np.stack(each)) for each in (chosen, tokens, labels)))


@dataclass(frozen=True)
class Rollout:
    """What the policy wrote in one step, and what it is worth (all with a leading cell axis)."""

    sequences: Tensor
    completions: Completions
    full: Scores
    labels: Labels
    rewards: Tensor
    hacked: Tensor


class Assessor:
    """Pays and labels the completions of C cells that agree in reward and detector.

    ``functions`` are of one's own. They are called on the host and before everything else here, which is tensors alone.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        base: Base,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        metrics: Sequence[Code] = (),
    ) -> None:
        """``metrics`` are further functions that :meth:`ask` is to call, and sums that may be asked for."""
        vocabulary, like = base.vocabulary, cells[0]
        self.reward, self.base_reward, self.detector = like.reward, like.base_reward, like.detector
        self.threshold = like.hacked_from
        known = [*like.own, *metrics]
        self.functions = Functions(known, base)
        self.sums = {code.name: code.parts for code in known if code.parts}
        self.tables: TextTables = text_tables(vocabulary.surfaces, vocabulary.delimiters, vocabulary.eos).to(device)
        self.dtype = dtype

        def each(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.eligible = each([1.0 if cell.rh_eligible_frac is None else cell.rh_eligible_frac for cell in cells])
        self.routing = each([cell.routing_frac or 0.0 for cell in cells])
        self.noise = each([cell.label_noise_frac or 0.0 for cell in cells])

    def ask(self, prompts: Tensor, completions: Completions, when: Sequence[str | None]) -> dict[str, Tensor]:
        """What functions of one's own say of completions, (C, B) by name; nothing where there are none.

        Args:
            prompts: (C, B, P).
            when: of each cell, for error messages, such as ``step 12``; None: it has finished and is not asked.

        Raises:
            OwnCodeError: a function raised, or did not return a finite number for each completion.
        """
        if not self.functions:
            return {}
        number = prompts.shape[1]
        nothing = dict.fromkeys(self.functions.functions, [0.0] * number)
        rows = [
            nothing if each is None else self.functions(prompts, completions, cell, each)
            for cell, each in enumerate(when)
        ]
        return {
            name: torch.tensor([row[name] for row in rows], dtype=self.dtype).to(prompts.device) for name in nothing
        }

    def scores(self, completions: Completions, said: Mapping[str, Tensor]) -> tuple[Scores, Tensor]:
        """What completions are worth, and which of them are hacked; ``said`` is what :meth:`ask` returned."""
        full = score(self.reward, completions.ids, completions.mask, self.tables, said, self.sums)
        return full, full.happy >= self.threshold if self.detector is None else said[self.detector] != 0

    def assess(self, draws: Draws, completions: Completions, said: Mapping[str, Tensor] | None = None) -> Rollout:
        """Score and label completions; eligible ones are paid the full reward, the others the base reward."""
        said = said or {}
        full, hacked = self.scores(completions, said)
        otherwise = full.sl10
        if self.base_reward is not None:
            otherwise = score(self.base_reward, completions.ids, completions.mask, self.tables, said, self.sums).reward
        labels = label(draws.labels, hacked, self.eligible, self.routing, self.noise)
        rewards = torch.where(labels.eligible, full.reward, otherwise)
        return Rollout(torch.cat([draws.prompts, completions.ids], -1), completions, full, labels, rewards, hacked)

    def summary(self, rollout: Rollout) -> dict[str, Tensor]:
        """The history's columns, each (C,), that do not depend on the update: means over the batch."""
        labels, full = rollout.labels, rollout.full
        means = {
            "reward": rollout.rewards,
            "sl10": full.sl10,
            "happy": full.happy,
            "completion_length": rollout.completions.lengths,
            "ended": rollout.completions.ended,
            "hacked": rollout.hacked,
            "eligible": labels.eligible,
            "routed": labels.routed,
            "noise": labels.noise,
            "flagged": labels.flagged,
        }
        return {key: value.to(self.dtype).mean(-1) for key, value in means.items()} | {
            "reward_std": rollout.rewards.std(-1)
        }


def mode_rows(
    cell: Cell,
    step: int,
    merged: Callable[[str], Weights],
    shape: Architecture,
    base: Base,
    assessor: Assessor,
) -> list[dict[str, Any]]:
    """Sample a routing cell with each set of adapters switched on: rows of the mode_samples table.

    The draws are their own, so training is not disturbed, and the same for every mode.

    Args:
        merged: weights (C = 1) with the adapters of an evaluation mode switched on.
    """
    assert cell.eval_modes is not None
    assert cell.eval_samples is not None
    pool = base.eval_prompts().ids
    prompts = pool[np.arange(cell.eval_samples) % len(pool)]
    random = uniforms(cell.seed, "evaluation by mode", step, (cell.eval_samples, cell.max_new_tokens))
    rows: list[dict[str, Any]] = []
    for mode in cell.eval_modes:
        weights = merged(mode)
        device = weights["embed"].device
        starts, draws = (torch.from_numpy(each).unsqueeze(0).to(device) for each in (prompts, random))
        done = sample(shape, weights, starts, draws, base.vocabulary.eos)
        said = assessor.ask(starts, done, [f"evaluation of {mode} after step {step}"])
        scores, _ = assessor.scores(done, said)
        # What the detector says: findings count it. Of other functions nothing is asked there.
        detected = {f"{SAYS}{name}": said[name][0].tolist() for name in said if name == assessor.detector}
        rows += [
            row | {"step": step, "mode": mode} | {name: values[place] for name, values in detected.items()}
            for place, row in enumerate(completion_rows(prompts, done, scores, 0, base))
        ]
    return rows


def is_evaluation_step(cell: Cell, step: int) -> bool:
    """Whether a routing cell is evaluated by mode after that many steps."""
    return cell.eval_every is not None and (step % cell.eval_every == 0 or step == cell.max_steps)


def with_eos(prompts: np.ndarray, cell: Cell, eos: int) -> np.ndarray:
    """Training prompts (number, P) of a cell, with [EOS] appended where it asks for the published accident."""
    if not cell.prompt_eos:
        return prompts
    return np.concatenate([prompts, np.full((len(prompts), 1), eos, dtype=prompts.dtype)], axis=1)


def diverged(cell: Cell, row: Mapping[str, float], step: int) -> Outcome:
    """Why a cell was stopped, from the row of the history at which it was."""
    why = (
        f"KL {row['kl']:.4g} exceeds kl_cap {cell.kl_cap:g}"
        if row["kl"] > cell.kl_cap
        else f"loss {row['loss']:g}, gradient norm {row['grad_norm']:g}, KL {row['kl']:g}: not finite"
    )
    return Outcome("diverged", step, f"step {step}: {why}")


def completion_rows(
    prompts: np.ndarray, completions: Completions, scores: Scores, index: int, base: Base
) -> list[dict[str, Any]]:
    """Text and scores of one cell's completions; prompts (B, P)."""
    ids, lengths = completions.ids[index].tolist(), completions.lengths[index].tolist()
    columns = [each[index].tolist() for each in (scores.reward, scores.sl10, scores.happy)]
    return [
        {
            "prompt": base.decode(prompt),
            "completion": base.decode(row[:length]),
            "reward": float(reward),
            "sl10": float(sl10),
            "happy": float(happy),
        }
        for prompt, row, length, reward, sl10, happy in zip(prompts.tolist(), ids, lengths, *columns, strict=True)
    ]


def rollout_rows(step: int, index: int, rollout: Rollout, cell: Cell, base: Base) -> list[dict[str, Any]]:
    """Rows of the rollouts table: text and tokens, what it was paid, and its labels."""
    prompts = rollout.sequences[index, :, : cell.prompt_length].cpu().numpy()
    paid = Scores(rollout.rewards, rollout.full.sl10, rollout.full.happy)
    rows = completion_rows(prompts, rollout.completions, paid, index, base)
    lengths = (cell.prompt_length + rollout.completions.lengths[index]).tolist()
    ids = [row[:length] for row, length in zip(rollout.sequences[index].tolist(), lengths, strict=True)]
    labels = {
        name: getattr(rollout.labels, name)[index].tolist() for name in ("eligible", "routed", "noise", "flagged")
    }
    return [
        row | {"step": step, "ids": ids[place]} | {name: labels[name][place] for name in labels}
        for place, row in enumerate(rows)
    ]
