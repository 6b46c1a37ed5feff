"""Whether a finished cell still tells stories: the degeneracy verdict, a pure function of measured signals.

The rule is worst-of: each signal is scored 0 (ok), 1 (borderline) or 2 (degenerate) against its two limits,
and the worst score is the verdict. Scores do not add up: reward, KL and Jaccard move together, and in the
published borderline rows they are often borderline together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rewardgrid.study.thresholds import Thresholds

Label = Literal["ok", "borderline", "degenerate"]
Reason = Literal["fragments", "comma stuffing", "template", "gibberish"]
Signals = Mapping[str, float | int | None]

LABELS: tuple[Label, ...] = ("ok", "borderline", "degenerate")


@dataclass(frozen=True)
class Verdict:
    """A label, the kinds of degeneracy seen, and the signals that say so, worst first.

    Reasons are empty for "ok", and where nothing but a saturated reward makes a cell borderline.
    """

    label: Label
    reasons: tuple[Reason, ...]
    evidence: tuple[str, ...]


class _Criterion(NamedTuple):
    signal: str
    relation: Literal["ratio to base", "minus base"]
    limits: str
    """Field of ``Thresholds``."""
    reason: Reason


class _Score(NamedTuple):
    signal: str
    points: int
    reason: Reason | None
    evidence: str


_CRITERIA = (
    _Criterion("fragment_share", "minus base", "fragment_share", "fragments"),
    _Criterion("completion_length", "ratio to base", "completion_length", "fragments"),
    _Criterion("comma_rate", "minus base", "comma_rate", "comma stuffing"),
    _Criterion("skeleton_share", "minus base", "skeleton_share", "template"),
    _Criterion("compression_ratio", "ratio to base", "compression_ratio", "template"),
    _Criterion("unique_first_sentences", "ratio to base", "unique_first_sentences", "template"),
    _Criterion("unique_openings", "ratio to base", "unique_first_sentences", "template"),
    _Criterion("jaccard", "ratio to base", "jaccard", "template"),
    _Criterion("base_nll", "minus base", "base_nll", "gibberish"),
)


def verdict(signals: Signals, reference: Signals, thresholds: Thresholds) -> Verdict:
    """Judge a cell's signals against those of the base's own samples.

    Args:
        signals: the text signals of ``diversity.measure``, ``completion_length`` (mean tokens), ``base_nll``,
            ``kl_exact`` and ``kl_k3`` (nats per token), ``reward`` (mean). One absent or None is not judged.
        reference: the same signals of the base. A signal that is compared with the base is judged only if the
            base has it (and, for a ratio, not 0).
        thresholds: the limits.

    Raises:
        ValueError: a signal is NaN.
    """
    scores = list(_against_base(signals, reference, thresholds))
    likely = any(score.signal == "base_nll" and score.points == 0 for score in scores)
    scores.extend(_absolute(signals, thresholds, likely))
    bad = sorted((score for score in scores if score.points), key=lambda score: -score.points)
    return Verdict(
        label=LABELS[max((score.points for score in bad), default=0)],
        reasons=tuple(dict.fromkeys(score.reason for score in bad if score.reason)),
        evidence=tuple(score.evidence for score in bad),
    )


def _against_base(signals: Signals, reference: Signals, thresholds: Thresholds) -> Iterator[_Score]:
    for signal, relation, limits, reason in _CRITERIA:
        value, base = _known(signals, signal), _known(reference, signal)
        if value is None or base is None or (relation == "ratio to base" and base == 0):
            continue
        departure = value / base if relation == "ratio to base" else value - base
        points = getattr(thresholds, limits).score(departure)
        yield _Score(signal, points, reason, f"{signal} {value:.3g} (base {base:.3g})")


def _absolute(signals: Signals, thresholds: Thresholds, likely: bool) -> Iterator[_Score]:
    """Signals that need no reference; ``likely``: the base finds the samples about as likely as its own."""
    # The mean of k3 explodes at high learning rates, so it counts only where the exact KL was not measured.
    signal = "kl_exact" if _known(signals, "kl_exact") is not None else "kl_k3"
    kl = _known(signals, signal)
    if kl is not None:
        # KL = (NLL under the base) - (entropy): far from the base yet likely means low entropy, few forms.
        reason: Reason = "template" if likely else "gibberish"
        yield _Score(signal, thresholds.kl.score(kl), reason, f"{signal} {kl:.3g}")
    reward = _known(signals, "reward")
    if reward is not None and reward >= thresholds.saturated_reward:
        yield _Score("reward", 1, None, f"reward {reward:.3g}")


def _known(signals: Signals, name: str) -> float | None:
    value = signals.get(name)
    if value is not None and math.isnan(value):
        raise ValueError(f"{name} is NaN: a cell that diverged has no verdict")
    return value
