"""A base from files of this machine: copied and checked, or one message that names what is wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from tests.tiny import PROMPT_TOKENS, WORDS, make_base

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.study.bases import LocalBase
from rewardgrid.study.errors import UserError

WEIGHTS = "model.safetensors"
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sound Hugging Face directory."""
    return make_base(tmp_path / "origin").model_dir


def told(number: int) -> str:
    """A story; no two of these numbers below 300 share their first four words."""
    return f"the {WORDS[number % 20]} {WORDS[number // 20]} ran. to home one day"


def text(path: Path, numbers: range) -> str:
    path.write_text("\n\n".join(told(number) for number in numbers) + "\n")
    return str(path)


def build(model: Path, out: Path, stories: str, **recipe: Any) -> Base:
    values = {"model": str(model), "stories": stories, "prompt_tokens": PROMPT_TOKENS}
    build_base("mine", LocalBase.model_validate(values | recipe), out)
    return load_base(out)


def firsts(numbers: list[int]) -> set[str]:
    return {" ".join(told(number).split()[:PROMPT_TOKENS]).rstrip(".") for number in numbers}


def test_without_a_file_of_their_own_every_tenth_story_is_held_out(model: Path, tmp_path: Path) -> None:
    base = build(model, tmp_path / "base", text(tmp_path / "s.txt", range(40)))
    assert set(base.eval_prompts().text) == firsts([9, 19, 29, 39])
    assert set(base.train_prompts().text) == firsts([n for n in range(40) if n % 10 != 9])


def test_a_file_of_evaluation_stories_leaves_all_others_to_training(model: Path, tmp_path: Path) -> None:
    column = pa.table({"tale": [told(number) for number in range(100, 107)]})
    pq.write_table(column, tmp_path / "e.parquet")
    pq.write_table(pa.table({"tale": [told(number) for number in range(40)]}), tmp_path / "s.parquet")
    files = {"eval_stories": str(tmp_path / "e.parquet"), "story_column": "tale"}
    base = build(model, tmp_path / "base", str(tmp_path / "s.parquet"), **files)
    assert set(base.eval_prompts().text) == firsts(list(range(100, 107)))
    assert set(base.train_prompts().text) == firsts(list(range(40)))


def test_weights_and_tokenizer_are_copied_but_neither_code_nor_pickles(model: Path, tmp_path: Path) -> None:
    (model / "modeling_mine.py").write_text("raise SystemExit")
    (model / "optimizer.pt").write_bytes(b"pickle")
    stories = text(tmp_path / "s.txt", range(40))
    base = build(model, tmp_path / "base", stories)
    assert {path.suffix for path in base.model_dir.iterdir()} == {".json", ".safetensors"}
    assert base.weights[0].read_bytes() == (model / WEIGHTS).read_bytes()
    assert base.decode(base.tokenizer.encode("the cat ran, happy!").ids) == "the cat ran, happy!"
    source = base.provenance["facts"]["source"]
    for path in (stories, str(model / WEIGHTS)):
        assert source[path] == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_second_build_is_identical(model: Path, tmp_path: Path) -> None:
    stories = text(tmp_path / "s.txt", range(40))
    one, two = (build(model, tmp_path / out, stories).provenance for out in ("one", "two"))
    assert one["files"] == two["files"]
    assert {"model/" + WEIGHTS, "train_prompts.parquet", "eval_prompts.parquet"} < set(one["files"])


def test_weights_in_shards_are_read_through_their_index(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (name in names[9:])}-of-00002.safetensors" for name in names}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == shard}, model / shard)
    (model / WEIGHTS).unlink()
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    stories = text(tmp_path / "s.txt", range(40))
    base = build(model, tmp_path / "base", stories)
    assert [path.name for path in base.weights] == sorted(set(places.values()))

    missing = model / "model-00002-of-00002.safetensors"
    missing.unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: no such weights file"):
        build(model, tmp_path / "other", stories)


def lose(name: str) -> Any:
    return lambda model: (model / name).unlink()


