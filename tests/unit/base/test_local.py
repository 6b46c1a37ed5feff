"""A base from files of this machine: copied and checked, or one message that names what is wrong."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import IDS, PROMPT_TOKENS, WORDS, make_base
from tokenizers import Tokenizer
from torch import Tensor

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.study.bases import LocalBase, recipe_hash
from rewardgrid.study.errors import UserError
from rewardgrid.train.weights import base_weights

WEIGHTS = "model.safetensors"
PROJECTION = "model.layers.1.mlp.up_proj.weight"
SPOILT = {"architectures": ["MistralForCausalLM"], "intermediate_size": 90}
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


def test_only_the_weights_that_transformers_reads_are_copied_and_used(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, model / "model_ema.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"] * 2}, model / "zz-00002-of-00002.safetensors")
    base = build(model, tmp_path / "base", text(tmp_path / "s.txt", range(40)))
    assert [path.name for path in base.model_dir.glob("*.safetensors")] == [WEIGHTS]

    shutil.copy(model / "model_ema.safetensors", base.model_dir)  # however it came there
    assert torch.equal(base_weights(base)[1]["norm"][0], tensors["model.norm.weight"])


def test_an_index_names_no_file_of_another_directory(model: Path, tmp_path: Path) -> None:
    shutil.copy(model / WEIGHTS, tmp_path / WEIGHTS)
    (model / WEIGHTS).unlink()
    index = model / f"{WEIGHTS}.index.json"
    for map_, message in (
        ({"a": f"../{WEIGHTS}"}, r"\.\./model\.safetensors: no such weights file"),
        ({}, r"index\.json: names no weights files"),
        ([WEIGHTS], r"index\.json: names no weights files"),
    ):
        index.write_text(json.dumps({"weight_map": map_}))
        with pytest.raises(UserError, match=message):
            build(model, tmp_path / "base", text(tmp_path / "s.txt", range(40)))


def test_a_head_that_is_the_embedding_again_and_old_rotary_constants_are_no_obstacle(
    model: Path, tmp_path: Path
) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    reweigh(add)(model)
    build(model, tmp_path / "base", text(tmp_path / "s.txt", range(40)))


def test_padding_and_truncation_that_were_saved_with_a_tokenizer_reach_no_prompt(model: Path, tmp_path: Path) -> None:
    plain = build(model, tmp_path / "plain", text(tmp_path / "s.txt", range(40))).train_prompts()
    path = model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(3)
    tokenizer.save(str(path))
    truncated = build(model, tmp_path / "truncated", text(tmp_path / "s.txt", range(40))).train_prompts()
    tokenizer.no_truncation()
    tokenizer.enable_padding(length=40, pad_id=IDS["[EOS]"], pad_token="[EOS]", direction="left")
    tokenizer.save(str(path))
    padded = build(model, tmp_path / "padded", text(tmp_path / "s.txt", range(40))).train_prompts()
    assert plain.ids.tolist() == truncated.ids.tolist() == padded.ids.tolist()


@pytest.mark.parametrize("name", ["model/model.safetensors", "eval_prompts.parquet"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"torn")], ids=["lost", "torn"])
def test_a_base_of_the_workflow_that_is_damaged_is_built_anew_by_the_same_command(
    name: str, harm: Any, model: Path, tmp_path: Path
) -> None:
    recipe = LocalBase.model_validate(
        {"model": str(model), "stories": text(tmp_path / "s.txt", range(40)), "prompt_tokens": PROMPT_TOKENS}
    )
    place = tmp_path / f"mine-{recipe_hash(recipe)}"
    build_base("mine", recipe, place)
    (place / "evaluation").mkdir()
    harm(place / name)
    with pytest.raises(UserError, match=f"{name}: .*the base was removed: run the same command again"):
        load_base(place).eval_prompts()
    assert [path.name for path in place.iterdir()] == ["evaluation"]  # the outputs of the rule, which makes them again


def lose(name: str) -> Any:
    return lambda model: (model / name).unlink()


def tear(name: str, keep: int) -> Any:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:keep])


def configure(**changes: Any) -> Any:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def reweigh(change: Callable[[dict[str, Tensor]], object]) -> Any:
    def rewrite(model: Path) -> None:
        tensors = load_file(model / WEIGHTS)
        change(tensors)
        save_file(tensors, model / WEIGHTS)

    return rewrite


def quantise(tensors: dict[str, Tensor]) -> None:
    tensors[PROJECTION] = tensors[PROJECTION].mul(10).to(torch.int8)


def to_8_bits(tensors: dict[str, Tensor]) -> None:
    tensors[PROJECTION] = tensors[PROJECTION].to(torch.float8_e4m3fn)


def scale(tensors: dict[str, Tensor]) -> None:
    tensors[PROJECTION + "_scale"] = torch.ones(1)


def spoil(value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[PROJECTION][3, 2:3].fill_(value)


def add_an_adapter(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")


def own_head(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def name_end(token: object, name: str = "tokenizer_config.json") -> Any:
    def change(model: Path) -> None:
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            path = model / file
            content = json.loads(path.read_text())
            content.pop("eos_token")
            path.write_text(json.dumps(content | ({"eos_token": token} if file == name else {})))

    return change


def without_end(model: Path) -> None:
    """No file names an end, and no token is called [EOS], which would do."""
    name_end(None)(model)
    for path in (model / "tokenizer.json", model / "tokenizer_config.json", model / "special_tokens_map.json"):
        path.write_text(path.read_text().replace("[EOS]", "[end]"))


def point(name: str) -> Any:
    """Leave what a clone has of a file that Git LFS did not fetch."""
    oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 5012345\n"
    return lambda model: (model / name).write_text(pointer)


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
        (point(WEIGHTS), r"model\.safetensors: a Git LFS pointer instead of the weights; run `git lfs pull`"),
        (point("tokenizer.json"), r"tokenizer\.json: a Git LFS pointer instead of the tokenizer; run `git lfs pull`"),
        (
            configure(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
            r"config\.json: model_type: read 'gpt2'; .* its weights do not fit config\.json \(missing keys: ",
        ),
        (
            configure(model_type="made_up", auto_map={"AutoConfig": "made_up.Config"}),
            r"config\.json: model_type: read 'made_up'; transformers, which .* cannot load it without code of its own",
        ),
        (
            configure(attention_bias=True),
            r"weights do not fit config\.json: model\.layers\.0\.self_attn\.q_proj\.bias, \(32,\), is missing",
        ),
        (configure(model_type="mistral", **SPOILT), r"model_type: read 'mistral'.*mismatched keys: "),
        (
            configure(**QWEN2),
            r"weights do not fit config\.json: model\.layers\.0\.self_attn\.q_proj\.bias, \(32,\), is missing",
        ),
        (configure(quantization_config={"quant_method": "fp8"}), r"config\.json: quantization_config: .* quantised"),
        (reweigh(quantise), r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight is quantised \(int8\)"),
        (reweigh(to_8_bits), r"mlp\.up_proj\.weight is quantised \(float8_e4m3fn\)"),
        (reweigh(scale), r"a plain model has no model\.layers\.1\.mlp\.up_proj\.weight_scale"),
        (add_an_adapter, r"adapter_config\.json: an adapter lies beside the model.*merge it"),
        (reweigh(spoil(math.nan)), r"model\.safetensors: .*up_proj\.weight holds numbers that are not finite"),
        (reweigh(spoil(-math.inf)), r"model\.safetensors: .*up_proj\.weight holds numbers that are not finite"),
        (reweigh(own_head), r"config\.json: tie_word_embeddings: read True, but .* lm_head\.weight .* write false"),
        (name_end(["[EOS]"]), r"tokenizer_config\.json: eos_token: read \['\[EOS\]'\], which is no token"),
        (
            name_end("</s>"),
            r"tokenizer_config\.json: eos_token: read '</s>', which is no token of tokenizer\.json; write",
        ),
        (
            name_end({"content": "</s>"}, "special_tokens_map.json"),
            r"special_tokens_map\.json: eos_token: read \{'cont",
        ),
        (without_end, r"tokenizer_config\.json: names no eos_token; write the token that ends a text"),
        (configure(hidden_size=40), r"weights do not fit config\.json: model\.embed_tokens\.weight"),
    ],
)
def test_a_directory_that_holds_no_sound_model_is_refused(harm: Any, message: str, model: Path, tmp_path: Path) -> None:
    harm(model)
    with pytest.raises(UserError, match=message) as refused:
        build(model, tmp_path / "base", text(tmp_path / "s.txt", range(40)))
    assert "\n" not in str(refused.value)
    assert str(model) in str(refused.value)  # where the user can mend it, not where it was copied to
    assert not (tmp_path / "base" / "provenance.json").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_model_that_transformers_alone_computes_is_a_base(model: Path, tmp_path: Path) -> None:
    configure(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=8)(model)
    (model / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    base = build(model, tmp_path / "base", text(tmp_path / "s.txt", range(40)))
    assert base.weights[0].read_bytes() == (model / WEIGHTS).read_bytes()
    assert base.provenance["facts"]["license"] == "mit"
    whole = (model / WEIGHTS).read_bytes()
    for harm, message in (
        (spoil(math.nan), r"up_proj\.weight holds numbers that are not finite"),
        (scale, r"do not fit config\.json \(unexpected keys: model\.layers\.1\.mlp\.up_proj\.weight_scale\)"),
    ):
        (model / WEIGHTS).write_bytes(whole)
        reweigh(harm)(model)
        with pytest.raises(UserError, match=message):
            build(model, tmp_path / "other", text(tmp_path / "s.txt", range(40)))


def test_a_missing_directory_or_file_is_named(model: Path, tmp_path: Path) -> None:
    stories = text(tmp_path / "s.txt", range(40))
    with pytest.raises(UserError, match=r"nowhere: no such directory of a model"):
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


@pytest.mark.parametrize(
    "stories",
    [
        pa.array([["the cat ran"], ["home"]]),
        pa.array([{"text": "the cat"}] * 2),
        pa.array([b"the cat ran", b"home"]),
        pa.array([1, 2]),
    ],
    ids=["lists", "structs", "bytes", "numbers"],
)
def test_a_column_that_is_not_of_text_is_refused(stories: pa.Array, model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"story": stories}), tmp_path / "s.parquet")
    with pytest.raises(UserError, match=r"story_column: read 'story', which is a column of \w+.*; write one of text"):
        build(model, tmp_path / "base", str(tmp_path / "s.parquet"))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_a_column_of_text_is_read_however_it_is_stored(kind: pa.DataType, model: Path, tmp_path: Path) -> None:
    told_ones = [None, "", *(told(number) for number in range(38))]
    pq.write_table(pa.table({"story": pa.array(told_ones).cast(kind)}), tmp_path / "s.parquet")
    base = build(model, tmp_path / "base", str(tmp_path / "s.parquet"))
    assert set(base.train_prompts().text) | set(base.eval_prompts().text) == firsts(list(range(38)))


def test_a_parquet_file_of_stories_that_is_torn_or_lacks_the_column_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"story": [told(number) for number in range(40)]}), path)
    with pytest.raises(UserError, match=r"story_column: read 'storey', .* are story; did you mean .story."):
        build(model, tmp_path / "base", str(path), story_column="storey")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"s\.parquet: corrupt parquet file"):
        build(model, tmp_path / "base", str(path))
