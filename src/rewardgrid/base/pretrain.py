"""Pretraining of a small base: next-token prediction on stories, the same bytes on every run.

Muon (Jordan 2024) moves the matrices, AdamW the embeddings and norm gains: together they reach a loss in a minute that
AdamW alone would need several for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardgrid.lm.hf.layout import WHOLE, from_hf, tensor_name, tensor_sizes
from rewardgrid.lm.memory import keep_freed_memory
from rewardgrid.lm.model import token_logps
from rewardgrid.lm.shape import Shape
from rewardgrid.study.bases import Pretrained

INIT_STD, EMBEDDING_STD = 0.02, 0.1
COPY = 0.5  # gain of the copying that attention begins with
MUON_LR = 0.02  # for matrices: the spectral norm of an update
ADAMW_LR = 1.5e-2  # for embeddings and norm gains
ADAMW_BETAS = (0.9, 0.95)
MOMENTUM = 0.95
SHARDS = 2  # that a batch is trained in, whatever the number of threads: the order of sums decides the bits
WARMUP, DECAY = 0.02, 0.5  # shares of the steps in which the learning rates rise, and fall to zero


def shape_of(recipe: Pretrained) -> Shape:
    """The architecture of the model: a LLaMA with tied embeddings."""
    return Shape(
        layers=recipe.layers,
        hidden=recipe.hidden,
        heads=recipe.heads,
        kv_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        mlp_width=recipe.mlp_width,
        vocabulary=recipe.vocabulary,
        context=recipe.context,
        rope_theta=10000.0,
        norm_eps=1e-6,
        tied=True,
    )


def first_weights(shape: Shape, seed: int) -> dict[str, Tensor]:
    """First weights under their Hugging Face names, from an own generator: normal matrices and unit gains.

    An attention head's output is begun as a transpose of its values, so that from the first step it copies what it
    attends to (after the mimetic initialisation of Trockman and Kolter 2023); a short pretraining hardly learns to.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.ones(size) if len(size) == 1 else INIT_STD * torch.randn(size, generator=generator)
        for name, size in tensor_sizes(shape).items()
    }
    weights[WHOLE["embed"]] *= EMBEDDING_STD / INIT_STD
    shared = shape.heads // shape.kv_heads  # query heads that read the same values
    for layer in range(shape.layers):
        width = shape.kv_heads * shape.head_dim
        values = torch.linalg.qr(torch.randn(shape.hidden, width, generator=generator))[0].mT
        per_head = values.reshape(shape.kv_heads, shape.head_dim, shape.hidden).repeat_interleave(shared, dim=0)
        weights[tensor_name(layer, "self_attn.v_proj")] = values.contiguous()
        weights[tensor_name(layer, "self_attn.o_proj")] = (COPY / shared * per_head.flatten(0, 1).mT).contiguous()
    return weights


@dataclass(frozen=True)
class Rows:
    """Stories to learn from, one a row: a prompt is a story's beginning too, so a position means in both the same.

    Attributes: ``ids`` (N, longest) padded at the right; ``lengths`` (N,) tokens of each story.
    """

    ids: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, places: Any) -> Rows:
        """Some rows, as wide as the longest of them."""
        lengths = self.lengths[places]
        return Rows(self.ids[places, : lengths.max()], lengths)


def rows_of(stories: Iterable[Sequence[int]], length: int) -> Rows:
    """Rows of the first ``length`` tokens of each story; those of one token, which foretells nothing, are left out."""
    cut = [story[:length] for story in stories if len(story) > 1]
    ids = np.zeros((len(cut), max(map(len, cut), default=0)), dtype=np.int64)
    for row, story in zip(ids, cut, strict=True):
        row[: len(story)] = story
    return Rows(ids, np.array([len(story) for story in cut], dtype=np.int64))


def next_token_loss(shape: Shape, weights: dict[str, Tensor], rows: Rows) -> Tensor:
    """Mean negative log-likelihood, nats per token, of all tokens of each story but its first."""
    device = weights[WHOLE["norm"]].device
    ids, lengths = (torch.from_numpy(each).to(device) for each in (rows.ids, rows.lengths))
    logps = token_logps(shape, from_hf(shape, weights), ids.unsqueeze(0), prompt_length=1).squeeze(0)
    told = torch.arange(1, ids.shape[1], device=device) < lengths.unsqueeze(1)
    return -logps.where(told, 0.0).sum() / told.sum()


