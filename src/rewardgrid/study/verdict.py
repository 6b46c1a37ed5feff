"""Whether a finished cell still tells stories: the degeneracy verdict, a pure function of measured signals.

The rule is worst-of: each signal is scored 0 (ok), 1 (borderline) or 2 (degenerate) against its two limits,
and the worst score is the verdict. Scores do not add up: the signals of a template, for example, move together.
``docs/verdict.md`` says where signals and limits come from, and how far the rule can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rewardgrid.study.thresholds import Above, Below, Thresholds

Label = Literal["ok", "borderline", "degenerate"]
Reason = Literal["gibberish", "chopped sentences", "fragments", "comma stuffing", "template"]
Relation = Literal["absolute", "minus base", "ratio to base", "ratio beyond prompts"]
Signals = Mapping[str, float | int | None]

LABELS: tuple[Label, ...] = ("ok", "borderline", "degenerate")


@dataclass(frozen=True)
class Judged:
    """One signal beside the base's and its limits, all in the signal's own unit, and what it says by itself.

    ``base`` is None where the limits do not depend on it, ``degenerate`` where the signal never says so.
    """

    signal: str
    value: float
    base: float | None
    borderline: float
    degenerate: float | None
    label: Label


@dataclass(frozen=True)
class Verdict:
    """A label, the kinds of degeneracy seen, and every signal that was judged, both worst first.

    Reasons are empty for "ok", and where nothing but a saturated reward makes a cell borderline.
    """

    label: Label
    reasons: tuple[Reason, ...]
    evidence: tuple[Judged, ...]


class _Criterion(NamedTuple):
    """What is judged together: the score is the lowest of these signals."""

    signals: tuple[str, ...]
    relation: Relation
    limits: str
    """Field of ``Thresholds``."""
    reason: Reason


# What a policy writes only when its whole distribution is sampled is the tail of it: text counts as unlikely if it is
# so in the top-k samples too.
_CRITERIA = (
    _Criterion(("unlikely_windows", "unlikely_windows_top_k"), "absolute", "unlikely_windows", "gibberish"),
    _Criterion(("unlikely_ends", "unlikely_ends_top_k"), "absolute", "unlikely_ends", "chopped sentences"),
    _Criterion(("fragment_share",), "minus base", "fragment_share", "fragments"),
    _Criterion(("completion_length",), "ratio to base", "completion_length", "fragments"),
    _Criterion(("comma_rate",), "minus base", "comma_rate", "comma stuffing"),
    _Criterion(("skeleton_share",), "minus base", "skeleton_share", "template"),
    _Criterion(("compression_ratio",), "ratio to base", "compression_ratio", "template"),
    _Criterion(("unique_first_sentences",), "ratio beyond prompts", "unique_first_sentences", "template"),
    _Criterion(("unique_openings",), "ratio to base", "unique_openings", "template"),
    _Criterion(("jaccard",), "ratio to base", "jaccard", "template"),
)


def verdict(signals: Signals, reference: Signals, thresholds: Thresholds) -> Verdict:
    """Judge a cell's signals against those of the base's own samples.

    Args:
        signals: those of ``_CRITERIA``; ``prompts`` (how many distinct ones ``unique_first_sentences`` was counted
            with); ``kl_exact`` or ``kl_k3`` (nats per token) and ``reward`` (mean), which stand in for the unlikely
            windows and ends where neither was measured. One that is absent or None is not judged.
        reference: the same signals of the base. One that is compared with the base is judged only if the base has it
            (and, for a ratio, not 0).
        thresholds: the limits.

    Raises:
        ValueError: a signal is NaN.
    """
    judged: list[tuple[Judged, Reason | None]] = [
        found
        for criterion in _CRITERIA
        for found in _against_base(criterion, signals, reference, getattr(thresholds, criterion.limits))
    ]
    if not any(found.signal.startswith("unlikely") for found, _ in judged):
        judged += _stand_ins(signals, thresholds)
    judged.sort(key=lambda pair: -LABELS.index(pair[0].label))
    bad = [(found, reason) for found, reason in judged if found.label != "ok"]
    return Verdict(
        label=bad[0][0].label if bad else "ok",
        reasons=tuple(dict.fromkeys(reason for _, reason in bad if reason)),
        evidence=tuple(found for found, _ in judged),
    )


def _against_base(
    criterion: _Criterion, signals: Signals, reference: Signals, limits: Above | Below
) -> list[tuple[Judged, Reason | None]]:
    found = []
    for signal in criterion.signals:
        value, base = _known(signals, signal), _known(reference, signal)
        unit = _unit(criterion.relation, base, _known(signals, "prompts") or 0)
        if value is not None and unit is not None:
            found.append((signal, value, base, limits.in_unit(*unit)))
    label = LABELS[min((own.score(value) for _, value, _, own in found), default=0)]
    return [
        (Judged(signal, value, base, own.borderline, own.degenerate, label), criterion.reason)
        for signal, value, base, own in found
    ]


def _unit(relation: Relation, base: float | None, prompts: float) -> tuple[float, float] | None:
    """(factor, offset) that turn limits into the signal's own unit; None where the base gives no scale."""
    if relation == "absolute":
        return 1, 0
    if base is None:
        return None
    if relation == "minus base":
        return 1, base
    lowest = prompts if relation == "ratio beyond prompts" else 0
    return (base - lowest, lowest) if base > lowest else None


def _stand_ins(signals: Signals, thresholds: Thresholds) -> Iterator[tuple[Judged, Reason | None]]:
    # The mean of k3 explodes at high learning rates, so it counts only where the exact KL was not measured.
    signal = "kl_exact" if _known(signals, "kl_exact") is not None else "kl_k3"
    kl, limits = _known(signals, signal), thresholds.kl
    if kl is not None:
        label = LABELS[limits.score(kl)]
        yield Judged(signal, kl, None, limits.borderline, limits.degenerate, label), "gibberish"
    reward, limit = _known(signals, "reward"), thresholds.saturated_reward
    if reward is not None:
        yield Judged("reward", reward, None, limit, None, LABELS[int(reward >= limit)]), None


def _known(signals: Signals, name: str) -> float | None:
    value = signals.get(name)
    if value is not None and math.isnan(value):
        raise ValueError(f"{name} is NaN: a cell that diverged has no verdict")
    return value
