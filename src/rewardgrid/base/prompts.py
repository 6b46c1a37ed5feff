"""Prompts: the first tokens of stories (SEMANTICS: prompt)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from rewardgrid.base.decoding import decode
from rewardgrid.study.contracts import PROMPTS, read_table, write_table
from rewardgrid.study.errors import UserError

TRAIN_ORDER = 0  # seeds of the two orders
EVAL_ORDER = 99  # the published evaluation's
CHUNK = 500  # stories encoded at once


@dataclass(frozen=True)
class Prompts:
    """Attributes: ``text`` (N,) decoded prompts; ``ids`` (N, prompt_tokens) int64, without special tokens."""

    text: list[str]
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.text)


def cut_prompts(
    stories: Iterable[str], tokenizer: Tokenizer, tokens: int, most: int, order: int, rejoin: bool = False
) -> Prompts:
    """The first ``tokens`` tokens of the first stories, at most ``most`` of them, in an order fixed by its seed.

    Stories that are shorter are skipped, prompts that have been met already dropped. ``rejoin`` is how their text is
    decoded (see :mod:`rewardgrid.base.decoding`).
    """
    distinct: dict[tuple[int, ...], None] = {}
    remaining = iter(stories)
    # Never more stories at once than prompts are wanting: the next one may lie in a file that is not fetched yet.
    while chunk := list(itertools.islice(remaining, min(CHUNK, most - len(distinct)))):
        for encoding in tokenizer.encode_batch(chunk, add_special_tokens=False):
            if len(encoding.ids) >= tokens:
                distinct[tuple(encoding.ids[:tokens])] = None
    uniform = random.Random(order).random
    rows = [row for _, row in sorted((uniform(), row) for row in distinct)]
    text = decode(tokenizer, [list(row) for row in rows], rejoin)
    return Prompts(text, np.array(rows, dtype=np.int64).reshape(-1, tokens))


def write_prompts(path: Path, prompts: Prompts) -> None:
    """Write a prompts table (schema: ``study.contracts.PROMPTS``)."""
    write_table(path, pd.DataFrame({"text": prompts.text, "ids": list(prompts.ids.astype(np.int32))}), PROMPTS)


def read_prompts(path: Path) -> Prompts:
    """Read a prompts table.

    Raises:
        UserError: the file is missing, torn or empty.
    """
    frame = read_table(path, PROMPTS)
    if frame.empty:
        raise UserError(f"{path}: no prompts; delete its directory and run again")
    return Prompts(frame["text"].tolist(), np.stack(frame["ids"].to_list()).astype(np.int64))
