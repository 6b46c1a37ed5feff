"""The base that is made of sifted stories, and a packaged base that is taken as it was built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tests.stories import told
from tests.tiny import SHAPE, random_tensors

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.base.pretrain import Rows, held_out_loss, next_token_loss, rows_of
from rewardgrid.lm.hf.config import shape_of
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.model import logits
from rewardgrid.lm.shape import Shape
from rewardgrid.storyteller import making
from rewardgrid.storyteller.making import make_storyteller, rescaled
from rewardgrid.study.bases import PackagedBase, Pretrained, recipe_hash
from rewardgrid.study.contracts import SIFTED, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json

RECIPE = Pretrained(
    layers=1,
    hidden=16,
    mlp_width=24,
    context=64,
    vocabulary=800,
    batch=4,
    length=32,
    epochs=2,
    train_prompts=50,
    gain=3,
)


def sifted(stories: int = 60) -> pd.DataFrame:
    """Told stories, every third cut, every fifth held back for its monotony, every seventh for what little is left."""
    table = told().head(stories)
    number = table["number"]
    cut = np.where(number % 3 == 0, "too long", "")
    held = np.where(number % 5 == 0, "monotonous", np.where(number % 7 == 0, "too little left", ""))
    story = table["story"].str.replace(" was ", " wasn't ")
    return pd.DataFrame(
        {
            **{"number": number, "seed": table["seed"], "told": table["story"], "story": story},
            **{"ended": table["ended"] & (cut == ""), "cut": cut, "held": held},
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("storyteller") / "base"
    make_storyteller("tiny", RECIPE, sifted(), {"teacher": {"model": "a teacher"}}, out)
    return out


@pytest.fixture(scope="module")
def base(made: Path) -> Base:
    return load_base(made)


def encoded(base: Base, held_out: bool) -> list[list[int]]:
    """Token ids of the stories that stay, with [EOS] where they ended; of so few, every other one is held out."""
    table = sifted()
    part = table[(table["held"] == "") & ((table["number"] % 2 == 1) == held_out)]
    assert part["ended"].nunique() == 2
    return [
        base.tokenizer.encode(story, add_special_tokens=False).ids + [base.vocabulary.eos] * ended
        for story, ended in zip(part["story"], part["ended"], strict=True)
    ]


def test_it_is_an_ordinary_base_that_tells_where_it_comes_from(base: Base) -> None:
    facts = base.provenance["facts"]
    assert facts["teacher"] == {"model": "a teacher"}
    assert facts["told"] == 60
    assert facts["sifted"] == {"cut": {"too long": 20}, "held": {"monotonous": 12, "too little left": 7}}
    assert facts["kept"] == 41
    assert facts["train_stories"] == len(encoded(base, held_out=False))
    assert facts["held_out_stories"] == len(encoded(base, held_out=True))
    assert facts["train_tokens"] == sum(map(len, encoded(base, held_out=False)))
    assert facts["pretraining_steps"] == facts["train_stories"] // RECIPE.batch * RECIPE.epochs
    assert base.provenance["recipe_hash"] == recipe_hash(RECIPE)
    assert base.vocabulary.size == base.tokenizer.get_vocab_size() == RECIPE.vocabulary
    assert (base.vocabulary.eos, base.vocabulary.unk) == (1, 0)


def test_the_loss_on_the_stories_held_out_is_told_after_each_epoch(base: Base) -> None:
    _, last = base.provenance["facts"]["held_out_losses"]
    unseen = rows_of(encoded(base, held_out=True), RECIPE.length)
    shape, weights = shape_of(base.config), load_file(base.weights[0])
    assert last == pytest.approx(held_out_loss(shape, weights, unseen), abs=1e-3)


def test_only_a_story_that_ended_is_learnt_from_with_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[Rows] = []

    def watched(_shape: Shape, _weights: object, epochs: list[Rows], *_: object) -> list[float]:
        learnt.extend(epochs)
        return []

    monkeypatch.setattr(making, "train_weights", watched)
    make_storyteller("tiny", RECIPE.model_copy(update={"context": 512, "length": 400}), sifted(), {}, tmp_path / "base")
    whole = Counter(map(tuple, encoded(load_base(tmp_path / "base"), held_out=False)))
    read = [[tuple(ids[:length]) for ids, length in zip(rows.ids, rows.lengths, strict=True)] for rows in learnt]
    assert [Counter(rows) for rows in read] == [whole, whole]  # two epochs,
    assert read[0] != read[1]  # each in an order of its own


def test_words_with_an_apostrophe_are_one_token(base: Base) -> None:
    assert base.tokenizer.encode("He wasn't here.", add_special_tokens=False).tokens[:2] == ["he", "wasn't"]


def test_evaluation_prompts_come_from_stories_that_nothing_was_learnt_from(base: Base) -> None:
    begin: dict[str, set[bool]] = {}
    for number, text, held in zip(sifted()["number"], sifted()["story"], sifted()["held"], strict=True):
        ids = base.tokenizer.encode(text, add_special_tokens=False).ids[:8]
        begin.setdefault(base.tokenizer.decode(ids), set()).add(number % 2 == 1 or held != "")
    for prompts, held_out in ((base.train_prompts(), False), (base.eval_prompts(), True)):
        assert len(prompts)
        assert all(held_out in begin[text] for text in prompts.text)


def test_another_process_with_two_threads_makes_the_same_bytes(base: Base, tmp_path: Path) -> None:
    write_table(tmp_path / "sifted.parquet", sifted(), SIFTED)
    code = (
        "import sys; from pathlib import Path; from rewardgrid.storyteller.making import make_storyteller; "
        "from rewardgrid.study.bases import Pretrained; from rewardgrid.study.contracts import *; "
        "import torch; torch.manual_seed(5); assert torch.get_num_threads() == 2; "
        "recipe = Pretrained.model_validate_json(sys.argv[1]); "
        "make_storyteller('tiny', recipe, read_table(sys.argv[2], SIFTED), {}, Path(sys.argv[3]))"
    )
    arguments = [RECIPE.model_dump_json(), str(tmp_path / "sifted.parquet"), str(tmp_path / "again")]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, env=environment)
    again = read_json(tmp_path / "again" / "provenance.json")["files"]
    assert again == base.provenance["files"]
    assert len(again) == 8


def test_transformers_reads_the_model_and_agrees_on_the_loss(base: Base) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(base.model_dir)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == theirs.config.pad_token_id == 1
    assert theirs.config.bos_token_id is None
    rows = rows_of([base.tokenizer.encode(sifted()["story"][1]).ids], 40)
    with torch.no_grad():
        loss = theirs(torch.from_numpy(rows.ids), labels=torch.from_numpy(rows.ids)).loss.item()
        ours = next_token_loss(shape_of(base.config), load_file(base.weights[0]), rows).item()
    assert ours == pytest.approx(loss, abs=1e-5)


def test_too_few_stories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch: read 4, but 1 stories are left after sifting"):
        make_storyteller("tiny", RECIPE, sifted(3), {}, tmp_path / "base")
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
    with pytest.raises(UserError, match=r"nowhere: no base"):
        build_base("mine", PackagedBase(path=str(tmp_path / "nowhere")), tmp_path / "out")


def test_the_identity_of_a_package_is_that_of_its_files(made: Path, tmp_path: Path) -> None:
    source = tmp_path / "package"
    shutil.copytree(made, source)
    before = recipe_hash(PackagedBase(path=str(source)))
    (source / "provenance.json").write_text((source / "provenance.json").read_text() + " ")
    assert recipe_hash(PackagedBase(path=str(source))) != before
