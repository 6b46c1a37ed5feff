"""A base from a directory on this machine, and everything that can be wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from rewardgrid.base.build import build_base
from rewardgrid.base.load import load_base
from rewardgrid.base.model_files import INDEX
from rewardgrid.base.stories import story
from rewardgrid.study.bases import EmbeddedBase, LocalBase
from rewardgrid.study.errors import UserError

TINY = EmbeddedBase(hidden=16, mlp_width=24, steps=2, batch=8, length=40, context=64, train_prompts=5, eval_prompts=5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound Hugging Face directory."""
    out = tmp_path_factory.mktemp("made") / "tiny"
    build_base("tiny", TINY, out)
    return out / "model"


@pytest.fixture
def recipe(source: Path, tmp_path: Path) -> LocalBase:
    """A recipe over a copy of the directory, which a test may damage, and thirty stories."""
    shutil.copytree(source, tmp_path / "model")
    (tmp_path / "stories.txt").write_text("\n".join(story(0, index) for index in range(30)), encoding="utf-8")
    return LocalBase(model=str(tmp_path / "model"), stories=str(tmp_path / "stories.txt"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_local_base_is_a_copy_with_every_tenth_story_held_out(recipe: LocalBase, tmp_path: Path) -> None:
    build_base("mine", recipe, tmp_path / "out")
    base = load_base(tmp_path / "out")
    assert (len(base.train_prompts()), len(base.eval_prompts())) == (27, 3)
    tenth = base.tokenizer.encode(story(0, 9), add_special_tokens=False).ids[:8]
    assert tenth in base.eval_prompts().ids.tolist()
    assert tenth not in base.train_prompts().ids.tolist()
    assert base.weights[0].read_bytes() == (Path(recipe.model) / "model.safetensors").read_bytes()
    assert set(base.provenance["facts"]["source"]) >= {recipe.stories, f"{recipe.model}/model.safetensors"}


def test_evaluation_stories_may_have_a_file_of_their_own(recipe: LocalBase, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [story(1, index) for index in range(4)]}), tmp_path / "eval.parquet")
    own = recipe.model_copy(update={"eval_stories": str(tmp_path / "eval.parquet"), "story_column": "text"})
    build_base("mine", own, tmp_path / "out")
    base = load_base(tmp_path / "out")
    assert (len(base.train_prompts()), len(base.eval_prompts())) == (30, 4)


def test_the_end_of_a_text_is_the_tokenizers_and_not_the_configurations_default(
    recipe: LocalBase, tmp_path: Path
) -> None:
    edit(Path(recipe.model) / "config.json", eos_token_id=2, pad_token_id=None)
    (Path(recipe.model) / "generation_config.json").unlink()
    build_base("mine", recipe, tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "out" / "model" / name).read_text())
        assert (written["eos_token_id"], written["pad_token_id"]) == (1, 1)


def test_weights_in_shards_are_read_through_their_index(recipe: LocalBase, tmp_path: Path) -> None:
    model = Path(recipe.model)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == shard}, model / shard)
    (model / INDEX).write_text(json.dumps({"weight_map": where}))
    build_base("mine", recipe, tmp_path / "out")
    assert [path.name for path in load_base(tmp_path / "out").weights] == sorted(set(where.values()))
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors: no such weights file, but .* names it"):
        build_base("mine", recipe, tmp_path / "other")


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"these are no weights at all, of no kind" * 10)


def pickle_only(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda model: shutil.rmtree(model), "model: read .* there is no such directory"),
    (lambda model: (model / "config.json").unlink(), "config.json: no such file"),
    (lambda model: (model / "config.json").write_text("{"), "config.json: no valid JSON"),
    (lambda model: (model / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    (lambda model: (model / "tokenizer.json").write_text("{}"), "tokenizer.json: no readable tokenizer"),
    (lambda model: (model / "model.safetensors").unlink(), "model.safetensors: no such weights file"),
    (truncate, "model.safetensors: corrupt weights"),
    (garble, "model.safetensors: corrupt weights"),
    (pickle_only, r"pickles \(pytorch_model.bin\).* call save_pretrained"),
    (
        lambda model: edit(model / "config.json", architectures=["GPT2LMHeadModel"], model_type="gpt2"),
        r"config.json: architectures: read \['GPT2LMHeadModel'\]; choose a base that is a LlamaForCausalLM",
    ),
    (lambda model: edit(model / "config.json", model_type="mistral"), "model_type: read 'mistral'"),
    (lambda model: edit(model / "config.json", hidden_act="gelu"), "hidden_act: read 'gelu'"),
    (
        lambda model: edit(model / "config.json", intermediate_size=32),
        r"do not fit config.json: model.layers.0.mlp.gate_proj.weight has the shape \(24, 16\), not \(32, 16\)",
    ),
    (
        lambda model: edit(model / "config.json", num_hidden_layers=3),
        "model.layers.2.input_layernorm.weight has the shape None",
    ),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_damaged_or_foreign_model_gives_one_clear_error_and_no_base(
    recipe: LocalBase, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(Path(recipe.model))
    with pytest.raises(UserError, match=message):
        build_base("mine", recipe, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    assert not list(tmp_path.glob(".out.*"))


def test_code_and_pickles_beside_the_weights_are_not_copied(recipe: LocalBase, tmp_path: Path) -> None:
    for name in ("modeling_evil.py", "optimizer.pt", "training_args.bin"):
        (Path(recipe.model) / name).write_text("x")
    build_base("mine", recipe, tmp_path / "out")
    assert not {path.suffix for path in (tmp_path / "out" / "model").iterdir()} - {".json", ".safetensors", ".txt"}


def test_a_base_without_prompts_is_refused(recipe: LocalBase, tmp_path: Path) -> None:
    Path(recipe.stories).write_text("\n".join(["A fox.", "The end."] * 10))
    with pytest.raises(UserError, match="mine: the train split has no story of 8 tokens or more"):
        build_base("mine", recipe, tmp_path / "out")
    Path(recipe.stories).write_text("\n".join(story(0, index) for index in range(9)))
    with pytest.raises(UserError, match="mine: the eval split has no story of 8 tokens or more"):
        build_base("mine", recipe, tmp_path / "out")


def test_a_prompt_that_fills_the_context_is_refused(recipe: LocalBase, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompt_tokens: read 64; write less than the model's context of 64"):
        build_base("mine", recipe.model_copy(update={"prompt_tokens": 64}), tmp_path / "out")


def test_missing_stories_are_noticed_before_anything_is_made(recipe: LocalBase, tmp_path: Path) -> None:
    Path(recipe.stories).unlink()
    with pytest.raises(UserError, match=r"stories.txt: no such file of stories"):
        build_base("mine", recipe, tmp_path / "out")
