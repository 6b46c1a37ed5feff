"""Stories are told many at a time, each as if it were alone, in the manner that is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tests.teachers import write_directory, write_gguf
from torch import Tensor

from rewardgrid.lm.draws import uniforms
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.model import logits
from rewardgrid.lm.sampler import invert
from rewardgrid.storyteller import telling
from rewardgrid.storyteller.gguf_file import open_gguf
from rewardgrid.storyteller.model import Model, open_directory
from rewardgrid.storyteller.requests import SHOWN_ALIKE, Request, request
from rewardgrid.storyteller.teacher import Teacher, arranged
from rewardgrid.storyteller.telling import LONGEST, SHORTEST, TOP_K, Manner, tell
from rewardgrid.study.contracts import TOLD, write_table
from rewardgrid.study.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["llama gguf", "qwen2 gguf", "qwen2 directory"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    family, kind = request.param.split()
    root = tmp_path_factory.mktemp("teacher")
    if kind == "gguf":
        return open_gguf(write_gguf(root / "teacher.gguf", family))
    return open_directory(write_directory(root / "teacher", family))


@pytest.fixture(scope="module")
def teacher(model: Model) -> Teacher:
    return arranged(model, CPU, torch.float32)


@torch.no_grad()
def plainly_told(model: Model, teacher: Teacher, seed: int, number: int) -> str:
    """A story told alone, without a cache and without sharing: the whole text is read again for each word."""
    wanted = request(seed, number)
    ids, weights, manner = teacher.read(wanted), from_hf(model.shape, model.tensors), Manner(teacher, [wanted])
    draws, words = torch.from_numpy(uniforms(seed, "story", number, (telling.LONGEST,))), []
    for place in range(telling.LONGEST):
        scores = logits(model.shape, weights, torch.tensor([[ids]]))[0, :, -1, teacher.words]
        likeliest = manner.weigh(scores, torch.tensor([place])).topk(TOP_K)
        drawn = likeliest.indices[0, invert(likeliest.values, draws[place : place + 1])]
        if drawn == teacher.end:
            break
        manner.said(drawn, torch.tensor([True]))
        ids, words = [*ids, int(teacher.words[drawn])], [*words, teacher.texts[int(drawn)]]
    return (wanted.start + "".join(words)).strip()


def test_stories_told_together_are_those_told_plainly(
    model: Model, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "LONGEST", 24)
    monkeypatch.setattr(telling, "SHORTEST", 5)
    monkeypatch.setattr(telling, "CLOSING", 8)
    numbers = [SHOWN_ALIKE - 2, SHOWN_ALIKE - 1, SHOWN_ALIKE, SHOWN_ALIKE + 1]
    together = tell(teacher, 3, numbers)
    assert together["story"].tolist() == [plainly_told(model, teacher, 3, number) for number in numbers]


def test_a_story_begins_as_it_should_and_does_not_depend_on_its_neighbours(teacher: Teacher, tmp_path: Path) -> None:
    together = tell(teacher, 3, range(6))
    for row, number in zip(together.itertuples(), range(6), strict=True):
        wanted = request(3, number)
        assert (row.number, row.seed, row.prompt) == (number, 3, wanted.prompt)
        assert row.story.startswith(wanted.start)
        said = len(teacher.tokenizer.encode(row.story[len(wanted.start) :]).ids)
        assert not row.ended or said >= SHORTEST * 0.9  # a text may have other tokens than it was told in
    alone = tell(teacher, 3, [4])
    assert alone["story"].tolist() == together["story"].tolist()[4:5]
    assert tell(teacher, 4, [4])["story"].tolist() != alone["story"].tolist()
    write_table(tmp_path / "told.parquet", together, TOLD)


def test_stories_that_end_leave_the_others_as_they_were(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "SHORTEST", 4)
    monkeypatch.setattr(telling, "CLOSING", 10)
    monkeypatch.setattr(telling, "CLOSE", 9.0)
    left = tell(teacher, 5, range(8))
    monkeypatch.setattr(telling, "CROWDED", 0.0)  # nothing leaves
    stayed = tell(teacher, 5, range(8))
    assert left.equals(stayed)
    assert len({len(story) // 100 for story in left["story"]}) > 1
    assert left["ended"].any()


def test_a_story_is_cut_off_at_its_longest(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "LONGEST", 9)
    row = tell(teacher, 1, [0]).iloc[0]
    assert not row["ended"]
    texts = sorted(set(teacher.texts) - {""}, key=len, reverse=True)
    rest, count = row["story"][len(request(1, 0).start) :], 0
    while rest:
        rest, count = rest.removeprefix(next(text for text in texts if rest.startswith(text))), count + 1
    assert count <= 9 < LONGEST


def test_a_context_that_is_too_short_is_told(model: Model) -> None:
    short = arranged(replace(model, shape=replace(model.shape, context=500)), CPU, torch.float32)
    with pytest.raises(UserError, match=r"take up to \d+ tokens, but the model's context is 500; choose a teacher"):
        tell(short, 0, [0])


# --- manner --------------------------------------------------------------------------------------------

TEXTS = (" word", "piece", "'s", " a", ",", ".", "?", " happy", "")
WORD, PIECE, S, A, COMMA, STOP, ASK, HAPPY, END = range(len(TEXTS))


def manner(start: str = "", stories: int = 1) -> Manner:
    """The manner of stories of which nothing is said but their first words."""
    listener: Any = SimpleNamespace(words=torch.arange(len(TEXTS)), texts=TEXTS, end=END)
    return Manner(cast(Teacher, listener), [Request((0, 1), "", start)] * stories)


def say(how: Manner, *words: int) -> None:
    for word in words:
        how.said(torch.tensor([word]), torch.tensor([True]))


def nats(how: Manner, at: int = 150) -> list[float]:
    """What is added to the score of each word."""
    found: Tensor = how.weigh(torch.zeros(1, len(TEXTS)), torch.tensor([at]))[0] * telling.TEMPERATURE
    return [round(value, 4) for value in found.tolist()]


def test_a_word_of_four_letters_is_dearer_each_time_and_shorter_ones_are_not() -> None:
    how = manner()
    say(how, WORD, WORD, A, A, PIECE, STOP)
    assert nats(how)[WORD] == pytest.approx(-0.4)
    assert (nats(how)[A], nats(how)[PIECE]) == (0.0, 0.0)


def test_happy_has_its_price_before_it_is_said() -> None:
    how = manner()
    assert nats(how)[HAPPY] == -2.5
    say(how, HAPPY)
    assert nats(how)[HAPPY] == pytest.approx(-2.7)


def test_the_end_of_a_sentence_is_held_before_its_fifth_word_and_pushed_from_its_twelfth_on() -> None:
    how, found = manner(), []
    for _ in range(15):
        found.append((nats(how)[STOP], nats(how)[COMMA]))
        say(how, WORD)
    assert [stop for stop, _ in found] == pytest.approx([-3] * 5 + [0] * 7 + [0.6, 1.2, 1.8])
    assert [comma for _, comma in found] == pytest.approx([0] * 12 + [-0.3, -0.6, -0.9])
    assert nats(how)[ASK] == pytest.approx(2.4 - 1.5)


def test_words_and_commas_count_and_the_rest_of_a_word_does_not() -> None:
    how = manner("Early one morning,")
    assert how.words.tolist() == [4]
    say(how, WORD, PIECE, S, COMMA, A)
    assert how.words.tolist() == [7]
    say(how, STOP)
    assert how.words.tolist() == [0]


def test_a_story_ends_after_a_sentence_neither_early_nor_late() -> None:
    how = manner()
    assert nats(how, at=124)[END] == -torch.inf
    assert nats(how, at=125)[END] == 0
    assert (nats(how, at=165)[END], nats(how, at=166)[END]) == (0, 3)
    say(how, A)
    assert nats(how, at=166)[END] == -torch.inf


def test_a_story_that_still_reads_its_request_takes_no_note() -> None:
    how = manner("Slowly, the", stories=2)
    how.said(torch.tensor([WORD, WORD]), torch.tensor([True, False]))
    assert how.words.tolist() == [4, 3]
    found = how.weigh(torch.zeros(2, len(TEXTS)), torch.tensor([3, -2]))[:, WORD] * telling.TEMPERATURE
    assert found.tolist() == pytest.approx([-0.2, 0.0])
    how.keep(torch.tensor([False, True]))
    assert how.words.tolist() == [3]
