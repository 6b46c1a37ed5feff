"""The base that is made of sifted stories, and a packaged base that is taken as it was built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from tests.tiny import SHAPE, random_tensors

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.base.stories import story
from rewardgrid.lm.model import from_hf, logits
from rewardgrid.storyteller.making import make_storyteller, rescaled
from rewardgrid.study.bases import PackagedBase, StorytellerRecipe, recipe_hash
from rewardgrid.study.errors import UserError

RECIPE = StorytellerRecipe(
    layers=1,
    hidden=16,
    mlp_width=24,
    context=64,
    vocabulary=1312,
    batch=4,
    length=32,
    epochs=2,
    train_prompts=50,
    gain=3,
)


def sifted(stories: int = 60) -> pd.DataFrame:
    """Stories of the grammar, every fifth held back for repetition, every seventh for its end, all cut once."""
    rows = [story(0, number).replace(" was", " wasn't") for number in range(stories)]
    held = ["repetition" if n % 5 == 0 else "no end" if n % 7 == 0 else "" for n in range(stories)]
    cut = [["too long"]] * stories
    return pd.DataFrame({"number": range(stories), "told": rows, "story": rows, "cut": cut, "held": held})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("storyteller") / "base"
    make_storyteller(RECIPE, sifted(), {"teacher": {"model": "a grammar"}}, out)
    return out


@pytest.fixture(scope="module")
def base(made: Path) -> Base:
    return load_base(made)


def test_it_is_an_ordinary_base_that_tells_where_it_comes_from(base: Base) -> None:
    facts = base.provenance["facts"]
    assert facts["teacher"] == {"model": "a grammar"}
    assert facts["told"] == 60
    assert facts["sifted"] == {"sentences": {"too long": 60}, "stories": {"repetition": 12, "no end": 7}}
    assert facts["kept"] == 41
    kept = sifted()[sifted()["held"] == ""]["number"]  # of so few, every other one is held out
    assert (facts["train_stories"], facts["held_out_stories"]) == (sum(kept % 2 == 0), sum(kept % 2 == 1))
    assert facts["held_out_loss"] > 0
    assert base.provenance["recipe_hash"] == recipe_hash(RECIPE)
    assert base.vocabulary.eos == 1
    assert base.vocabulary.unk == 0


def test_words_with_an_apostrophe_are_one_token(base: Base) -> None:
    assert base.tokenizer.encode("He wasn't here.", add_special_tokens=False).tokens[:2] == ["he", "wasn't"]
    assert base.decode(base.tokenizer.encode("he wasn't there, was he?").ids) == "he wasn't there, was he?"


def test_training_and_evaluation_prompts_come_from_different_requests(base: Base) -> None:
    begin = {}
    for number, text in zip(sifted()["number"], sifted()["story"], strict=True):
        ids = base.tokenizer.encode(text, add_special_tokens=False).ids[:8]
        begin.setdefault(base.tokenizer.decode(ids), set()).add(number % 2 == 1)
    for prompts, held_out in ((base.train_prompts(), False), (base.eval_prompts(), True)):
        assert len(prompts)
        assert all(held_out in begin[text] for text in prompts.text)


def test_the_same_stories_make_the_same_bytes(base: Base, tmp_path: Path) -> None:
    make_storyteller(RECIPE, sifted(), {}, tmp_path / "again")
    assert load_base(tmp_path / "again").provenance["files"] == base.provenance["files"]


def test_too_few_stories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokens: read 3M, of which 1 stories are left"):
        make_storyteller(RECIPE, sifted(3), {}, tmp_path / "base")
    assert list(tmp_path.iterdir()) == [tmp_path / "base"]


def test_a_gain_moves_weights_and_leaves_the_function() -> None:
    tensors = random_tensors(dtype=torch.float64)
    scaled = rescaled(SHAPE, tensors, 5.0)
    ids = torch.arange(30).reshape(1, 3, 10) % SHAPE.vocabulary
    torch.testing.assert_close(
        logits(SHAPE, from_hf(SHAPE, scaled), ids), logits(SHAPE, from_hf(SHAPE, tensors), ids), rtol=1e-11, atol=1e-11
    )
    assert scaled["model.layers.0.mlp.up_proj.weight"].std() < tensors["model.layers.0.mlp.up_proj.weight"].std() / 4


# --- packaged -----------------------------------------------------------------------------------------


def test_a_packaged_base_is_what_was_built(made: Path, base: Base, tmp_path: Path) -> None:
    build_base("mine", PackagedBase(path=str(made)), tmp_path / "copy")
    copy = load_base(tmp_path / "copy")
    assert copy.provenance["files"] == base.provenance["files"]
    assert copy.provenance["facts"] == base.provenance["facts"]
    assert (copy.name, copy.provenance["kind"]) == ("mine", "packaged")
    assert copy.train_prompts().text == base.train_prompts().text


@pytest.mark.parametrize("name", ["model/model.safetensors", "train_prompts.parquet", "model/tokenizer.json"])
def test_a_damaged_or_missing_file_of_a_package_is_named(name: str, made: Path, tmp_path: Path) -> None:
    source = tmp_path / "package"
    shutil.copytree(made, source)
    recipe = PackagedBase(path=str(source))
    file = source / name
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=rf"{name}: corrupt.*git checkout"):
        build_base("mine", recipe, tmp_path / "out")
    file.unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
        build_base("mine", recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "provenance.json").exists()


def test_a_package_of_another_prompt_length_or_none_at_all_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompt_tokens: read 5; write 8"):
        build_base("mine", PackagedBase(path=str(made), prompt_tokens=5), tmp_path / "out")
    with pytest.raises(UserError, match=r"path: read .*nowhere.*there is no base"):
        build_base("mine", PackagedBase(path=str(tmp_path / "nowhere")), tmp_path / "out")


def test_the_identity_of_a_package_is_that_of_its_files(made: Path, tmp_path: Path) -> None:
    source = tmp_path / "package"
    shutil.copytree(made, source)
    before = recipe_hash(PackagedBase(path=str(source)))
    (source / "provenance.json").write_text((source / "provenance.json").read_text() + " ")
    assert recipe_hash(PackagedBase(path=str(source))) != before
