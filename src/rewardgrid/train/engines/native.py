"""The native engine: the GRPO step as one sequence of tensor operations of fixed shape.

A :class:`Pack` holds C cells of equal shape side by side. Its :meth:`Pack.step` never asks the device anything, so on
CUDA it is captured once in CUDA graphs and replayed. Cells do not see one another: every draw is a cell's own,
every sum is within a cell. On a CPU a pack has width 1, because there batching gains nothing and a cell's
arithmetic is then the same, bit for bit, whatever it runs beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.kernels import large_products
from rewardgrid.lm.memory import keep_freed_memory
from rewardgrid.lm.model import Weights, completion_states, head
from rewardgrid.lm.output import LogpGrads, OutputLayer
from rewardgrid.lm.sampler import Completions, sample
from rewardgrid.study.cell import Cell
from rewardgrid.study.study import Recording
from rewardgrid.train.grpo import (
    AdamW,
    Variant,
    advantages,
    clip_factor,
    k3,
    learning_rate,
    logp_grads,
    loss_tokens,
    mean_over,
    sequence_losses,
    token_shares,
)
from rewardgrid.train.keeper import Keeper
from rewardgrid.train.own import OwnCodeError
from rewardgrid.train.policy import Policy
from rewardgrid.train.record import Outcome
from rewardgrid.train.rollout import (
    Assessor,
    Draws,
    Rollout,
    with_eos,
)
from rewardgrid.train.routing import reach
from rewardgrid.train.stop_rule import Watch
from rewardgrid.train.stopping import asked_to_stop
from rewardgrid.train.weights import base_weights

T = TypeVar("T")

CPU_ROWS, CPU_LOGITS = 8, 1 << 21
"""Sequences per forward and backward pass on a CPU: so many at least; with a small model and short completions more, up
to so many logits (8 MiB in fp32). What a pass keeps then stays in the cache."""


class Pack:
    """C cells that train side by side: equal in all but their ``OWN`` settings."""

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
        self.reference = self.policy.frozen()
        self.reference_output = OutputLayer(head(self.reference).expand(len(cells), -1, -1).to(compute or dtype))
        self.optimizer = AdamW.fresh(self.policy.parameters)
        self.variant = Variant.of(like)
        self.again: tuple[Rollout, Tensor, Tensor] | None = None
        self.assessor = Assessor(cells, base, device, dtype)
        self.watch = Watch.of(cells, base, self.shape, self.frozen) if like.stop_when else None

        def each(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.lr, self.beta = each([cell.lr for cell in cells]), each([cell.beta for cell in cells])
        self.max_steps = each([cell.max_steps for cell in cells])
        self.decay_steps = each([cell.decay_steps or cell.max_steps for cell in cells])
        self.max_grad_norm, self.kl_cap = (
            each([cell.max_grad_norm for cell in cells]),
            each([cell.kl_cap for cell in cells]),
        )
        penalties = [cell.repetition_penalty for cell in cells]
        self.penalty = each(penalties) if any(penalty != 1 for penalty in penalties) else None
        self.steps = torch.zeros(len(cells), dtype=dtype, device=device)
        self.alive = torch.ones(len(cells), dtype=torch.bool, device=device)

    def step(self, draws: Draws) -> tuple[Rollout, dict[str, Tensor]]:
        """One optimizer step of every cell that still trains.

        Returns:
            the rollout, and the history's columns, each (C,).
        """
        rollout = self.rollout(draws)
        return rollout, self.update(rollout, self.reference_logps(rollout))

    def another_update(self) -> tuple[Rollout, dict[str, Tensor]]:
        """One more optimizer step on the completions of the last (num_iterations)."""
        assert self.again is not None
        rollout, reference, old = self.again
        return rollout, self.update(rollout, reference, old)

    def rollout(self, draws: Draws) -> Rollout:
        """Sample the step's completions, score and label them."""
        completions = self.sample(draws)
        return self.assess(draws, completions, self.ask(draws, completions))

    @torch.no_grad()
    def assess(self, draws: Draws, completions: Completions, said: Mapping[str, Tensor]) -> Rollout:
        """Score and label completions, once code of one's own has said what it has to."""
        return self.assessor.assess(draws, completions, said)

    def ask(self, draws: Draws, completions: Completions) -> dict[str, Tensor]:
        """What code of one's own says of a step's completions, between its halves: the only question to the host."""
        if not self.assessor.functions:
            return {}
        training = (self.alive & (self.steps < self.max_steps)).tolist()
        steps = self.steps.tolist()
        when = [f"step {int(step) + 1}" if busy else None for step, busy in zip(steps, training, strict=True)]
        return self.assessor.ask(draws.prompts, completions, when)

    @torch.no_grad()
    def sample(self, draws: Draws) -> Completions:
        """The first half of a step: its completions."""
        on_cpu = self.device.type == "cpu"
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
        return completions

    @torch.no_grad()
    def reference_logps(self, rollout: Rollout) -> Tensor:
        """Log-probabilities (C, B, L) of the completions under the frozen base, 0 where nothing is written."""
        prompt_length = self.like.prompt_length
        logps = self.lr.new_zeros(rollout.completions.ids.shape)
        for rows, length in self._portions(rollout.completions):
            ids = rollout.sequences[:, rows, : prompt_length + length]
            with large_products(self.device):
                found = self.reference_output.logps(*completion_states(self.shape, self.reference, ids, prompt_length))
            logps[:, rows, :length] = found.unflatten(1, (-1, length))
        return logps

    def update(self, rollout: Rollout, reference: Tensor, old: Tensor | None = None) -> dict[str, Tensor]:
        """Loss, gradient and AdamW; returns the history's columns, each (C,).

        Args:
            old: (C, B, L) log-probabilities under the policy that wrote the completions; None: it is this one.
        """
        cell, policy = self.like, self.policy
        mask = rollout.completions.mask
        advantage = advantages(rollout.rewards, cell.num_generations, cell.scale_rewards)
        tokens = loss_tokens(mask, cell.loss_type, cell.max_new_tokens)
        reaches = None
        if cell.is_routing:
            assert policy.is_forget is not None
            reaches = reach(rollout.labels.flagged, policy.is_forget, cell.routing_mode == "exclusive")
        policy.gradient.zero_()
        output = self.reference_output
        if policy.head is not None:
            output = OutputLayer(policy.head.to(output.weight.dtype))
        shares = token_shares(mask, reference.dtype, tokens)
        per_token = reference, advantage.unsqueeze(-1).expand_as(reference), shares
        kls, entropies, written = (torch.zeros_like(reference) for _ in range(3))
        losses = reference.new_zeros(advantage.shape)
        for rows, length in self._portions(rollout.completions):
            ids, part = rollout.sequences[:, rows, : cell.prompt_length + length], (slice(None), rows, slice(length))
            weights, project = policy.trainable(None if reaches is None else reaches[:, rows])
            before = None if old is None else old[part].flatten(1)
            grads = _loss_grads(self.beta, self.variant, before, *(each[part].flatten(1) for each in per_token))
            with large_products(self.device):
                hidden, targets = completion_states(self.shape, weights, ids, cell.prompt_length, project)
                found = output.backward(
                    hidden.detach(), targets, grads, None if policy.head is None else policy.head.grad
                )
                hidden.backward(found[2])
            logps, entropies[part] = (each.unflatten(1, (-1, length)) for each in found[:2])
            written[part] = logps
            losses[:, rows] = sequence_losses(
                logps,
                reference[part],
                advantage[:, rows],
                mask[part],
                self.beta,
                None if old is None else old[part],
                tokens[:, rows],
                self.variant,
            )
            kls[part] = k3(logps, reference[part])
        if old is None and cell.num_iterations > 1:
            self.again = rollout, reference, written
        kl = mean_over(kls.flatten(1), mask.flatten(1))
        norm = torch.linalg.vector_norm(policy.gradient, dim=-1)
        lr = learning_rate(self.lr, self.steps, self.decay_steps, cell.lr_scheduler_type, cell.warmup)
        # A cell that diverges keeps the weights it had before, and its slot is frozen from here on.
        self.alive &= torch.isfinite(norm) & torch.isfinite(kl) & (kl <= self.kl_cap)
        active = self.alive & (self.steps < self.max_steps)
        gradient = policy.gradient * clip_factor(norm, self.max_grad_norm).unsqueeze(1)
        self.optimizer.update(policy.parameters, gradient, lr, active)
        self.steps += 1
        seen = self.watch.shares(reference, rollout.completions) if self.watch else {}
        return (
            self.assessor.summary(rollout)
            | seen
            | {
                "loss": losses.mean(-1),
                "kl": kl,
                "entropy": mean_over(entropies.flatten(1), mask.flatten(1)),
                "grad_norm": norm,
                "lr": lr,
            }
        )

    def merged(self, cell: int, mode: str | None = None) -> Weights:
        """One cell's weights (C = 1) with the adapters of an evaluation mode switched on."""
        weights = self.policy.merged(mode)
        return {key: weight[min(cell, len(weight) - 1)].unsqueeze(0) for key, weight in weights.items()}

    def _portions(self, completions: Completions) -> list[tuple[Tensor | slice, int]]:
        """The sequences of a batch that go through the model together, each time with their longest completion.

        On a CPU few of like length at a time, so that hardly any padding is computed; a GPU keeps the fixed shape.
        """
        if self.device.type != "cpu":
            return [(slice(None), completions.ids.shape[-1])]
        at_a_time = max(CPU_ROWS, CPU_LOGITS // (self.shape.vocabulary * self.like.max_new_tokens))
        lengths = completions.lengths.amax(0)
        return [(rows, int(lengths[rows].max())) for rows in lengths.argsort(stable=True).split(at_a_time)]

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


def _loss_grads(
    beta: Tensor, variant: Variant, old: Tensor | None, reference: Tensor, advantage: Tensor, share: Tensor
) -> LogpGrads:
    """The loss's gradient as a function of the log-probabilities of some tokens; beta (C,), the rest (C, N)."""

    def grads(logps: Tensor, rows: slice) -> Tensor:
        before = None if old is None else old[:, rows]
        return logp_grads(logps, reference[:, rows], advantage[:, rows], share[:, rows], beta, before, variant)

    return grads


class Graph:
    """A pack's step captured in CUDA graphs and replayed without a host round trip.

    One graph holds all of it. Where a cell has code of its own there are two, and the code runs between them.
    """

    def __init__(self, pack: Pack, draws: Draws) -> None:
        self.pack = pack
        self.inputs = Draws(*(tensor.clone() for tensor in _parts(draws)))
        self.said: dict[str, Tensor] = {}
        self.further: tuple[torch.cuda.CUDAGraph, tuple[Rollout, dict[str, Tensor]]] | None = None
        if not pack.assessor.functions:
            self.first, (self.rollout, self.row) = self._capture(lambda: pack.step(self.inputs))
            return
        self.first, self.completions = self._capture(lambda: pack.sample(self.inputs))
        self.first.replay()
        self.said = pack.ask(self.inputs, self.completions)
        self.second, (self.rollout, self.row) = self._capture(self._learn)

    def _learn(self) -> tuple[Rollout, dict[str, Tensor]]:
        """The half of the step that comes after code of one's own."""
        rollout = self.pack.assess(self.inputs, self.completions, self.said)
        return rollout, self.pack.update(rollout, self.pack.reference_logps(rollout))

    def _capture(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """What the work returns, and a graph that computes it anew, in the same memory."""
        pack = self.pack
        alive, steps = pack.alive.clone(), pack.steps.clone()
        pack.alive.zero_()  # warming up must train nothing
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(side)
        pack.steps.copy_(steps)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()
        # Capturing runs nothing, so steps and moments are as they were.
        pack.alive.copy_(alive)
        return graph, result

    def __call__(self, draws: Draws) -> tuple[Rollout, dict[str, Tensor]]:
        for mine, theirs in zip(_parts(self.inputs), _parts(draws), strict=True):
            mine.copy_(theirs, non_blocking=True)
        self.first.replay()
        if self.said:
            for name, values in self.pack.ask(self.inputs, self.completions).items():
                self.said[name].copy_(values)
            self.second.replay()
        return self.rollout, self.row

    def another_update(self) -> tuple[Rollout, dict[str, Tensor]]:
        """See :meth:`Pack.another_update`; captured when there are completions for it to warm up on."""
        self.further = self.further or self._capture(self.pack.another_update)
        graph, result = self.further
        graph.replay()
        return result


def _parts(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    return draws.prompts, draws.tokens, draws.labels


# --- running -------------------------------------------------------------------------------------------


OWN = frozenset(
    {"lr", "beta", "repetition_penalty", "max_steps", "decay_steps", "max_grad_norm", "kl_cap", "seed"}
    | {"rank", "forget_rank", "adapter_alpha", "rh_eligible_frac", "routing_frac", "label_noise_frac"}
)
"""Settings in which cells that train side by side may differ. A new one must be equal until it is named here."""


def pack_key(cell: Cell) -> tuple[object, ...]:
    """What cells must have in common to train side by side: all settings but their ``OWN``, and steps of a warm-up."""
    return (*(getattr(cell, name) for name in Cell.model_fields if name not in OWN), cell.warmup)


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
        keep_freed_memory()
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        key = (*pack_key(cell), index) if place.type == "cpu" else pack_key(cell)
        groups.setdefault(key, []).append(index)
    outcomes: dict[int, Outcome] = {}
    for indices in groups.values():
        torch.set_float32_matmul_precision("high" if cells[indices[0]].precision == "tf32" else "highest")
        run = _Run([cells[i] for i in indices], base, [directories[i] for i in indices], recording, place)
        outcomes |= dict(zip(indices, run.finish_all(), strict=True))
    return [outcomes[index] for index in range(len(cells))]


class _Trainee:
    """One cell of a pack, as its keeper asks for it."""

    def __init__(self, pack: Pack, index: int) -> None:
        self.shape, self.assessor = pack.shape, pack.assessor
        self.merged = partial(pack.merged, index)
        self.state_tensors = partial(pack.state, index)
        self.tensors = partial(pack.policy.export, index)


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
        self.cells = cells
        self.keepers: list[Keeper] = []
        try:
            for cell, directory in zip(cells, directories, strict=True):
                self.keepers.append(Keeper(cell, base, directory, recording))
            self.pack = Pack(cells, base, device)
            self.prompts = with_eos(base.train_prompts().ids, cells[0], base.vocabulary.eos)
            for index, keeper in enumerate(self.keepers):
                if keeper.found:
                    self.pack.restore(index, keeper.found.tensors)
        except BaseException:
            self._release()
            raise

    def finish_all(self) -> list[Outcome]:
        """Train every cell to its end; returns how each ended.

        Raises:
            Stopped: a signal has asked for it; every unfinished cell has written a checkpoint.
        """
        try:
            self._train()
        finally:
            self._release()
        return [keeper.outcome for keeper in self.keepers if keeper.outcome is not None]

    def _train(self) -> None:
        pack, steps = self.pack, [keeper.step for keeper in self.keepers]
        iterations, advance = self.cells[0].num_iterations, pack.step
        further = pack.another_update
        while any(keeper.outcome is None for keeper in self.keepers):
            began = time.perf_counter()
            # Checkpoints lie between rollouts (see Keeper), so all cells that still train are equally far in one.
            place = next(keeper.step for keeper in self.keepers if keeper.outcome is None) % iterations
            if place:
                rollout, columns = further()
            else:
                draws = Draws.of_step(self.cells, self.prompts, [step // iterations for step in steps])
                draws = draws.to(pack.device)
                try:
                    if pack.device.type == "cuda" and not isinstance(advance, Graph):
                        advance = Graph(pack, draws)
                        further = advance.another_update
                    rollout, columns = advance(draws)
                except OwnCodeError as error:
                    # It comes before the step has changed anything: all cells stop where they can go on from.
                    for index, keeper in enumerate(self.keepers):
                        if keeper.outcome is None:
                            keeper.fail(_Trainee(pack, index), error)
                    raise
            table = {key: value.tolist() for key, value in columns.items()}
            seconds = time.perf_counter() - began
            alive = pack.alive.tolist()
            for index, keeper in enumerate(self.keepers):
                if keeper.outcome is not None:
                    continue
                steps[index] += 1
                row = {key: values[index] for key, values in table.items()}
                row |= {"step": steps[index], "seconds": seconds}
                keeper.after_step(row, rollout, index, _Trainee(pack, index), alive[index])
                if keeper.outcome is not None:
                    pack.alive[index] = False  # nothing is asked of it any more
            unfinished = [index for index, keeper in enumerate(self.keepers) if keeper.outcome is None]
            if unfinished and place == iterations - 1 and asked_to_stop():
                stops = [self.keepers[index].stop(_Trainee(pack, index)) for index in unfinished]
                raise stops[0]

    def _release(self) -> None:
        for keeper in self.keepers:
            keeper.release()
