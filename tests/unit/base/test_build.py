"""A base is put in its place whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import PROMPT_TOKENS, WORDS, make_model

from rewardgrid.base import build
from rewardgrid.base.build import build_base
from rewardgrid.base.load import load_base
from rewardgrid.study.bases import LocalBase, recipe_hash
from rewardgrid.study.errors import UserError


@pytest.fixture
def recipe(tmp_path: Path) -> LocalBase:
    """A model of random weights and twenty stories, the last word of each another one."""
    make_model(tmp_path / "model")
    stories = tmp_path / "stories.txt"
    stories.write_text("\n".join(f"the cat ran {word}" for word in WORDS[:20]))
    return LocalBase(model=str(tmp_path / "model"), stories=str(stories), prompt_tokens=PROMPT_TOKENS)


def test_a_built_base_is_what_its_recipe_says(recipe: LocalBase, tmp_path: Path) -> None:
    build_base("mine", recipe, tmp_path / "out" / "base")
    base = load_base(tmp_path / "out" / "base")
    assert (base.name, base.provenance["kind"]) == ("mine", "local")
    assert base.provenance["recipe"] == recipe.model_dump(mode="json")
    assert base.provenance["recipe_hash"] == recipe_hash(recipe)
    train, evaluation = base.train_prompts(), base.eval_prompts()
    assert (len(train), len(evaluation)) == (18, 2)
    assert (base.provenance["facts"]["train_prompts"], base.provenance["facts"]["eval_prompts"]) == (18, 2)
    assert train.ids.shape == (18, PROMPT_TOKENS)
    assert base.decode(train.ids[0].tolist()) == train.text[0]


def test_a_build_that_fails_leaves_nothing_and_touches_nothing(
    recipe: LocalBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "base"
    (out / "evaluation").mkdir(parents=True)
    (out / "evaluation" / "metrics.json").write_text("{}")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_prompts", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        build_base("mine", recipe, out)
    assert [path.name for path in out.parent.iterdir()] == ["base"]
    assert [path.name for path in out.iterdir()] == ["evaluation"]


def test_a_rebuilt_base_replaces_the_old_one_and_keeps_its_evaluation(recipe: LocalBase, tmp_path: Path) -> None:
    out = tmp_path / "out" / "base"
    (out / "model").mkdir(parents=True)
    (out / "model" / "stale.bin").write_text("old")
    (out / "evaluation").mkdir()
    build_base("mine", recipe.model_copy(update={"train_prompts": 5}), out)
    assert not (out / "model" / "stale.bin").exists()
    assert (out / "evaluation").exists()
    assert len(load_base(out).train_prompts()) == 5
    assert [path.name for path in out.parent.iterdir()] == ["base"]
