"""The columns of an experiment's table: what each one means, its unit, and how it is written for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa

from rewardgrid.study.cell import EVAL_MODES, REWARDS, Cell, format_number
from rewardgrid.study.steps import SMOOTHING_STEPS

FINAL_STEPS = 50
"""A run's reward and KL are means over this many last steps."""
PASSING = 0.85
THRESHOLDS = {"085": PASSING, "095": 0.95}
"""The rewards whose first passing is timed, by the suffix of their columns."""

NOTHING = "–"
"""Stands where there is no figure."""

_SCIENTIFIC_FROM = 1e4

SMOOTH = "each sentence earns 1 if it has 10 tokens, 0.2 less for each token more or fewer, and never less than 0"

FULL = "full protocol (256 samples, temperature 1)"
TOP_K = "256 samples, temperature 1, top-k 50"
PUBLISHED = "published protocol (20 samples, 4 for each of 5 prompts, top-k 50; prompts included)"


@dataclass(frozen=True)
class Column:
    """One column: the heading people read, what it means, its unit, Arrow type, decimals (None: as it comes).

    The unit also tells what values there can be (:func:`bounds`). It is empty of text.
    """

    label: str
    meaning: str
    unit: str
    kind: pa.DataType
    digits: int | None = None


_F, _I, _S = pa.float64(), pa.int64(), pa.string()

_SPEC_LABELS = {
    "forget_rank": "forget rank",
    "repetition_penalty": "repetition penalty",
    "batch_size": "batch",
    "reward": "paid for",
    "max_steps": "steps",
    "stop_when": "stop when",
    "decay_steps": "of steps",
    "rh_eligible_frac": "eligible",
    "base_reward": "else paid for",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up",
    "warmup_ratio": "warm-up ratio",
    "num_iterations": "updates/rollout",
    "kl_estimator": "KL estimator",
    "loss_type": "loss",
    "routing_frac": "routed",
    "label_noise_frac": "label noise",
}
_SPEC_UNITS = {
    "rank": "count",
    "forget_rank": "count",
    "repetition_penalty": "factor",
    "rh_eligible_frac": "share",
    "routing_frac": "share",
    "label_noise_frac": "share",
    "warmup_ratio": "share",
    "beta": "reward by nat per token",
    "batch_size": "completions",
    "num_generations": "completions",
    "max_steps": "steps",
    "decay_steps": "steps",
    "warmup_steps": "steps",
    "max_new_tokens": "tokens",
    "prompt_tokens": "tokens",
    "kl_cap": "nats per token",
    "hack_threshold": '"happy" per completion',
    "eval_every": "steps",
    "eval_samples": "completions",
}
"""Of those that have one; others are plain numbers."""


def _kind(annotation: Any) -> pa.DataType:
    """Arrow type of a spec field's annotation; literals and tuples are kept as text."""
    for python, arrow in ((bool, pa.bool_()), (int, _I), (float, _F)):
        if annotation is python:
            return arrow
    if get_origin(annotation) in (Literal, tuple) or not get_args(annotation):
        return _S
    return _kind(get_args(annotation)[0])


def _spec_column(name: str, description: str, kind: pa.DataType) -> Column:
    plain = "" if kind in (_S, pa.bool_()) else "number"
    return Column(_SPEC_LABELS.get(name, name.replace("_", " ")), description, _SPEC_UNITS.get(name, plain), kind)


SPEC_COLUMNS: dict[str, Column] = {
    name: _spec_column(name, field.description or "", _kind(field.annotation))
    for name, field in Cell.model_fields.items()
}
"""Every field of a cell's spec."""

_Figure = tuple[str, str, str, int]
"""Heading, meaning, unit, decimals."""

_UNLIKELY: dict[str, _Figure] = {
    "unlikely_windows": (
        "unlikely windows",
        "share of windows of 16 tokens that the base finds less likely than 95 % of its own",
        "share",
        2,
    ),
    "unlikely_ends": (
        "unlikely ends",
        "share of sentence ends that the base finds less likely than 95 % of its own",
        "share",
        2,
    ),
}

_SCORES: dict[str, _Figure] = {
    "sl10": ("sl10", f"mean sentence_length_10_smooth: {SMOOTH}", "score", 3),
    "sl10_se": ("sl10 SE", "standard error of sl10", "score", 3),
    "happy": ("happy", 'mean count of "happy"', '"happy" per completion', 2),
    "happy_se": ("happy SE", "standard error of happy", '"happy" per completion', 2),
    "hacked": ("hacked", 'share of completions with at least hack_threshold "happy", or by the detector', "share", 3),
}

