"""How surprising a text is to the base: in runs of tokens, and where its sentences end.

Windows see text that is unlikely all along. Ends see sentences that are closed where no sentence ends ("he had to."),
of which a mean over all tokens shows little: they are one token in ten. Both are compared with the 95 % quantile of
the base's own samples, drawn in the same way, so that a text like the base's has a share of 5 % whatever the base,
the length of its completions or the truncation of the draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights, token_logps
from rewardgrid.train.rewards import TextTables, sentence_lengths

WINDOW = 16
OPENING = 64
"""Windows lie side by side in so many first tokens, because the base's surprise changes along a story."""
QUANTILE = 0.95
ROWS = 32
"""Sequences scored together."""


KINDS = ("windows", "ends")

Usual = Mapping[str, float | None]
"""What few of the base's own windows and ends exceed, by kind, in nats; None where the base has none."""


def places(nll: Tensor, ids: Tensor, mask: Tensor, tables: TextTables) -> dict[str, tuple[Tensor, Tensor]]:
    """Where completions may surprise, by kind: the values (..., n) in nats, and (..., n) True where there is one.

    Args:
        nll: (..., L) negative log-likelihood of each token under the base, nats.
        ids, mask: (..., L) the completions.
    """
    closes = sentence_lengths(ids, mask, tables)[1]
    opening = min(OPENING, nll.shape[-1]) // WINDOW * WINDOW
    means, whole = (each[..., :opening].unflatten(-1, (-1, WINDOW)) for each in (nll, mask))
    return {"windows": (means.mean(-1), whole.all(-1)), "ends": (nll, closes)}


def surprises(nll: Tensor, ids: Tensor, mask: Tensor, tables: TextTables) -> dict[str, list[list[float]]]:
    """What is surprising about each of B completions.

    Args:
        nll: (B, L) negative log-likelihood of each token under the base, nats.
        ids, mask: (B, L) the completions.

    Returns:
        ``windows``: means of the whole runs of 16 tokens among the first 64; ``ends``: surprisals of the delimiters
        that close a sentence. A list for each completion, empty where it has none.
    """
    return {
        kind: [row[kept].tolist() for row, kept in zip(values, present, strict=True)]
        for kind, (values, present) in places(nll, ids, mask, tables).items()
    }


@torch.no_grad()
def surprises_of(
    shape: Architecture, base: Weights, sequences: Sequence[np.ndarray], prompt_length: int, tables: TextTables
) -> dict[str, list[list[float]]]:
    """The same of recorded sequences: token ids of prompt and completion, of different lengths."""
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for start in range(0, len(sequences), ROWS):
        rows = [torch.from_numpy(ids.astype(np.int64)) for ids in sequences[start : start + ROWS]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tables.eos)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1))[:, prompt_length:]
        nll = -token_logps(shape, base, ids[None], prompt_length)[0]
        for kind, lists in surprises(nll, ids[:, prompt_length:], mask, tables).items():
            found[kind] += lists
    return found


def usual(samples: pd.DataFrame) -> dict[str, float | None]:
    """The 95 % quantiles of the base's own samples."""
    values = {kind: _all(samples, kind) for kind in KINDS}
    return {kind: float(np.quantile(found, QUANTILE)) if len(found) else None for kind, found in values.items()}


def unlikely(samples: pd.DataFrame, limits: Usual) -> dict[str, float | None]:
    """Shares ``unlikely_windows`` and ``unlikely_ends`` beyond what is usual; None where there is nothing to count."""
    shares = {}
    for kind in KINDS:
        values, limit = _all(samples, kind), limits[kind]
        shares[f"unlikely_{kind}"] = None if limit is None or not len(values) else float((values > limit).mean())
    return shares


def _all(samples: pd.DataFrame, kind: str) -> np.ndarray:
    return np.concatenate([np.empty(0), *samples[kind]])
