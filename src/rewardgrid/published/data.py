"""The tables that the published study reports, read from ``config/published`` and checked."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rewardgrid.study.errors import ConfigError, Problem
from rewardgrid.study.shipped import shipped
from rewardgrid.study.verdict import LABELS

BASE = "SimpleStories-1.25M"
"""The base of the published runs."""

Line = Mapping[str, Any]
"""A row of a published table: column -> number, text, or None where it is empty."""
Tables = Mapping[str, list[dict[str, Any]]]
"""CSV file name -> its rows."""


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    return int(text)


def _verdict(text: str) -> str:
    if text not in LABELS:
        raise ValueError(text)
    return text


class HappyAtEnd(NamedTuple):
    """retain_only's "happy" in the asymmetric table: 0 from a step on, or a range at a step."""

    zero: bool
    step: int
    low: float = 0.0
    high: float = 0.0


_HAPPY = re.compile(r"(?:0 from|(?P<low>[\d.]+)(?:-(?P<high>[\d.]+))? at) step (?P<step>\d+)")


def happy_at_end(text: str) -> HappyAtEnd:
    """Read ``0 from step 70``, ``0.1 at step 100`` or ``0.5-1.1 at step 100``.

    Raises:
        ValueError: it is none of these.
    """
    match = _HAPPY.fullmatch(text)
    if match is None:
        raise ValueError(text)
    step, low = int(match["step"]), match["low"]
    if low is None:
        return HappyAtEnd(zero=True, step=step)
    return HappyAtEnd(zero=False, step=step, low=float(low), high=float(match["high"] or low))


def _happy(text: str) -> str:
    happy_at_end(text)
    return text


_EXPECTED = {
    _number: "a number",
    _whole: "a whole number",
    _verdict: "ok, borderline or degenerate",
    _happy: "0 from step N, or X at step N, or X-Y at step N",
    str: "text",
}

CSV_COLUMNS: dict[str, dict[str, Callable[[str], Any]]] = {
    "reward_sweep.csv": {
        "beta": _number, "repetition_penalty": _number, "seed": _whole, "reward": _number, "jaccard": _number,
        "kl": _number, "verdict": _verdict, "note": str,
    },
    "lora_rank.csv": {
        "rank": _whole, "lr": _number, "seed": _whole, "reward": _number, "unique_first_sentences": _whole,
        "jaccard": _number, "verdict": _verdict, "note": str,
    },
    "lora_rank_summary.csv": {"rank": _whole, "lr": _number, "reward_mean": _number, "kl": _number},
    "batch_size.csv": {
        "rank": _whole, "lr": _number, "batch_size": _whole, "seconds_to_0.85": _number,
        "seconds_to_0.95": _number, "final_reward": _number, "verdict": _verdict, "note": str,
    },
    "routing_asymmetric.csv": {
        "retain_rank": _whole, "forget_rank": _whole, "seed": _whole, "retain_sl10_low": _number,
        "retain_sl10_high": _number, "retain_happy": _happy, "forget_happy_low": _number,
        "forget_happy_high": _number, "note": str,
    },
}  # fmt: skip
"""The published tables, and how each of their columns is read. An empty field is no figure."""

REQUIRED = frozenset(
    {"beta", "repetition_penalty", "seed", "rank", "lr", "batch_size", *CSV_COLUMNS["routing_asymmetric.csv"]}
) - {"note"}
"""Columns in which every row must have something."""


def load_tables(directory: Path | str) -> Tables:
    """Read and check the published tables.

    Raises:
        ConfigError: every problem of the CSV files: file, row and column.
    """
    problems: list[Problem] = []
    tables = {name: list(_csv_rows(shipped(directory) / name, kinds, problems)) for name, kinds in CSV_COLUMNS.items()}
    if problems:
        raise ConfigError(problems)
    return tables


def _csv_rows(
    path: Path, kinds: Mapping[str, Callable[[str], Any]], problems: list[Problem]
) -> Iterator[dict[str, Any]]:
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
    except FileNotFoundError:
        problems.append(Problem(str(path), "(file)", None, "no such file; check `published`"))
        return
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(str(path), "(file)", str(error), "write valid CSV in UTF-8"))
        return
    if lines[:1] != [list(kinds)]:
        problems.append(Problem(str(path), "line 1", lines[:1], f"write the columns {', '.join(kinds)}"))
        return
    for number, texts in enumerate(lines[1:], start=1):
        if len(texts) != len(kinds):
            problems.append(Problem(str(path), f"row {number}", texts, f"write {len(kinds)} fields"))
            continue
        row: dict[str, Any] = {}
        for (column, kind), text in zip(kinds.items(), texts, strict=True):
            try:
                row[column] = kind(text) if text or column in REQUIRED else None
            except ValueError:
                problems.append(Problem(str(path), f"row {number}, {column}", text, f"write {_EXPECTED[kind]}"))
        yield row
