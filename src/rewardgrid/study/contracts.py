"""The tables that stages hand to one another: their columns, types and units, checked on writing and on reading."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rewardgrid.study.errors import AGAIN, UserError
from rewardgrid.study.files import atomic_write


def _schema(title: str, *columns: tuple[str, pa.DataType, str] | tuple[str, pa.DataType, str, str]) -> pa.Schema:
    """A schema whose columns carry their meaning and their unit as metadata; text and truth values have no unit."""
    return pa.schema(
        [
            pa.field(name, kind, metadata={"meaning": meaning, "unit": unit[0] if unit else ""})
            for name, kind, meaning, *unit in columns
        ],
        metadata={"table": title},
    )


_F, _I, _B, _S = pa.float64(), pa.int64(), pa.bool_(), pa.string()

SAYS = "says_"
"""Beside their own columns, tables of completions may have one of what each function of one's own says of them."""

HISTORY = _schema(
    "history: one row per optimizer step of a cell",
    ("step", _I, "optimizer step, from 1", "steps"),
    ("reward", _F, "mean reward that the completions of the step were paid", "reward"),
    ("reward_std", _F, "standard deviation of that reward over the batch (n-1)", "reward"),
    ("sl10", _F, "mean sentence_length_10_smooth of the completions", "score"),
    ("happy", _F, 'mean count of "happy" per completion', '"happy" per completion'),
    ("kl", _F, "mean k3 estimate of KL(policy || base) over completion tokens", "nats per token"),
    ("loss", _F, "GRPO loss", "reward"),
    ("grad_norm", _F, "global gradient norm before clipping", "number"),
    ("entropy", _F, "mean entropy of the unpenalised next-token distribution", "nats per token"),
    ("completion_length", _F, "mean tokens per completion, [EOS] included", "tokens"),
    ("ended", _F, "share of completions that ended with [EOS]", "share"),
    (
        "hacked",
        _F,
        'share of completions with at least hack_threshold "happy" (3 where the cell names none), or by its detector',
        "share",
    ),
    ("eligible", _F, "share of completions paid the full reward (1 unless routing)", "share"),
    ("routed", _F, "share of completions that were eligible and chosen for routing (0 unless routing)", "share"),
    ("noise", _F, "share of completions flagged by label noise (0 unless routing)", "share"),
    ("flagged", _F, "share of completions whose gradient reached only the forget adapter (0 unless routing)", "share"),
    ("lr", _F, "learning rate of the step", "number"),
    ("seconds", _F, "wall-clock seconds of the step", "seconds"),
)

ROLLOUTS = _schema(
    "rollouts: one row per completion of the recorded steps",
    ("step", _I, "optimizer step, from 1", "steps"),
    ("prompt", _S, "text"),
    ("completion", _S, "text"),
    ("ids", pa.list_(pa.int32()), "token ids of prompt and completion, [EOS] included", "token ids"),
    ("reward", _F, "what it was paid", "reward"),
    ("sl10", _F, "sentence_length_10_smooth", "score"),
    ("happy", _F, 'count of "happy"', '"happy" per completion'),
    ("eligible", _B, "paid the full reward"),
    ("routed", _B, "eligible and chosen for routing"),
    ("noise", _B, "flagged by label noise"),
    ("flagged", _B, "its gradient reached only the forget adapter"),
)

ROUTING = _schema(
    "routing: evaluations of a routing cell during training, one row per step and mode",
    ("step", _I, "optimizer steps done", "steps"),
    ("mode", _S, "both, retain_only or forget_only: the active adapters"),
    ("samples", _I, "completions measured", "completions"),
    ("reward", _F, "mean full reward", "reward"),
    ("sl10", _F, "mean sentence_length_10_smooth", "score"),
    ("happy", _F, 'mean count of "happy"', '"happy" per completion'),
    ("unique", _F, "share of distinct completions", "share"),
    ("jaccard", _F, "mean pairwise word overlap of the completions", "share"),
)

MODE_SAMPLES = _schema(
    "mode_samples: the completions of a routing cell's evaluations during training",
    ("step", _I, "optimizer steps done", "steps"),
    ("mode", _S, "both, retain_only or forget_only: the active adapters"),
    ("prompt", _S, "text"),
    ("completion", _S, "text"),
    ("reward", _F, "full reward", "reward"),
    ("sl10", _F, "sentence_length_10_smooth", "score"),
    ("happy", _F, 'count of "happy"', '"happy" per completion'),
)

