"""The native engine: the GRPO step as one sequence of tensor operations of fixed shape.

A :class:`Pack` holds C cells of equal shape side by side. Its :meth:`Pack.step` never asks the device anything, so on
CUDA it is captured once in CUDA graphs and replayed. Cells do not see one another: every draw is a cell's own,
every sum is within a cell. On a CPU a pack has width 1, because there batching gains nothing and a cell's
arithmetic is then the same, bit for bit, whatever it runs beside.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.draws import prompt_order, uniforms
from rewardgrid.lm.model import token_logps
from rewardgrid.lm.sampler import Completions, sample
from rewardgrid.study.cell import Cell
from rewardgrid.study.study import Recording
from rewardgrid.train import checkpoint
from rewardgrid.train.grpo import (
    AdamW,
    advantages,
    clip_factor,
    k3,
    learning_rate,
    mean_over,
    sequence_losses,
)
from rewardgrid.train.policy import Policy
from rewardgrid.train.record import Outcome, Progress, Record, finish
from rewardgrid.train.rewards import Scores, TextTables, score, text_tables
from rewardgrid.train.routing import Labels, label, reach
from rewardgrid.train.weights import base_weights, save_weights

CPU_ROWS = 8
"""Sequences per forward and backward pass on a CPU: their activations stay in the cache."""


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


class Pack:
    """C cells that train side by side: equal in method, reward, sizes and precision; the rest is each cell's own."""

    def __init__(
        self, cells: Sequence[Cell], base: Base, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.cells, self.device = list(cells), device
        like = self.cells[0]
        self.like, self.eos = like, base.vocabulary.eos
        self.shape, frozen = base_weights(base, dtype)
        self.frozen = {key: weight.to(device) for key, weight in frozen.items()}
        compute = torch.bfloat16 if like.precision == "bf16" else None
        self.policy = Policy(self.shape, self.frozen, cells, compute)
        self.reference = self.policy.cast(self.frozen)
        self.optimizer = AdamW.fresh(self.policy.parameters)
        self.tables: TextTables = text_tables(
            base.vocabulary.surfaces, base.vocabulary.delimiters, base.vocabulary.eos
        ).to(device)

        def each(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.lr, self.beta = each([cell.lr for cell in cells]), each([cell.beta for cell in cells])
        self.max_steps = each([cell.max_steps for cell in cells])
        self.max_grad_norm, self.kl_cap = (
            each([cell.max_grad_norm for cell in cells]),
            each([cell.kl_cap for cell in cells]),
        )
        penalties = [cell.repetition_penalty for cell in cells]
        self.penalty = each(penalties) if any(penalty != 1 for penalty in penalties) else None
        self.eligible = each([1.0 if cell.rh_eligible_frac is None else cell.rh_eligible_frac for cell in cells])
        self.routing = each([cell.routing_frac or 0.0 for cell in cells])
        self.noise = each([cell.label_noise_frac or 0.0 for cell in cells])
        self.steps = torch.zeros(len(cells), dtype=dtype, device=device)
        self.alive = torch.ones(len(cells), dtype=torch.bool, device=device)

    def step(self, draws: Draws) -> tuple[Rollout, dict[str, Tensor]]:
        """One optimizer step of every cell that still trains.

        Returns:
            the rollout, and the history's columns, each (C,).
        """
        rollout = self.rollout(draws)
        reference = self.reference_logps(rollout)
        return rollout, self.update(rollout, reference)

    @torch.no_grad()
    def rollout(self, draws: Draws) -> Rollout:
        """Sample the step's completions, score and label them."""
        cell, on_cpu = self.like, self.device.type == "cpu"
        completions = sample(
            self.shape,
            self.policy.merged(),
            draws.prompts,
            draws.tokens,
            self.eos,
            self.penalty,
            stop_early=on_cpu,
        )
        if on_cpu:
            # Nothing reads beyond the longest completion; a GPU keeps the fixed shape instead.
            longest = int(completions.lengths.max())
            completions = Completions(completions.ids[..., :longest], completions.mask[..., :longest], self.eos)
        full = score(cell.reward, completions.ids, completions.mask, self.tables)
        hacked = full.happy >= (cell.hack_threshold or 3)
        labels = label(draws.labels, hacked, self.eligible, self.routing, self.noise)
        rewards = torch.where(labels.eligible, full.reward, full.sl10)
        sequences = torch.cat([draws.prompts, completions.ids], -1)
        return Rollout(sequences, completions, full, labels, rewards)

    @torch.no_grad()
    def reference_logps(self, rollout: Rollout) -> Tensor:
        """Log-probabilities (C, B, L) of the completions under the frozen base."""
        return torch.cat(
            [
                token_logps(self.shape, self.reference, rollout.sequences[:, rows], self.like.prompt_length)[0]
                for rows in self._rows()
            ],
            1,
        )

    def update(self, rollout: Rollout, reference: Tensor) -> dict[str, Tensor]:
        """Loss, gradient and AdamW; returns the history's columns, each (C,)."""
        cell, policy = self.like, self.policy
        mask = rollout.completions.mask
        advantage = advantages(rollout.rewards, cell.num_generations)
        reaches = None
        if cell.is_routing:
            assert policy.is_forget is not None
            reaches = reach(rollout.labels.flagged, policy.is_forget, cell.routing_mode == "exclusive")
        policy.gradient.zero_()
        losses, kls, entropies = [], [], []
        for rows in self._rows():
            weights, project = policy.trainable(None if reaches is None else reaches[:, rows])
            logps, entropy = token_logps(self.shape, weights, rollout.sequences[:, rows], cell.prompt_length, project)
            loss = sequence_losses(logps, reference[:, rows], advantage[:, rows], mask[:, rows], self.beta)
            (loss.sum() / cell.batch_size).backward()
            losses.append(loss.detach())
            kls.append(k3(logps.detach(), reference[:, rows]))
            entropies.append(entropy)
        loss, kl, entropy = (torch.cat(each, 1) for each in (losses, kls, entropies))
        kl = mean_over(kl.flatten(1), mask.flatten(1))
        norm = torch.linalg.vector_norm(policy.gradient, dim=-1)
        lr = learning_rate(self.lr, self.steps, self.max_steps)
        # A cell that diverges keeps the weights it had before, and its slot is frozen from here on.
        self.alive &= torch.isfinite(norm) & torch.isfinite(kl) & (kl <= self.kl_cap)
        active = self.alive & (self.steps < self.max_steps)
        gradient = policy.gradient * clip_factor(norm, self.max_grad_norm).unsqueeze(1)
        self.optimizer.update(policy.parameters, torch.where(active.unsqueeze(1), gradient, 0.0), lr, active)
        self.steps += 1
        return self._summary(rollout) | {
            "loss": loss.mean(-1),
            "kl": kl,
            "entropy": mean_over(entropy.flatten(1), mask.flatten(1)),
            "grad_norm": norm,
            "lr": lr,
        }

    def _summary(self, rollout: Rollout) -> dict[str, Tensor]:
        """Means over the batch of what does not depend on the update."""
        labels, full = rollout.labels, rollout.full
        means = {
            "reward": rollout.rewards,
            "sl10": full.sl10,
            "happy": full.happy,
            "completion_length": rollout.completions.lengths,
            "ended": rollout.completions.ended,
            "hacked": full.happy >= (self.like.hack_threshold or 3),
            "eligible": labels.eligible,
            "routed": labels.routed,
            "noise": labels.noise,
            "flagged": labels.flagged,
        }
        return {key: value.to(self.lr.dtype).mean(-1) for key, value in means.items()} | {
            "reward_std": rollout.rewards.std(-1)
        }

    def _rows(self) -> list[slice]:
        """The sequences of a batch in the portions that go through the model together."""
        size = CPU_ROWS if self.device.type == "cpu" else self.like.batch_size
        return [slice(start, start + size) for start in range(0, self.like.batch_size, size)]

    # --- checkpoints -----------------------------------------------------------------------------------

    def state(self, cell: int) -> dict[str, Tensor]:
        """One cell's trained tensors and moments, without the pack's padding: enough to continue from."""
        tensors = {"steps": self.steps[cell : cell + 1], "count": self.optimizer.count[cell : cell + 1]}
        for name, flat in self._flats().items():
            tensors |= {f"{name}/{key}": value for key, value in self.policy.own(flat, cell).items()}
        return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}

    def restore(self, cell: int, tensors: Mapping[str, Tensor]) -> None:
        """Put a cell back to where :meth:`state` was taken, in a pack of any width."""
        self.steps[cell] = tensors["steps"][0]
        self.optimizer.count[cell] = tensors["count"][0]
        for name, flat in self._flats().items():
            for key, value in self.policy.own(flat, cell).items():
                value.copy_(tensors[f"{name}/{key}"])

    def _flats(self) -> dict[str, Tensor]:
        return {
            "parameters": self.policy.parameters,
            "mean": self.optimizer.mean,
            "square": self.optimizer.square,
        }


class _Graph:
    """A pack's step captured in CUDA graphs: rollout with its reference, and update; replayed without a host round trip."""

    def __init__(self, pack: Pack, draws: Draws) -> None:
        self.pack = pack
        self.inputs = Draws(*(tensor.to(pack.device).clone() for tensor in _parts(draws)))
        alive = pack.alive.clone()
        pack.alive.zero_()  # warming up must train nothing
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                pack.step(self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        pack.steps -= 2
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.rollout, self.row = pack.step(self.inputs)
        # Capturing runs nothing, so steps and moments are as they were.
        pack.alive.copy_(alive)

    def __call__(self, draws: Draws) -> tuple[Rollout, dict[str, Tensor]]:
        for mine, theirs in zip(_parts(self.inputs), _parts(draws), strict=True):
            mine.copy_(theirs, non_blocking=True)
        self.graph.replay()
        return self.rollout, self.row


def _parts(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    return draws.prompts, draws.tokens, draws.labels


# --- running -------------------------------------------------------------------------------------------


def pack_key(cell: Cell) -> tuple[object, ...]:
    """What cells must have in common to train side by side."""
    return (
        cell.base_id,
        cell.method,
        cell.reward,
        cell.batch_size,
        cell.num_generations,
        cell.prompt_length,
        cell.prompt_tokens,
        cell.max_new_tokens,
        cell.precision,
        cell.routing_mode,
        cell.hack_threshold,
        cell.eval_every,
        cell.eval_modes,
        cell.eval_samples,
    )


def train(
    cells: Sequence[Cell],
    base: Base,
    directories: Sequence[Path],
    recording: Recording,
    device: str | None = None,
) -> list[Outcome]:
    """Train cells that share a base, writing each one's files below its own directory.

    Cells of equal shape run side by side on a GPU; on a CPU one after another (see :class:`Pack`). Cells that are
    already finished are passed over; one that was interrupted continues from its newest whole checkpoint.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cpu":
        torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high" if cells[0].precision == "tf32" else "highest")
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        key = (*pack_key(cell), index) if place.type == "cpu" else pack_key(cell)
        groups.setdefault(key, []).append(index)
    outcomes: dict[int, Outcome] = {}
    for indices in groups.values():
        run = _Run([cells[i] for i in indices], base, [directories[i] for i in indices], recording, place)
        outcomes |= dict(zip(indices, run.finish_all(), strict=True))
    return [outcomes[index] for index in range(len(cells))]


class _Run:
    """One pack from its first (or checkpointed) step to its last, and what it writes."""

    def __init__(
        self,
        cells: Sequence[Cell],
        base: Base,
        directories: Sequence[Path],
        recording: Recording,
        device: torch.device,
    ) -> None:
        self.cells, self.base, self.directories, self.recording = cells, base, directories, recording
        self.pack = Pack(cells, base, device)
        self.prompts = with_eos(base.train_prompts().ids, cells[0], base.vocabulary.eos)
        self.evaluation = base.eval_prompts().ids
        self.records = [Record() for _ in cells]
        self.progress = [Progress(cell) for cell in cells]
        self.start = [0] * len(cells)
        self.outcomes: list[Outcome | None] = [None] * len(cells)
        for index, (cell, directory) in enumerate(zip(cells, directories, strict=True)):
            found = checkpoint.load(directory / "checkpoints", cell)
            if found:
                self.pack.restore(index, found.tensors)
                self.records[index], self.start[index] = found.record, found.step
                print(f"{cell.name}  continues after step {found.step}", file=sys.stderr, flush=True)

    def finish_all(self) -> list[Outcome]:
        """Train every cell to its end; returns how each ended."""
        pack, steps = self.pack, list(self.start)
        advance = pack.step
        while any(outcome is None for outcome in self.outcomes):
            began = time.perf_counter()
            draws = Draws.of_step(self.cells, self.prompts, steps)
            if pack.device.type == "cuda":
                advance = advance if isinstance(advance, _Graph) else _Graph(pack, draws)
            rollout, columns = advance(draws)
            table = {key: value.tolist() for key, value in columns.items()}
            seconds = time.perf_counter() - began
            alive = pack.alive.tolist()
            for index, cell in enumerate(self.cells):
                if self.outcomes[index] is not None:
                    continue
                steps[index] += 1
                row = {key: values[index] for key, values in table.items()}
                self._record(index, steps[index], row | {"step": steps[index], "seconds": seconds}, rollout)
                if not alive[index]:
                    self._end(index, diverged(cell, row, steps[index]))
                elif steps[index] == cell.max_steps:
                    self._end(index, Outcome("done", steps[index]))
                elif steps[index] % self.recording.checkpoint_every == 0:
                    self._checkpoint(index, steps[index])
        return [outcome for outcome in self.outcomes if outcome is not None]

    def _record(self, index: int, step: int, row: dict[str, Any], rollout: Rollout) -> None:
        cell, record = self.cells[index], self.records[index]
        record.add("history", [row])
        self.progress[index](row)
        if step == 1 or step % self.recording.rollouts_every == 0:
            record.add("rollouts", rollout_rows(step, index, rollout, cell, self.base))
        if cell.is_routing and (step % (cell.eval_every or 1) == 0 or step == cell.max_steps):
            self._evaluate_modes(index, step)

    def _evaluate_modes(self, index: int, step: int) -> None:
        """Sample with each set of adapters switched on, from draws of their own (the same for every mode)."""
        cell, pack = self.cells[index], self.pack
        assert cell.eval_modes is not None
        assert cell.eval_samples is not None
        prompts = self.evaluation[np.arange(cell.eval_samples) % len(self.evaluation)]
        draws = uniforms(cell.seed, "evaluation by mode", step, (cell.eval_samples, cell.max_new_tokens))
        for mode in cell.eval_modes:
            weights = {
                key: weight[min(index, len(weight) - 1)].unsqueeze(0)
                for key, weight in pack.policy.merged(mode).items()
            }
            done = sample(
                pack.shape,
                weights,
                torch.from_numpy(prompts).unsqueeze(0).to(pack.device),
                torch.from_numpy(draws).unsqueeze(0).to(pack.device),
                pack.eos,
            )
            scores = score(cell.reward, done.ids, done.mask, pack.tables)
            rows = completion_rows(prompts, done, scores, 0, self.base)
            self.records[index].add("mode_samples", [row | {"step": step, "mode": mode} for row in rows])

    def _checkpoint(self, index: int, step: int) -> None:
        found = checkpoint.Checkpoint(step, self.pack.state(index), self.records[index])
        checkpoint.save(self.directories[index] / "checkpoints", self.cells[index], found)

    def _end(self, index: int, outcome: Outcome) -> None:
        cell, directory = self.cells[index], self.directories[index]
        train_directory = directory / "train"
        digests = save_weights(train_directory / "weights", cell, self.base, self.pack.policy.export(index))
        finish(train_directory, cell, self.records[index], outcome, digests, str(self.pack.device))
        checkpoint.discard(directory / "checkpoints")
        self.outcomes[index] = outcome


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
    """Rows of the rollouts table: text, what it was paid, and its labels."""
    prompts = rollout.sequences[index, :, : cell.prompt_length].cpu().numpy()
    paid = Scores(rollout.rewards, rollout.full.sl10, rollout.full.happy)
    rows = completion_rows(prompts, rollout.completions, paid, index, base)
    labels = {
        name: getattr(rollout.labels, name)[index].tolist() for name in ("eligible", "routed", "noise", "flagged")
    }
    return [
        row | {"step": step} | {name: values[place] for name, values in labels.items()}
        for place, row in enumerate(rows)
    ]
