"""Pretraining of the embedded base: next-token prediction, the same bytes on every run.

Muon (Jordan 2024) moves the matrices, AdamW the embeddings and norm gains: together they reach a loss in a minute that
AdamW alone would need several for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from rewardgrid.base.model_files import tensor_sizes
from rewardgrid.lm.memory import keep_freed_memory
from rewardgrid.lm.model import Shape, from_hf, token_logps

INIT_STD, EMBEDDING_STD = 0.02, 0.1
COPY = 0.5  # gain of the copying that attention begins with
MUON_LR = 0.02  # for matrices: the spectral norm of an update
ADAMW_LR = 1.5e-2  # for embeddings and norm gains
ADAMW_BETAS = (0.9, 0.95)
MOMENTUM = 0.95
SHARDS = 2  # that a batch is trained in, whatever the number of threads: the order of sums decides the bits
WARMUP, DECAY = 0.02, 0.5  # shares of the steps in which the learning rates rise, and fall to zero


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
    weights["model.embed_tokens.weight"] *= EMBEDDING_STD / INIT_STD
    shared = shape.heads // shape.kv_heads  # query heads that read the same values
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}.self_attn."
        width = shape.kv_heads * shape.head_dim
        values = torch.linalg.qr(torch.randn(shape.hidden, width, generator=generator))[0].mT
        per_head = values.reshape(shape.kv_heads, shape.head_dim, shape.hidden).repeat_interleave(shared, dim=0)
        weights[prefix + "v_proj.weight"] = values.contiguous()
        weights[prefix + "o_proj.weight"] = (COPY / shared * per_head.flatten(0, 1).mT).contiguous()
    return weights


def rows_of(stories: Iterable[Sequence[int]], length: int) -> np.ndarray:
    """Training sequences (N, length): each begins where a story begins and goes on into the next ones.

    A prompt is a story's beginning too, so the model meets at every position what it will meet there in a rollout.
    """
    rows: list[list[int]] = []
    row: list[int] = []
    for story in stories:
        row.extend(story)
        if len(row) >= length:
            rows.append(row[:length])
            row = []
    return np.array(rows, dtype=np.int64).reshape(-1, length)


def next_token_loss(shape: Shape, weights: dict[str, Tensor], rows: np.ndarray) -> Tensor:
    """Mean negative log-likelihood, nats per token, of all tokens of each row but its first."""
    ids = torch.from_numpy(rows).unsqueeze(0).to(weights["model.norm.weight"].device)
    return -token_logps(shape, from_hf(shape, weights), ids, prompt_length=1).mean()


def train_weights(
    shape: Shape,
    weights: dict[str, Tensor],
    rows: np.ndarray,
    steps: int,
    batch: int,
    weight_decay: float = 0.0,
) -> None:
    """Train the weights in place, ``batch`` rows a step, in the order of the rows (again from the first when they end).

    The shards of a batch are spread over as many of PyTorch's threads as there are, one thread each, and their
    gradients are summed in the order of the shards: the bits are the same on every number of threads.
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
    try:
        started = last = time.monotonic()
        for step in range(steps):
            data = rows[np.arange(step * batch, (step + 1) * batch) % len(rows)]
            loss = backward(shape, weights, data, pool)
            share = learning_rate(step, steps)
            muon.step(MUON_LR * share)
            adamw.param_groups[0]["lr"] = ADAMW_LR * share
            adamw.step()
            now = time.monotonic()
            if now - last > 5 or step + 1 == steps:
                last, rate = now, (step + 1) / (now - started)
                print(
                    f"step {step + 1}/{steps}  loss {loss.item():.3f}  {rate:.1f} steps/s  "
                    f"{(steps - step - 1) / rate:.0f} s left",
                    flush=True,
                )
    finally:
        pool.shutdown()
        torch.set_num_threads(threads)
    for weight in weights.values():
        weight.requires_grad_(False)


def backward(shape: Shape, weights: dict[str, Tensor], data: np.ndarray, pool: ThreadPoolExecutor) -> Tensor:
    """Set every weight's gradient of the batch's mean loss; gives the loss."""

    def of_shard(rows: np.ndarray) -> tuple[Tensor, ...]:
        loss = next_token_loss(shape, weights, rows) * (len(rows) / len(data))
        return loss.detach(), *torch.autograd.grad(loss, list(weights.values()))

    shards = pool.map(of_shard, np.array_split(data, min(SHARDS, len(data))))
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