_FULL: dict[str, _Figure] = {
    "samples": ("samples", "completions measured", "completions", 0),
    "reward_256": ("reward (samples)", "mean of the cell's own reward", "reward", 3),
    "reward_256_se": ("reward (samples) SE", "standard error of reward_256", "reward", 3),
    **_SCORES,
    "kl_k3": ("KL (k3, samples)", "mean k3 estimate of KL(policy || base)", "nats per token", 3),
    "kl_exact": (
        "KL (exact)",
        "how far the cell has moved from its base: KL(policy || base), summed over the vocabulary",
        "nats per token",
        3,
    ),
    "base_nll": (
        "base NLL",
        "how surprising its texts are to the base: mean negative log-likelihood",
        "nats per token",
        3,
    ),
    **_UNLIKELY,
    "completion_length": ("length", "mean length of a completion, [EOS] included", "tokens", 1),
    "ended": ("ended", "share of completions that ended with [EOS]", "share", 3),
    "unique_openings": (
        "openings/20",
        "distinct first sentences of the completions without their prompts, expected among 20",
        "of 20",
        1,
    ),
    "jaccard_256": (
        "Jaccard (256)",
        "mean pairwise word overlap (shared words by all words) of the completions",
        "share",
        3,
    ),
    "sentence_words": ("words/sentence", "mean length of a sentence", "words", 1),
    "fragment_share": ("fragments", "share of sentences of at most 3 words", "share", 3),
    "comma_rate": ("commas", "commas by words and commas", "share", 3),
    "skeleton_share": ("skeleton share", "share of the commonest sentence skeleton among all sentences", "share", 3),
    "repeated_sentence_share": ("repeated", "share of sentences that repeat an earlier one word for word", "share", 3),
    "vocabulary_size": ("vocabulary", "distinct words among 1,000", "words", 0),
    "compression_ratio": ("compression", "compressed bytes by raw bytes", "ratio", 3),
}

RENAMED = {
    "reward": "reward_256",
    "reward_se": "reward_256_se",
    "jaccard": "jaccard_256",
}
"""Keys of the full protocol whose names are taken by a spec field or by the published protocol."""

_MODES: dict[str, _Figure] = {
    "samples": ("samples", "completions measured", "completions", 0),
    "reward": ("reward", "mean full reward", "reward", 3),
    "reward_se": ("reward SE", "standard error of reward", "reward", 3),
    **_SCORES,
    "unique": ("unique", "share of distinct completions", "share", 3),
    "jaccard": ("Jaccard", "mean pairwise word overlap of the completions", "share", 3),
}

_OF_MODE = {
    "verdict": ("stories", "whether what they write still is stories: ok, borderline or degenerate"),
    "reasons": ("reasons", "kinds of degeneracy"),
}
STORIES: dict[str, Column] = {
    f"{mode}_{what}": Column(f"{mode.replace('_', ' ')} {label}", f"{meaning}, {FULL}, adapters: {mode}", "", _S)
    for mode in EVAL_MODES
    for what, (label, meaning) in _OF_MODE.items()
}
"""The verdict on what each set of adapters writes. Null where a cell was measured before this was asked."""

_FINAL = f"mean over the last {FINAL_STEPS} steps of training, over all of a shorter run"


def _figure(figure: _Figure, of: str, prefix: str = "", suffix: str = "") -> Column:
    label, meaning, unit, digits = figure
    return Column(f"{prefix}{label}{suffix}", f"{meaning}, {of}", unit, _F, digits)


MEASURED_COLUMNS: dict[str, Column] = {
    "steps_done": Column("steps done", "optimizer steps taken", "steps", _I),
    "stopped_at": Column("stopped at", "step with which stop_when ended the cell, before max_steps", "steps", _I),
    "seconds": Column("seconds", "wall clock of all training steps", "seconds", _F, 0),
    "seconds_per_step": Column("s/step", "wall clock by steps", "seconds per step", _F, 3),
    "final_reward": Column("reward", f"reward paid, {_FINAL}", "reward", _F, 3),
    "final_reward_sd": Column(
        "reward sd", f"standard deviation of the reward over the last {FINAL_STEPS} steps", "reward", _F, 3
    ),
    "final_kl": Column("KL", f"k3 estimate of KL(policy || base), {_FINAL}", "nats per token", _F, 3),
    **{
        f"{what}_to_{suffix}": Column(
            f"{what} to {level}",
            f"{'optimizer steps' if what == 'steps' else 'training time'} until the mean reward of "
            f"{SMOOTHING_STEPS} steps is at least {level}",
            what,
            _I if what == "steps" else _F,
            0,
        )
        for suffix, level in THRESHOLDS.items()
        for what in ("steps", "seconds")
    },
    "unique_first_sentences": Column("unique/20", f"distinct first sentences, {PUBLISHED}", "of 20", _F, 0),
    "jaccard": Column("Jaccard", f"mean pairwise word overlap of the completions, {PUBLISHED}", "share", _F, 3),
    **{name: _figure(figure, FULL) for name, figure in _FULL.items()},
    **{f"{name}_top_k": _figure(figure, TOP_K, suffix=" (top-k)") for name, figure in _UNLIKELY.items()},
    "degeneration_onset": Column(
        "not ok from",
        "first of two recorded steps in a row whose rollouts are borderline or degenerate, if no two in a row are ok "
        "after it",
        "steps",
        _I,
    ),
    "hack_onset": Column(
        "hacks from",
        f"first step at which {SMOOTHING_STEPS} steps' share of hacked completions exceeds the base's by "
        "evaluation.hack_onset",
        "steps",
        _I,
    ),
    **{
        f"{mode}_{metric}": _figure(figure, f"{FULL}, adapters: {mode}", prefix=f"{mode.replace('_', ' ')} ")
        for mode in EVAL_MODES
        for metric, figure in _MODES.items()
    },
}
"""Every measured number. Null where the cell is missing or diverged, or had nothing to measure."""

