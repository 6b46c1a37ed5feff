"""The storytellers that come with rewardgrid: whole, made as the configuration says, and what their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.evaluate.cell import evaluate_base
from rewardgrid.storyteller.shards import read_told, told_before
from rewardgrid.study.bases import PackagedBase, Pretrained
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Evaluation, load_study

SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
MADE = ("storyteller", "storyteller-small")


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


@pytest.mark.parametrize("name", MADE)
def test_they_are_made_as_the_configuration_says_of_the_stories_that_come_with_it(name: str, root: Path) -> None:
    recipe = load_study([root / "config/config.yaml"]).storyteller
    made = load_base(root / "resources/bases" / name).provenance
    assert Pretrained.model_validate(made["recipe"]) == recipe.bases[name]
    assert recipe.told
    assert made["facts"]["told"] <= len(read_told(told_before(root / recipe.told)))
    assert made["facts"]["teacher"]["licence"] == "Apache-2.0"


def test_the_storyteller_has_the_published_shape(base: Base) -> None:
    assert [base.config[key] for key in SHAPE] == [4, 128, 4, 2, 341]
    assert (base.vocabulary.size, base.vocabulary.unk, base.vocabulary.eos) == (4096, 0, 1)


def test_the_small_one_has_a_fifth_of_its_weights_and_prompts_enough_for_a_study(small: Base) -> None:
    assert [small.config[key] for key in SHAPE] == [4, 64, 4, 2, 128]
    assert small.vocabulary.size == 1536
    train, evaluation = set(small.train_prompts().text), set(small.eval_prompts().text)
    assert len(train) > 1000
    assert len(evaluation) >= Evaluation().samples
    assert not train & evaluation


def test_its_stories_measure_what_the_card_says(base: Base, root: Path, tmp_path: Path) -> None:
    settings = load_study([root / "config/config.yaml"]).evaluation.model_copy(update={"base_draws": 2})
    evaluate_base(base, settings, 128, tmp_path)
    metrics = read_json(tmp_path / "metrics.json")
    published, full = metrics["published"], metrics["full"]
    assert 0.45 <= full["sl10"] <= 0.58
    assert full["ended"] <= 0.5
    assert full["happy"] <= 0.15
    assert published["unique_first_sentences"] >= 16
    assert 0.09 <= published["jaccard"] <= 0.18
    assert [draw["verdict"] for draw in metrics["other_draws"]] == ["ok", "ok"]
    card = (root / "resources/bases/storyteller/README.md").read_text()
    assert f"| unique first sentences | {published['unique_first_sentences']:.0f} / 20 |" in card
    # The last digits depend on the machine's order of sums.
    for name, key, unit in (("smooth reward", "sl10", 0.01), ("Jaccard", "jaccard", 0.01)):
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
        measured = full[key] if key == "sl10" else published[key]
        assert float(line.split("|")[2].split()[0]) == pytest.approx(measured, abs=unit)


def test_prompts_of_training_and_evaluation_are_different(base: Base) -> None:
    train, evaluation = set(base.train_prompts().text), set(base.eval_prompts().text)
    assert (len(train), len(evaluation)) == (10000, 1000)
    assert not train & evaluation
