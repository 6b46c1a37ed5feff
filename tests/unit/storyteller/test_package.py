"""The storyteller that comes with rewardgrid: whole, and what its card says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.evaluate.cell import evaluate_base
from rewardgrid.study.bases import StorytellerRecipe
from rewardgrid.study.files import read_json
from rewardgrid.study.study import load_study


@pytest.fixture(scope="module")
def base(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    study = load_study([root / "config/config.yaml"])
    recipe = study.bases["storyteller"].model_copy(update={"path": str(root / "resources/bases/storyteller")})
    out = tmp_path_factory.mktemp("storyteller") / "base"
    build_base("storyteller", recipe, out)
    return load_base(out)


def test_it_is_made_as_the_configuration_says(root: Path) -> None:
    study = load_study([root / "config/config.yaml"])
    made = load_base(root / "resources/bases/storyteller").provenance
    assert StorytellerRecipe.model_validate(made["recipe"]) == study.storyteller
    assert study.storyteller.shards * study.storyteller.shard == made["facts"]["told"]
    assert made["facts"]["teacher"]["licence"] == "Apache-2.0"


def test_it_has_the_published_shape(base: Base) -> None:
    shape = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [base.config[key] for key in shape] == [4, 128, 4, 2, 341]
    assert (base.vocabulary.size, base.vocabulary.unk, base.vocabulary.eos) == (4096, 0, 1)


def test_its_stories_measure_what_the_card_says(base: Base, root: Path, tmp_path: Path) -> None:
    settings = load_study([root / "config/config.yaml"]).evaluation.model_copy(update={"base_draws": 2})
    evaluate_base(base, settings, 128, tmp_path)
    metrics = read_json(tmp_path / "metrics.json")
    published, full = metrics["published"], metrics["full"]
    assert 0.35 <= full["sl10"] <= 0.60
    assert published["unique_first_sentences"] >= 18
    assert 0.09 <= published["jaccard"] <= 0.18
    assert [draw["verdict"] for draw in metrics["other_draws"]] == ["ok", "ok"]
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
