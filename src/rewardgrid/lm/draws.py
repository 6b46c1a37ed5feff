"""Randomness as a function: every draw is determined by (seed, purpose, step) and nothing else.

No generator outlives a call, so a resumed run needs only its step number, evaluation cannot disturb training, and
CPU and GPU consume the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """A fresh counter-based generator (Philox) keyed by the hash of its three arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def uniforms(seed: int, purpose: str, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform float32 draws in [0, 1) of the given shape."""
    return generator(seed, purpose, step).random(shape, dtype=np.float32)


def prompt_order(seed: int, step: int, per_step: int, prompts: int) -> np.ndarray:
    """Indices (per_step,) of the prompts of optimizer step ``step`` (from 0).

    Steps walk through a permutation of all prompts that is drawn anew, from (seed, epoch), for each pass.
    """
    places = np.arange(step * per_step, (step + 1) * per_step)
    epochs = places // prompts
    return np.concatenate(
        [
            generator(seed, "prompt order", int(epoch)).permutation(prompts)[places[epochs == epoch] % prompts]
            for epoch in np.unique(epochs)
        ]
    )
