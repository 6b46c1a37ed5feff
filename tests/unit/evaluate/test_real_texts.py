"""The verdict on real texts: further draws of the packaged base, and what chopping and copying make of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest
from tests.trees import REPOSITORY

from rewardgrid.base.load import Base, load_base
from rewardgrid.evaluate.cell import measurements, protocols, sample_all, signals
from rewardgrid.evaluate.samples import evaluation_prompts
from rewardgrid.study.cell import Cell
from rewardgrid.study.study import Evaluation
from rewardgrid.study.thresholds import Thresholds
from rewardgrid.study.verdict import Verdict, verdict
from rewardgrid.train.rewards import text_tables
from rewardgrid.train.surprise import surprises_of, usual
from rewardgrid.train.weights import base_weights

LENGTH = 64
SETTINGS = Evaluation(samples=128)
Frames = Mapping[str, pd.DataFrame]


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(REPOSITORY / "resources" / "bases" / "storyteller-small")


def drawn(base: Base, other: int) -> Frames:
    shape, weights = base_weights(base)
    wanted = protocols(SETTINGS, LENGTH, other)
    return sample_all(shape, weights, weights, base, Cell(max_new_tokens=LENGTH), wanted)


@pytest.fixture(scope="module")
def own(base: Base) -> Frames:
    """What the base's texts are measured by."""
    return drawn(base, 0)


@pytest.fixture(scope="module")
def another(base: Base) -> Frames:
    """As many with other luck."""
    return drawn(base, 1)


def told(found: Frames, own: Frames) -> Verdict:
    """The verdict on samples, with the base's likelihoods."""
    limits = {name: usual(own[name]) for name in ("full", "top_k")}
    cell, base = (signals(measurements(each, limits, 3)) for each in (found, own))
    return verdict(cell, base, Thresholds())


def rewritten(base: Base, frames: Frames, change: Callable[[list[str]], list[str]]) -> Frames:
    """Samples whose completions are changed, and measured anew under the base."""
    shape, weights = base_weights(base)
    tables = text_tables(base.vocabulary.surfaces, base.vocabulary.delimiters, base.vocabulary.eos)
    found = {}
    for protocol in protocols(SETTINGS, LENGTH):
        frame = frames[protocol.name]
        texts = change(list(frame["completion"]))
        ids = [base.tokenizer.encode(text, add_special_tokens=False).ids[:LENGTH] for text in texts]
        starts = np.repeat(evaluation_prompts(base, protocol), protocol.samples // protocol.prompts, axis=0)
        sequences = [np.concatenate([start, each]) for start, each in zip(starts, ids, strict=True)]
        surprise = surprises_of(shape, weights, sequences, starts.shape[1], tables)
        columns = {kind: pd.Series(values, index=frame.index) for kind, values in surprise.items()}
        found[protocol.name] = frame.assign(completion=texts, tokens=[len(each) for each in ids], **columns)
    return found


def chopped(at: int) -> Callable[[list[str]], list[str]]:
    """Every sentence cut off after so many words."""

    def chop(text: str) -> str:
        sentences = (part.split() for part in re.split(r"[.?!]", text))
        return " ".join(" ".join(words[:at]) + "." for words in sentences if words)

    return lambda texts: [chop(text) for text in texts]


def copied(share: float) -> Callable[[list[str]], list[str]]:
    """One text in so many of the samples, word for word."""

    def copy(texts: list[str]) -> list[str]:
        number = round(share * len(texts))
        return [texts[0]] * number + texts[number:]

    return copy


def unlikely_ends(found: Verdict) -> list[float]:
    return [judged.value for judged in found.evidence if judged.signal.startswith("unlikely_ends")]


def test_what_the_base_tells_again_is_ok(own: Frames, another: Frames) -> None:
    found = told(another, own)
    assert found.label == "ok", found.evidence
    assert max(unlikely_ends(found)) < 0.08


def test_texts_that_are_read_back_are_measured_as_they_were_drawn(base: Base, own: Frames, another: Frames) -> None:
    again = told(rewritten(base, another, lambda texts: texts), own)
    assert unlikely_ends(again) == pytest.approx(unlikely_ends(told(another, own)), abs=0.005)


@pytest.mark.parametrize("words", [6, 10])
def test_its_sentences_chopped_off_are_degenerate(base: Base, own: Frames, another: Frames, words: int) -> None:
    found = told(rewritten(base, another, chopped(words)), own)
    assert found.label == "degenerate", found.evidence
    assert found.reasons[0] == "chopped sentences"
    # At ten words the rest of the text is as likely as ever: the ends alone tell.
    assert "fragments" not in found.reasons


@pytest.mark.parametrize(("share", "label"), [(0.1, "ok"), (0.35, "borderline"), (0.6, "degenerate")])
def test_one_text_again_and_again_is_seen_from_a_third_of_the_samples(
    base: Base, own: Frames, another: Frames, share: float, label: str
) -> None:
    """A limit of the verdict that docs/verdict.md names: one text in ten samples is seen by nothing."""
    found = told(rewritten(base, another, copied(share)), own)
    assert found.label == label, found.evidence
    assert ("template" in found.reasons) == (label != "ok")
