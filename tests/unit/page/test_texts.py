"""The texts of the page: which are shown, and what is marked in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.page_study import HOSTILE, ODD, RIGHT, SHORT, STEPS, make_page_study, rollouts, storyteller

from rewardgrid.lm.model import logits
from rewardgrid.page.file import packed
from rewardgrid.page.make import cell_block
from rewardgrid.page.texts import (
    MOST_TEXTS,
    NATS,
    Reader,
    chosen_places,
    chosen_steps,
    final_texts,
    letters,
    reader_of,
    share,
    training_texts,
    usual_nats,
)
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import ROLLOUTS, write_table
from rewardgrid.study.layout import Layout
from rewardgrid.study.study import Study


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(storyteller())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_page_study(tmp_path_factory.mktemp("page"))


def test_sentences_end_where_they_are_paid_and_are_counted_in_tokens(reader: Reader) -> None:
    text = f"{RIGHT} {SHORT} and then"
    prompt, ids = reader.again("once upon a time", text)
    (found,) = reader.read([(prompt, ids, text)])
    assert [length for _, length in found["ends"]] == [10, 3]
    assert [found["pieces"][place] for place, _ in found["ends"]] == [".", "."]
    assert "".join(found["pieces"]) == text


def test_each_token_has_its_surprisal_under_the_base_whatever_it_is_read_together_with(reader: Reader) -> None:
    prompt, ids = reader.again("once upon a time", ODD)
    others = [(prompt[:2], ids[:3], ""), (prompt, ids, ODD), (prompt, [*ids, *ids], "")]
    found = reader.read(others)[1]["nats"]
    sequence = torch.tensor([[[*prompt, *ids]]])
    with torch.no_grad():
        scores = logits(reader.shape, reader.weights, sequence)[0, 0].log_softmax(-1)
    exact = [-float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)]
    assert len(found) == len(ids)
    stored = [(ord(letter) - ord("0")) / NATS for letter in found]
    assert all(abs(nats - step - 1 / NATS / 2) <= 1 / NATS / 2 + 1e-3 for nats, step in zip(exact, stored, strict=True))
    assert max(exact) > 5


def test_surprisals_that_are_out_of_range_have_the_last_letter() -> None:
    assert letters(np.array([0.0, 0.26, 400.0, np.inf])) == "01oo"


def test_a_text_that_decoding_joined_across_tokens_is_shown_as_it_was_recorded(reader: Reader) -> None:
    for text in ("it's the king's cat, isn't it?", HOSTILE, "", "…"):
        prompt, ids = reader.again("once", text)
        assert "".join(reader.read([(prompt, ids, text)])[0]["pieces"]) == text


def test_chosen_texts_stand_on_every_prompt_alike_and_on_the_same_places_in_every_cell() -> None:
    places = chosen_places(32, 2, 6, seed=99)
    assert places == chosen_places(32, 2, 6, seed=99)
    assert [sum(place < 16 for place in places), len(set(places))] == [3, 6]
    assert places != [0, 1, 2, 16, 17, 18]
    assert chosen_places(4, 2, 100, seed=1) == [0, 1, 2, 3]


def test_chosen_steps_reach_from_the_first_to_the_last_and_have_the_onset() -> None:
    recorded = [1, *range(50, 2001, 50)]
    assert chosen_steps(recorded, 41) == recorded
    few = chosen_steps(recorded, 5, [None, 420])
    assert (few[0], few[-1], len(few)) == (1, 2000, 6)
    assert 450 in few
    assert chosen_steps(recorded, 5, [5000])[-1] == 2000


@pytest.mark.parametrize("cells", [1, 22, 105, 157, 1000])
def test_the_shares_of_all_cells_stay_within_what_a_page_holds(cells: int) -> None:
    own = share(cells)
    steps = own.steps(41)
    shown = cells * (own.final + steps * own.each(steps))
    assert shown <= max(MOST_TEXTS, 12 * cells)
    assert own.final >= 4
    assert own.each(steps) >= 2
    assert steps == 41 or cells > 105


def test_training_texts_have_their_rewards_and_a_routing_cell_its_labels(study: Study) -> None:
    (routed,), (one, *_) = study.grid["routed"], study.grid["sweep"]
    reader = reader_of(study, routed.base_id)
    found = training_texts(study.layout, routed, reader, share(5), 99, ())
    assert [each["step"] for each in found] == list(STEPS)
    assert [text["labels"] for text in found[0]["texts"]][:2] == [["eligible", "routed", "flagged"], ["eligible"]]
    assert {text["reward"] for text in found[0]["texts"]} == {0.25}
    # [EOS] is no part of the text.
    assert "".join(found[0]["texts"][1]["pieces"]) == ODD
    plain = training_texts(study.layout, one, reader, share(5), 99, ())
    assert {tuple(text["labels"]) for each in plain for text in each["texts"]} == {()}


def test_final_texts_are_of_the_same_prompts_in_every_mode(study: Study) -> None:
    (routed,) = study.grid["routed"]
    found = final_texts(study.layout.samples(routed.name), None, 3)
    by_mode = {
        mode: [text["prompt"] for text in found if text["labels"] == [mode]]
        for mode in ("both", "retain only", "forget only")
    }
    assert list(by_mode.values()) == [["prompt 0", "prompt 1", "prompt 2"]] * 3
    assert all("nats" not in text for text in found)


def test_what_is_unlikely_is_told_from_the_bases_own_tokens() -> None:
    assert usual_nats([{"nats": "0" * 98 + "8o"}]) == pytest.approx([0.0, 2.1375, 14.4], abs=0.8)
    assert usual_nats([{"pieces": ["no reader"]}]) == []


def test_without_the_bases_files_texts_are_shown_and_the_page_says_what_it_lacks(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = study.grid["routed"]
    name, recipe = study.base_recipes[cell.base_id]
    gone = recipe.model_copy(update={"path": "nowhere"})
    monkeypatch.setitem(study.base_recipes, cell.base_id, (name, gone))
    assert reader_of(study, cell.base_id) is None
    block = cell_block(study, cell, None, share(1), ())
    assert "not here" in block["note"]
    assert block["training"][0]["texts"][1]["pieces"] == [ODD]


def test_a_study_of_105_cells_stays_below_25_megabytes(reader: Reader, tmp_path: Path) -> None:
    """A cell of full length whose words are drawn by chance, which compresses worse than any story, 105 times."""
    layout, cell = Layout(tmp_path), Cell()
    words = [word for word in reader.base.vocabulary.surfaces if word.strip().isalpha()]
    random = np.random.default_rng(0)
    steps = [1, *range(50, 2001, 50)]
    own = share(105)
    texts = ["".join(random.choice(words, 128)).strip() for _ in range(cell.num_generations)]
    write_table(layout.train(cell.name) / "rollouts.parquet", rollouts(reader.base, cell, texts, steps), ROLLOUTS)
    found = training_texts(layout, cell, reader, own, 99, ())
    shown = [text for each in found for text in each["texts"]]
    assert len(found) == len(steps)
    # Each text differs from all others, as they do in a study.
    for text in shown:
        random.shuffle(text["pieces"])
        text["nats"] = letters(random.exponential(2.5, len(text["pieces"])))
    size = len(packed(str(shown))) / len(shown) * (len(shown) + 3 * own.final)
    assert 105 * size + 3e6 < 25e6


def test_a_cell_without_rollouts_or_samples_has_no_texts(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert training_texts(layout, Cell(), None, share(1), 99, ()) == []
    assert final_texts(layout.samples("none"), None, 4) == []
