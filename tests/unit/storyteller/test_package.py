"""The storytellers that come with rewardgrid: whole, and what the card of the first says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.evaluate.samples import Protocol, draw, summary
from rewardgrid.study.bases import PackagedBase, StorytellerRecipe
from rewardgrid.study.study import Evaluation, load_study
from rewardgrid.train.weights import base_weights

SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def built(name: str, root: Path, directory: Path) -> Base:
    """A packaged base of the configuration, brought in as a study does."""
    recipe = load_study([root / "config/config.yaml"]).bases[name]
    assert isinstance(recipe, PackagedBase)
    build_base(name, recipe.model_copy(update={"path": str(root / recipe.path)}), directory / name)
    return load_base(directory / name)


@pytest.fixture(scope="module")
def base(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return built("storyteller", root, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def small(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return built("storyteller-small", root, tmp_path_factory.mktemp("base"))


def test_it_is_made_as_the_configuration_says(root: Path) -> None:
    study = load_study([root / "config/config.yaml"])
    made = load_base(root / "resources/bases/storyteller").provenance
    assert StorytellerRecipe.model_validate(made["recipe"]) == study.storyteller
    assert study.storyteller.shards * study.storyteller.shard == made["facts"]["told"]
    assert made["facts"]["teacher"]["licence"] == "Apache-2.0"


def test_it_has_the_published_shape(base: Base) -> None:
    assert [base.config[key] for key in SHAPE] == [4, 128, 4, 2, 341]
    assert (base.vocabulary.size, base.vocabulary.unk, base.vocabulary.eos) == (4096, 0, 1)


def test_the_small_one_has_a_fifth_of_its_weights_and_prompts_enough_for_a_study(small: Base) -> None:
    assert [small.config[key] for key in SHAPE] == [2, 64, 4, 2, 176]
    assert small.vocabulary.size == 2048
    train, evaluation = set(small.train_prompts().text), set(small.eval_prompts().text)
    assert len(train) > 1000
    assert len(evaluation) >= Evaluation().samples
    assert not train & evaluation


def test_its_stories_measure_what_the_card_says(base: Base, root: Path) -> None:
    shape, weights = base_weights(base)
    published, full = (
        summary(draw(shape, weights, weights, base, protocol, "sentence_length_10_smooth"))
        for protocol in (Protocol("published", 20, 128, 99, 50), Protocol("full", 256, 128, 99))
    )
    assert 0.35 <= full["sl10"] <= 0.60
    assert published["unique_first_sentences"] >= 18
    assert 0.09 <= published["jaccard"] <= 0.16
    card = (root / "resources/bases/storyteller/README.md").read_text()
    assert f"| unique first sentences | {published['unique_first_sentences']:.0f} / 20 |" in card
    assert f"| Jaccard | {published['jaccard']:.3f} |" in card
    # The last digit depends on the machine's order of sums.
    (line,) = [line for line in card.splitlines() if line.startswith("| smooth reward |")]
    assert float(line.split("|")[2].split()[0]) == pytest.approx(full["sl10"], abs=0.01)


def test_prompts_of_training_and_evaluation_are_different(base: Base) -> None:
    train, evaluation = set(base.train_prompts().text), set(base.eval_prompts().text)
    assert len(train) > 5000
    assert len(evaluation) > 500
    assert not train & evaluation
