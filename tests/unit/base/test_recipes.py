"""Recipes of bases: what is refused, and what makes another base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from rewardgrid.study import bases
from rewardgrid.study.bases import (
    HubBase,
    LocalBase,
    PackagedBase,
    Pretrained,
    Recipe,
    model_config,
    read_recipe,
    recipe_hash,
)
from rewardgrid.study.errors import ConfigError, UserError
from rewardgrid.study.study import Study

MODEL = Path(__file__).parents[3] / "resources/bases/storyteller-small/model"


def test_the_kind_chooses_the_recipe() -> None:
    adapter: TypeAdapter[Recipe] = TypeAdapter(Recipe)
    assert isinstance(adapter.validate_python({"kind": "packaged", "path": "p"}), PackagedBase)
    assert isinstance(adapter.validate_python({"kind": "hub"}), HubBase)
    assert isinstance(adapter.validate_python({"kind": "local", "model": "m", "stories": "s.txt"}), LocalBase)
    with pytest.raises(ValidationError, match="union_tag_invalid"):
        adapter.validate_python({"kind": "magic"})


def test_the_published_base_needs_nothing_but_its_kind() -> None:
    recipe = HubBase()
    assert (recipe.model, recipe.dataset) == ("SimpleStories/SimpleStories-1.25M", "SimpleStories/SimpleStories")
    assert (recipe.prompt_tokens, recipe.train_prompts) == (8, 10_000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": 66}, r"hidden must be heads \(4\) times an even number"),
        ({"hidden": 60}, r"hidden must be heads \(4\) times an even number"),
        ({"kv_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"length": 513}, r"length \(513\) must not exceed context \(512\)"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"layers": "2"}, "valid integer"),
        ({"wide": 1}, "Extra inputs"),
    ],
)
def test_sizes_that_make_no_model_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Pretrained(**values)  # type: ignore[arg-type]


def test_a_recipe_on_the_command_line_gives_a_clear_error() -> None:
    assert read_recipe('{"kind": "hub", "model": "a/b"}', "--recipe") == HubBase(model="a/b")
    with pytest.raises(ConfigError, match='--recipe: modle: read 4; unknown key; did you mean "model"'):
        read_recipe('{"kind": "hub", "modle": 4}', "--recipe")
    with pytest.raises(ConfigError, match=r"--recipe: kind: read .* one of hub, local, packaged"):
        read_recipe('{"kind": "magic"}', "--recipe")
    for text in ("{kind", "[]", "3"):
        with pytest.raises(ConfigError, match="one of hub, local, packaged"):
            read_recipe(text, "--recipe")


def test_every_value_of_a_recipe_is_part_of_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe_hash(HubBase())
    assert len(plain) == 10
    assert recipe_hash(HubBase(prompt_tokens=8)) == plain  # a default that is written out changes nothing
    others = ({"model": "a/b"}, {"model_revision": "v1"}, {"eval_split": "dev"}, {"train_prompts": 128})
    hashes = {recipe_hash(HubBase.model_validate(values)) for values in others}
    assert len(hashes | {plain}) == 5
    monkeypatch.setattr(bases, "BASE_VERSION", bases.BASE_VERSION + 1)
    assert recipe_hash(HubBase()) != plain


def test_a_recipe_survives_its_own_json() -> None:
    recipe = LocalBase(model="m", stories="s.txt")
    assert recipe_hash(read_recipe(recipe.model_dump_json(), "x")) == recipe_hash(recipe)


def test_the_bytes_of_local_files_are_part_of_the_hash(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    recipe = LocalBase(model=str(tmp_path / "model"), stories=str(tmp_path / "s.txt"))
    seen = {recipe_hash(recipe)}
    for name in ("s.txt", "model/model.safetensors", "model/tokenizer.json"):
        (tmp_path / name).write_text("one")
        seen.add(recipe_hash(recipe))
        (tmp_path / name).write_text("two")
        seen.add(recipe_hash(recipe))
    assert len(seen) == 7
    (tmp_path / "model" / "README.md").write_text("not read")
    assert recipe_hash(recipe) in seen


@pytest.mark.parametrize("changed", ["prompts.txt", "eval_prompts.txt"])
def test_other_prompts_alone_make_another_base_and_other_cells(changed: str, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    for name in ("prompts.txt", "eval_prompts.txt"):
        (tmp_path / name).write_text("the cat sat in the old tree\n")
    files = {"stories": "prompts.txt", "eval_stories": "eval_prompts.txt", "model": "model"}
    recipe = {"kind": "local", **{key: str(tmp_path / name) for key, name in files.items()}}
    experiment = {"title": "One", "grids": [{"seed": 1}]}

    def study() -> Study:
        return Study.model_validate(
            {"bases": {"mine": recipe}, "defaults": {"base": "mine"}, "experiments": {"one": experiment}}
        )

    (base_id,), (cell,) = study().base_recipes, study().cells
    assert list(study().base_recipes) == [base_id]
    (tmp_path / changed).write_text("the cat sat in the old treE\n")
    assert base_id not in study().base_recipes
    assert cell not in study().cells
    (tmp_path / changed).write_text("the cat sat in the old tree\n")
    assert (list(study().base_recipes), list(study().cells)) == ([base_id], [cell])


def test_the_configuration_of_a_model_is_known_where_its_files_are_on_this_machine(tmp_path: Path) -> None:
    packaged, local = PackagedBase(path=str(tmp_path)), LocalBase(model=str(tmp_path / "model"), stories="s.txt")
    assert model_config(HubBase()) == model_config(packaged) == model_config(local) == {}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 64}')
    assert model_config(packaged) == model_config(local) == {"max_position_embeddings": 64}
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"model/config\.json: no valid JSON"):
        model_config(packaged)