@torch.no_grad()
def held_out_loss(shape: Shape, weights: dict[str, Tensor], rows: Rows) -> float:
    """:func:`next_token_loss` of many rows, measured in parts; each token counts the same."""
    parts = [rows[part] for part in np.array_split(np.arange(len(rows)), max(1, len(rows) // 32))]
    losses = [next_token_loss(shape, weights, part).item() for part in parts]
    return float(np.average(losses, weights=[(part.lengths - 1).sum() for part in parts]))


def train_weights(
    shape: Shape,
    weights: dict[str, Tensor],
    epochs: Sequence[Rows],
    batch: int,
    weight_decay: float = 0.0,
    held_out: Rows | None = None,
) -> list[float]:
    """Train the weights in place, ``batch`` rows a step, on one epoch after the other.

    The shards of a batch are spread over as many of PyTorch's threads as there are, one thread each, and their
    gradients are summed in the order of the shards: the bits are the same on every number of threads.

    Returns:
        the loss on the rows held out, after each epoch; nothing where there are none.
    """
    keep_freed_memory()
    for weight in weights.values():
        weight.requires_grad_()
    matrices = {name for name, weight in weights.items() if weight.ndim == 2 and ".layers." in name}
    muon = Muon([weights[name] for name in weights if name in matrices], weight_decay)
    adamw = torch.optim.AdamW(
        [weights[name] for name in weights if name not in matrices], betas=ADAMW_BETAS, weight_decay=0.0
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # A new thread begins with the threads that the process was started with.
    pool = ThreadPoolExecutor(min(threads, SHARDS), initializer=torch.set_num_threads, initargs=(1,))
    losses: list[float] = []
    steps, step = sum(len(rows) // batch for rows in epochs), 0
    try:
        started = last = time.monotonic()
        for rows in epochs:
            for first in range(0, len(rows) - batch + 1, batch):
                loss = backward(shape, weights, rows[first : first + batch], pool)
                share = learning_rate(step, steps)
                muon.step(MUON_LR * share)
                adamw.param_groups[0]["lr"] = ADAMW_LR * share
                adamw.step()
                step, now = step + 1, time.monotonic()
                if now - last > 5 or step == steps:
                    last, rate = now, step / (now - started)
                    print(
                        f"step {step}/{steps}  loss {loss.item():.3f}  {rate:.1f} steps/s  "
                        f"{(steps - step) / rate:.0f} s left",
                        flush=True,
                    )
            if held_out is not None and len(held_out):
                losses.append(held_out_loss(shape, weights, held_out))
                print(f"epoch {len(losses)}/{len(epochs)}  held-out loss {losses[-1]:.4f}", flush=True)
    finally:
        pool.shutdown()
        torch.set_num_threads(threads)
    for weight in weights.values():
        weight.requires_grad_(False)
    return losses


def backward(shape: Shape, weights: dict[str, Tensor], rows: Rows, pool: ThreadPoolExecutor) -> Tensor:
    """Set every weight's gradient of the batch's mean loss; gives the loss."""
    told = (rows.lengths - 1).sum()

    def of_shard(places: np.ndarray) -> tuple[Tensor, ...]:
        shard = rows[places]
        loss = next_token_loss(shape, weights, shard) * ((shard.lengths - 1).sum() / told)
        return loss.detach(), *torch.autograd.grad(loss, list(weights.values()))

    shards = pool.map(of_shard, np.array_split(np.arange(len(rows)), min(SHARDS, len(rows))))
    loss, *gradients = (sum(parts[1:], parts[0]) for parts in zip(*shards, strict=True))
    for weight, gradient in zip(weights.values(), gradients, strict=True):
        weight.grad = gradient
    return loss


def learning_rate(step: int, steps: int) -> float:
    """Share of the full learning rates at a step (from 0): a short rise, a plateau, a linear fall to zero."""
    return min(1.0, (step + 1) / (WARMUP * steps), (steps - step) / (DECAY * steps))


class Muon:
    """Momentum with orthogonalised updates (Jordan 2024): all directions of a matrix move at the same pace."""

    def __init__(self, matrices: Sequence[Tensor], weight_decay: float = 0.0) -> None:
        self.matrices = matrices
        self.weight_decay = weight_decay
        self.momenta = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every matrix that has a gradient, and clear the gradient."""
        for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
            assert matrix.grad is not None
            momentum.lerp_(matrix.grad, 1 - MOMENTUM)
            update = orthogonalize(matrix.grad.lerp(momentum, MOMENTUM))  # Nesterov
            rows, columns = matrix.shape
            if self.weight_decay:
                matrix.mul_(1 - lr * self.weight_decay)
            matrix.sub_(update, alpha=lr * max(1.0, rows / columns) ** 0.5)
            matrix.grad = None


def orthogonalize(matrix: Tensor) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix (singular values about 0.7 to 1.2).

    Five Newton-Schulz iterations with Jordan's coefficients, which give up exactness for speed.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