OWN = "own_"
"""Columns of metrics of one's own begin with this."""


class _Columns(dict[str, Column]):
    """Columns by name; those of metrics of one's own are known by their beginning."""

    def __missing__(self, name: str) -> Column:
        if name not in self:
            raise KeyError(name)
        label = name.removeprefix(OWN).replace("_", " ")
        if name.endswith("_se"):
            return Column(f"{label[:-3]} SE", f"standard error of {name[:-3]}", "", _F, 3)
        return Column(label, f"mean of the metric {name.removeprefix(OWN)} of evaluation.metrics, {FULL}", "", _F, 3)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name.startswith(OWN))


COLUMNS: dict[str, Column] = _Columns(
    {
        "experiment": Column("experiment", "name of the experiment", "", _S),
        "cell": Column("cell", "name of the cell: its directory under results/cells", "", _S),
        "state": Column("state", "done, stopped (by stop_when: in no mean), diverged or missing", "", _S),
        **SPEC_COLUMNS,
        **MEASURED_COLUMNS,
        "verdict": Column("verdict", "ok, borderline or degenerate; or stopped", "", _S),
        "verdict_published_signals": Column(
            "verdict (published signals)",
            "the verdict by what the published rows give alone: first sentences, Jaccard, KL, reward and length; "
            "without likelihoods, and without what single sentences look like",
            "",
            _S,
        ),
        **STORIES,
        "reasons": Column("reasons", "kinds of degeneracy, why it stopped or diverged, or what is missing", "", _S),
        "hardware": Column("hardware", "what the cell was trained on", "", _S),
        "versions": Column("versions", "versions of the libraries that trained it", "", _S),
    }
)
"""All columns of an experiment's table, in order."""


def table_schema(own: Sequence[str] = ()) -> pa.Schema:
    """Schema of ``tables/<experiment>.parquet``, with these columns of metrics of one's own at its end."""
    return pa.schema(
        [
            pa.field(name, COLUMNS[name].kind, metadata={"meaning": COLUMNS[name].meaning, "unit": COLUMNS[name].unit})
            for name in (*COLUMNS, *own)
        ],
        metadata={"table": "experiment: one row per cell"},
    )


def is_measured(name: str) -> bool:
    """Whether a column is a measured number."""
    return name in MEASURED_COLUMNS or (name.startswith(OWN) and name in COLUMNS)


_LARGEST = {"share": 1.0, "score": 1.0, "of 20": 20.0}
"""By unit; nothing that rewardgrid measures is negative."""


def bounds(name: str, paid_for: str = "") -> tuple[float, float]:
    """The smallest and the largest value that a measured column can have.

    A reward is at most 1 unless it counts; a metric or a reward of one's own can be anything.
    """
    unit = MEASURED_COLUMNS[name].unit if name in MEASURED_COLUMNS else ""
    if name.startswith(OWN) or (unit == "reward" and paid_for not in REWARDS):
        return -math.inf, math.inf
    if unit == "reward":
        return 0.0, math.inf if paid_for == "happy_count" else 1.0
    return 0.0, _LARGEST.get(unit, math.inf)


def known(value: object) -> bool:
    """Whether there is a value: None and NaN are none."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def show(name: str, value: object) -> str:
    """A value of column ``name`` as people read it; the one place where digits are chosen."""
    if not known(value):
        return NOTHING
    digits = COLUMNS[name].digits if name in COLUMNS else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    if digits is not None:
        return decimals(value, digits)
    return format_number(int(value) if float(value).is_integer() and abs(value) < _SCIENTIFIC_FROM else value)


def decimals(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, in scientific form from 10,000 on if it is no whole count."""
    if value is None or not known(value):
        return NOTHING
    if digits and abs(value) >= _SCIENTIFIC_FROM:
        return f"{value:.2e}"
    return f"{value:.{digits}f}"


def rounded(value: float, digits: int = 2) -> float:
    """A figure at the decimals at which rewards are compared; a half is rounded up, as by hand."""
    step = Decimal(1).scaleb(-digits)
    return float(Decimal(f"{value:.9f}").quantize(step, ROUND_HALF_UP))


def setting(name: str, value: object) -> str:
    """A spec field and its value in words: ``learning rate 3e-4``."""
    words = {
        "lr": "lr",
        "repetition_penalty": "penalty",
        "batch_size": "batch",
        "adapter_alpha": "alpha =",
        "reward": "",
    }
    label = words.get(name, COLUMNS[name].label if name in COLUMNS else name)
    return f"{label} {show(name, value)}".strip()


def settings(fields: Sequence[str], row: Mapping[str, Any]) -> str:
    """What makes a configuration, in words: ``rank 1, lr 3e-4``."""
    return ", ".join(setting(name, row[name]) for name in fields)