def tear(name: str, keep: int) -> Any:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:keep])


def configure(**changes: Any) -> Any:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def pickled(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose("config.json"), r"config\.json: no such file; a model is a Hugging Face directory"),
        (lose("tokenizer.json"), r"tokenizer\.json: no such file"),
        (tear("tokenizer.json", 200), r"tokenizer\.json: no readable tokenizer"),
        (lose(WEIGHTS), r"model\.safetensors: no such weights file"),
        (pickled, r"its weights are pickles \(pytorch_model\.bin\), which can run code.*save_pretrained"),
        (tear(WEIGHTS, -4), r"model\.safetensors: corrupt weights"),
        (tear(WEIGHTS, 100), r"model\.safetensors: corrupt weights"),
        (tear(WEIGHTS, 0), r"model\.safetensors: corrupt weights"),
        (configure(architectures=["GPT2LMHeadModel"]), r"config\.json: architectures: read \['GPT2LMHeadModel'\]"),
        (configure(model_type="mistral"), r"config\.json: model_type: read 'mistral'; .* plain LLaMA and Qwen2"),
        (
            configure(attention_bias=True),
            r"config\.json: attention_bias: read True; .* llama \(without biases\) or qwen2",
        ),
        (configure(model_type="qwen2"), r"architectures: read \['LlamaForCausalLM'\]; .* a Qwen2ForCausalLM"),
        (
            configure(**QWEN2),
            r"weights do not fit config\.json: model\.layers\.0\.self_attn\.q_proj\.bias has the shape None",
        ),
        (
            configure(**QWEN2, use_sliding_window=True, max_window_layers=1),
            r"use_sliding_window: read True; .* window\)",
        ),
        (configure(hidden_size=40), r"weights do not fit config\.json: model\.embed_tokens\.weight"),
    ],
)
def test_a_directory_that_holds_no_sound_llama_or_qwen2_is_refused(
    harm: Any, message: str, model: Path, tmp_path: Path
) -> None:
    harm(model)
    with pytest.raises(UserError, match=message) as refused:
        build(model, tmp_path / "base", text(tmp_path / "s.txt", range(40)))
    assert "\n" not in str(refused.value)
    assert str(model) in str(refused.value)  # where the user can mend it, not where it was copied to
    assert not (tmp_path / "base" / "provenance.json").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_missing_directory_or_file_is_named(model: Path, tmp_path: Path) -> None:
    stories = text(tmp_path / "s.txt", range(40))
    with pytest.raises(UserError, match=r"model: read '.*/nowhere', but there is no such directory"):
        build(tmp_path / "nowhere", tmp_path / "base", stories)
    with pytest.raises(UserError, match=r"t\.txt: no such file of stories"):
        build(model, tmp_path / "base", str(tmp_path / "t.txt"))
    with pytest.raises(UserError, match=r"e\.txt: no such file of stories"):
        build(model, tmp_path / "base", stories, eval_stories=str(tmp_path / "e.txt"))


def test_stories_that_make_no_prompts_are_refused_before_anything_trains(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mine: the eval split has no story of 4 tokens or more"):
        build(model, tmp_path / "base", text(tmp_path / "s.txt", range(9)))  # no tenth story
    with pytest.raises(UserError, match="mine: the train split has no story of 4 tokens or more"):
        build(model, tmp_path / "base", text(tmp_path / "s.txt", range(0)))
    with pytest.raises(UserError, match="prompt_tokens: read 64; write less than the model's context of 64"):
        build(model, tmp_path / "base", text(tmp_path / "s.txt", range(40)), prompt_tokens=64)


def test_a_parquet_file_of_stories_that_is_torn_or_lacks_the_column_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"story": [told(number) for number in range(40)]}), path)
    with pytest.raises(UserError, match=r"story_column: read 'storey', .* are story; did you mean .story."):
        build(model, tmp_path / "base", str(path), story_column="storey")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"s\.parquet: corrupt parquet file"):
        build(model, tmp_path / "base", str(path))
