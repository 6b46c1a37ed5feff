"""When a finished cell counts as degenerate: the limits of the verdict, part of the configuration.

Each signal has two limits, ``borderline`` and ``degenerate``. All are set against the base's own samples: as a share
beyond the base's 95 % quantile, as a ratio or as a difference, so that one set of limits serves every base.
``docs/verdict.md`` says where each one comes from.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rewardgrid.study.cell import Number, Strict


class _Limits(Strict):
    borderline: Number
    degenerate: Number

    def in_unit(self, factor: float, offset: float) -> Self:
        """The same limits in another unit: ``offset + factor * limit``."""
        return type(self)(borderline=offset + factor * self.borderline, degenerate=offset + factor * self.degenerate)


class Above(_Limits):
    """Limits of a signal that is worse when larger: reached at the limit or above it."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.degenerate < self.borderline:
            raise _disorder("at least", self.borderline)
        return self

    def score(self, value: float) -> int:
        """0 ok, 1 borderline, 2 degenerate."""
        return int(value >= self.borderline) + int(value >= self.degenerate)


class Below(_Limits):
    """Limits of a signal that is worse when smaller: reached at the limit or below it."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.degenerate > self.borderline:
            raise _disorder("at most", self.borderline)
        return self

    def score(self, value: float) -> int:
        """0 ok, 1 borderline, 2 degenerate."""
        return int(value <= self.borderline) + int(value <= self.degenerate)


def _disorder(relation: str, borderline: float) -> PydanticCustomError:
    fix = f"write {relation} the borderline limit ({borderline:g}): degenerate is the worse of the two"
    return PydanticCustomError("conflict", "limits in the wrong order", {"conflicts": [("degenerate", fix)]})


class Thresholds(Strict):
    """Limits of every signal that the verdict judges."""

    unlikely_windows: Above = Field(
        default=Above(borderline=0.1, degenerate=0.35),
        description="share of windows of 16 tokens (of the first 64) that the base finds less likely than 95 % of its "
        "own; in the full and in the top-k samples. The base's own share is 0.05",
    )
    unlikely_ends: Above = Field(
        default=Above(borderline=0.1, degenerate=0.35),
        description="share of sentence ends that the base finds less likely than 95 % of its own; in the full and in "
        "the top-k samples. The base's own share is 0.05",
    )
    unique_first_sentences: Below = Field(
        default=Below(borderline=0.4, degenerate=0.04),
        description="distinct first sentences of the published protocol, beyond one for each of its prompts, as a "
        "ratio to the base's; published (5 prompts): ok from 13 of 20, borderline 6 to 9, degenerate 5",
    )
    unique_openings: Below = Field(
        default=Below(borderline=0.55, degenerate=0.28),
        description="distinct first sentences of the completions without their prompts, expected among 20, as a ratio "
        "to the base's",
    )
    jaccard: Above = Field(
        default=Above(borderline=1.3, degenerate=2.2),
        description="mean pairwise word overlap, as a ratio to the base's; published: ok up to 1.2 times, "
        "borderline to 1.5, one template 3.0",
    )
    kl: Above = Field(
        default=Above(borderline=1.5, degenerate=2.7),
        description="KL to the base, nats per token (exact if measured, else k3); judged only where unlikely windows "
        "and ends were not measured. Published: ok up to 1.1, borderline 1.9 to 2.5, gibberish from 2.9",
    )
    saturated_reward: Annotated[Number, Field(gt=0)] = Field(
        default=0.98,
        description="a mean reward from here on is borderline, and never degenerate by itself: it does not say how it "
        "was earned; judged only where unlikely windows and ends were not measured. Published: no ok row above 0.976",
    )
    completion_length: Below = Field(
        default=Below(borderline=0.5, degenerate=0.25),
        description="mean tokens per completion, as a ratio to the base's; published: 51 of at most 128 "
        "tokens borderline, 22 degenerate",
    )
    fragment_share: Above = Field(
        default=Above(borderline=0.15, degenerate=0.35),
        description="share of sentences of at most 3 words, minus the base's; natural stories have 0.07",
    )
    comma_rate: Above = Field(
        default=Above(borderline=0.07, degenerate=0.17),
        description="commas by words and commas, minus the base's; plain stories have 0.04, and where every "
        "fourth or fifth piece is a comma there is no prose",
    )
    skeleton_share: Above = Field(
        default=Above(borderline=0.1, degenerate=0.25),
        description="share of the commonest sentence skeleton among all sentences, minus the base's; natural "
        "stories have 0.02",
    )
    compression_ratio: Below = Field(
        default=Below(borderline=0.75, degenerate=0.5),
        description="compressed by raw size of the text, as a ratio to the base's: text that takes half the "
        "room says half as much",
    )
