"""What all claims share: an identity, the cells they are about, how they are judged and said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from rewardgrid.published.judging import NOT_RUN, Judgement, Ours
from rewardgrid.report.columns import show
from rewardgrid.report.finding import Question
from rewardgrid.report.routing_findings import in_steps
from rewardgrid.report.tables import Row
from rewardgrid.study.cell import EvalMode, Strict

Metric = Literal[
    "reward",
    "kl",
    "sl10",
    "happy",
    "jaccard",
    "unique_first_sentences",
    "completion_length",
    "seconds_per_step",
    "seconds_to_085",
    "seconds_to_095",
    "steps_to_085",
    "steps_to_095",
    "questions",
    "routed",
    "degeneracy",
]

WORDS: dict[str, str] = {
    "kl": "KL",
    "happy": '"happy" a completion',
    "jaccard": "Jaccard",
    "unique_first_sentences": "unique/20",
    "completion_length": "mean length in tokens",
    "seconds_per_step": "seconds a step",
    "seconds_to_085": "seconds to 0.85",
    "seconds_to_095": "seconds to 0.95",
    "steps_to_085": "steps to 0.85",
    "steps_to_095": "steps to 0.95",
    "questions": "share of sentences that are questions",
    "routed": "share of completions that are routed",
}
"""Metrics whose names people would not say."""


class Statement(Strict):
    """Something that the published study says about one of its experiments."""

    id: str
    experiment: str
    where: dict[str, Any] = Field(default_factory=dict)
    note: str = ""

    def judge(self, ours: Ours) -> Judgement:
        """What becomes of it on our cells of the settings that it is about."""
        ran = ours.cells(self.experiment, self.where)
        finished = [row for row in ran if row["state"] == "done"]
        if not ran:
            return NOT_RUN
        return self.judged(ours, finished) if finished else Judgement("differs", "every cell diverged", ran)

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        """What becomes of it on these finished cells, of which there is at least one."""
        raise NotImplementedError

    @property
    def question(self) -> Question | None:
        """What it asks, if a finding may ask the same of the same cells."""
        return None

    def words(self) -> str:
        """It in plain words, but for the cells that it is about."""
        raise NotImplementedError

    def says(self) -> str:
        """It in plain words."""
        where = ", ".join(_setting(name, value) for name, value in self.where.items())
        said = f"{where}: {self.words()}" if where else self.words()
        return f"{said}; {self.note}" if self.note else said


def _setting(name: str, value: Any) -> str:
    """``rank 8 or 16``, ``paid for sentence_length_5``."""
    words = {"reward": "paid for", "repetition_penalty": "penalty", "batch_size": "batch"}.get(name, name)
    return f"{words} {either(name, value)}"


def either(name: str, value: Any) -> str:
    """One value of a setting, or several with "or" between them."""
    return " or ".join(show(name, each) for each in (value if isinstance(value, list) else [value]))


def subject(metric: str, mode: EvalMode | None = None, steps: tuple[int, int] | None = None) -> str:
    """``sl10 of retain_only at steps 60–100``."""
    name = WORDS.get(metric, metric)
    return f"{name}{f' of {mode}' if mode else ''}{f' at {in_steps(*steps)}' if steps else ''}"
