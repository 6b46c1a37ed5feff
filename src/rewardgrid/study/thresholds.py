"""When a finished cell counts as degenerate: the limits of the verdict, part of the configuration.

Each signal has two limits, ``borderline`` and ``degenerate``. Most are set against the base's own samples, as
a ratio or a difference, so that one set of limits serves every base. The defaults of
``unique_first_sentences``, ``jaccard``, ``kl`` and ``saturated_reward`` were chosen on the published study's
rows (33 rows of two tables; base: 20 of 20 unique, Jaccard 0.12), and ``completion_length`` on two notes of a
third; the groups overlap in every signal, so no single one reproduces the verdicts. The others have no
published figures: they stand outside the spread of natural stories among themselves (64 samples or more) and
inside made-up degenerate texts; ``base_nll`` is set by reasoning, not by measurement.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rewardgrid.study.cell import Number, Strict


class Above(Strict):
    """Limits of a signal that is worse when larger: reached at the limit or above it."""

    borderline: Number
    degenerate: Number

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.degenerate < self.borderline:
            raise _disorder("at least", self.borderline)
        return self

    def score(self, departure: float) -> int:
        """0 ok, 1 borderline, 2 degenerate."""
        return int(departure >= self.borderline) + int(departure >= self.degenerate)


class Below(Strict):
    """Limits of a signal that is worse when smaller: reached at the limit or below it."""

    borderline: Number
    degenerate: Number

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.degenerate > self.borderline:
            raise _disorder("at most", self.borderline)
        return self

    def score(self, departure: float) -> int:
        """0 ok, 1 borderline, 2 degenerate."""
        return int(departure <= self.borderline) + int(departure <= self.degenerate)


def _disorder(relation: str, borderline: float) -> PydanticCustomError:
    fix = f"write {relation} the borderline limit ({borderline:g}): degenerate is the worse of the two"
    return PydanticCustomError("conflict", "limits in the wrong order", {"conflicts": [("degenerate", fix)]})


class Thresholds(Strict):
    """Limits of every signal that the verdict judges."""

    unique_first_sentences: Below = Field(
        default=Below(borderline=0.55, degenerate=0.28),
        description="distinct first sentences among 20, as a ratio to the base's; published: ok from 13 of "
        "20, borderline 6 to 9, degenerate 5. Serves the first sentences of the completions alone too",
    )
    jaccard: Above = Field(
        default=Above(borderline=1.3, degenerate=2.2),
        description="mean pairwise word overlap, as a ratio to the base's; published: ok up to 1.2 times, "
        "borderline to 1.5, one template 3.0",
    )
    kl: Above = Field(
        default=Above(borderline=1.5, degenerate=2.7),
        description="KL to the base, nats per token (exact if measured, else k3); published: ok up to 1.1, "
        "borderline 1.9 to 2.5, gibberish from 2.9",
    )
    saturated_reward: Annotated[Number, Field(gt=0)] = Field(
        default=0.98,
        description="a mean reward from here on is borderline at best, whatever the text looks like; "
        "published: no ok row above 0.976. Never degenerate by itself: it does not say how it was earned",
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
    base_nll: Above = Field(
        default=Above(borderline=0.75, degenerate=1.5),
        description="negative log-likelihood under the base, minus that of the base's own samples, nats per "
        "token: 1.5 nats make the average token 4.5 times less likely",
    )