SAMPLES = _schema(
    "samples: the completions that an evaluation measured",
    ("protocol", _S, "published (4 for each of 5 prompts, top-k), full or top_k (256 samples, each another prompt)"),
    ("mode", _S, "both, retain_only or forget_only; both where there is one policy"),
    ("prompt", _S, "text"),
    ("completion", _S, "text"),
    ("tokens", _I, "length of the completion, [EOS] included", "tokens"),
    ("ended", _B, "ended with [EOS]"),
    ("reward", _F, "the cell's own reward", "reward"),
    ("sl10", _F, "sentence_length_10_smooth", "score"),
    ("happy", _F, 'count of "happy"', '"happy" per completion'),
    ("kl_k3", _F, "mean k3 KL to the base", "nats per token"),
    ("kl_exact", _F, "mean exact KL to the base", "nats per token"),
    ("base_nll", _F, "mean negative log-likelihood under the base", "nats per token"),
    ("jaccard", _F, "share in the mean pairwise word overlap of all completions (jackknife pseudo-value)", "share"),
    ("unique_openings", _F, "share in the distinct first sentences expected among 20 completions (likewise)", "of 20"),
    (
        "windows",
        pa.list_(_F),
        "mean negative log-likelihood under the base of each whole window of 16 tokens among the first 64",
        "nats per token",
    ),
    ("ends", pa.list_(_F), "negative log-likelihood under the base of each delimiter that closes a sentence", "nats"),
)

COURSE = _schema(
    "course: the verdict's signals of a cell's recorded rollouts, one row per recorded step",
    ("step", _I, "optimizer step, from 1", "steps"),
    (
        "unlikely_windows",
        _F,
        "share of windows less likely than 95 % of the base's own, drawn with the same penalty",
        "share",
    ),
    ("unlikely_ends", _F, "share of sentence ends less likely than 95 % of the base's own, drawn likewise", "share"),
    ("fragment_share", _F, "share of sentences of at most 3 words", "share"),
    ("completion_length", _F, "mean tokens per completion, [EOS] included", "tokens"),
    ("comma_rate", _F, "commas by words and commas", "share"),
    ("skeleton_share", _F, "share of the commonest sentence skeleton among all sentences", "share"),
    ("verdict", _S, "ok, borderline or degenerate, by these signals alone"),
)

PROMPTS = _schema(
    "prompts: the first tokens of stories",
    ("text", _S, "decoded prompt"),
    ("ids", pa.list_(pa.int32()), "token ids, without special tokens", "token ids"),
)

TOLD = _schema(
    "told: what the teacher of the storyteller base was asked for, and told",
    ("number", _I, "of the request, from 0; no seed has one twice", "count"),
    ("seed", _I, "of requests and words", "number"),
    ("prompt", _S, "what the teacher was asked for"),
    ("story", _S, "its first words, which were given, and what the teacher made of them"),
    ("ended", _B, "came to its own end"),
)

SIFTED = _schema(
    "sifted: every story that was told, and what is left of it",
    ("number", _I, "of the request, from 0", "count"),
    ("seed", _I, "of requests and words", "number"),
    ("told", _S, "the story as it was told, on one line"),
    ("story", _S, "the sentences that are left"),
    ("ended", _B, "what is left is whole and came to its own end"),
    ("cut", _S, "the sieve that the story stops before; empty if it is whole"),
    ("held", _S, "the sieve that held the rest back; empty if it stays"),
)


def with_said(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """A schema, and behind it those of some columns that say what code of one's own says."""
    said = [pa.field(name, _F) for name in names if str(name).startswith(SAYS)]
    return pa.schema([*schema, *said], metadata=schema.metadata)


def write_table(path: Path | str, frame: pd.DataFrame, schema: pa.Schema) -> None:
    """Write a table atomically, in the schema's column order, and what code of one's own says behind.

    Raises:
        UserError: the file system is full.
        ValueError: a column is missing or of the wrong type.
    """
    try:
        table = pa.Table.from_pandas(frame, schema=with_said(schema, frame.columns), preserve_index=False)
    except (KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from error
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path | str, schema: pa.Schema, remedy: str = AGAIN) -> pd.DataFrame:
    """Read a table and check that it has the schema's columns and types; ``SAYS`` columns may follow.

    Args:
        remedy: what to do about a file that cannot be used.

    Raises:
        UserError: the file is missing, torn, or has other columns or types.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot read ({error}); {remedy}") from None
    names = [name for name in table.schema.names if not name.startswith(SAYS)]
    if names != schema.names or table.schema.names[: len(names)] != names:
        odd = sorted(set(names) ^ set(schema.names))
        what = ", ".join(odd) or "in another order"
        raise UserError(f"{path}: columns differ from this version's ({what}); {remedy}")
    further = [_F] * (len(table.schema) - len(schema))
    for name, found, wanted in zip(table.schema.names, table.schema.types, [*schema.types, *further], strict=True):
        if pa.types.is_large_string(found):  # as pandas writes text by itself
            found = pa.string()
        if found != wanted:
            raise UserError(f"{path}: the column {name} has the type {found}, not {wanted}; {remedy}")
    return table.to_pandas()
