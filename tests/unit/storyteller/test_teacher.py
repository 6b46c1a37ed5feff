"""Teachers of every kind: read alike, checked, and refused with one message where they cannot be one."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hub_stand_in import COMMIT, Hub, serving
from tests.teachers import SHAPES, SPECIAL, TEMPLATES, tokenizer_of, write_directory, write_gguf
from tests.tiny import random_tensors

from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.kernels import Packed
from rewardgrid.lm.model import logits
from rewardgrid.storyteller import gguf_file
from rewardgrid.storyteller.gguf_file import open_gguf
from rewardgrid.storyteller.model import open_directory
from rewardgrid.storyteller.requests import request
from rewardgrid.storyteller.teacher import arranged, bring_teacher, encode, fastest_type, load_teacher, sayable
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, sha256
from rewardgrid.study.teachers import GgufTeacher, HubTeacher, LocalTeacher, teacher_hash

CPU = torch.device("cpu")
FAMILIES = pytest.mark.parametrize("family", ["llama", "qwen2"])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each family, the directory and the GGUF file of one model."""
    root = tmp_path_factory.mktemp("teachers")
    return {
        family: (write_directory(root / family, family), write_gguf(root / f"{family}.gguf", family))
        for family in SHAPES
    }


# --- what is read --------------------------------------------------------------------------------------


@FAMILIES
def test_a_directory_and_a_gguf_file_of_one_model_give_the_same_logits(
    family: str, places: dict[str, tuple[Path, Path]]
) -> None:
    directory, file = places[family]
    models = open_directory(directory), open_gguf(file)
    ids = torch.randint(0, 700, (1, 3, 40), generator=torch.Generator().manual_seed(0))
    expected = logits(SHAPES[family], from_hf(SHAPES[family], random_tensors(SHAPES[family])), ids)
    for model in models:
        assert model.shape == SHAPES[family]
        torch.testing.assert_close(logits(model.shape, from_hf(model.shape, model.tensors), ids), expected)


@FAMILIES
def test_a_request_has_the_same_tokens_from_both_and_from_hugging_face(
    family: str, places: dict[str, tuple[Path, Path]]
) -> None:
    from transformers import AutoTokenizer

    directory, file = places[family]
    theirs = AutoTokenizer.from_pretrained(directory)
    for number in (0, 224, 5000):
        turns = request(3, number).turns
        expected = theirs.apply_chat_template(turns, continue_final_message=True, return_dict=False)
        for model in (open_directory(directory), open_gguf(file)):
            text, closing = model.chat.write(turns)
            assert encode(model.tokenizer, text) == expected
            assert text.endswith(turns[-1]["content"])
            assert closing == SPECIAL[family][-1]


@FAMILIES
@pytest.mark.parametrize("text", ["I'll go,\n\n  don't 12345 I'D", "naive caf\u00e9 cafe\u0301", " a  b", "A.\n"])
def test_a_gguf_file_has_its_tokenizer_whole(family: str, text: str, places: dict[str, tuple[Path, Path]]) -> None:
    read = open_gguf(places[family][1]).tokenizer
    assert encode(read, text) == encode(tokenizer_of(family), text)
    assert read.decode(encode(read, text)) == tokenizer_of(family).decode(encode(tokenizer_of(family), text))


@FAMILIES
def test_weights_of_a_few_bits_are_made_plain_some_rows_at_a_time(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "ROWS_AT_A_TIME", 7)
    model = open_gguf(write_gguf(tmp_path / "few.gguf", family, gguf.GGMLQuantizationType.Q8_0))
    for name, exact in random_tensors(SHAPES[family]).items():
        step = exact.abs().max() / 127 if exact.ndim > 1 else 0.0
        torch.testing.assert_close(model.tensors[name], exact, rtol=0, atol=float(step))


@FAMILIES
def test_it_may_say_plain_words_and_marks_only_and_end(family: str, places: dict[str, tuple[Path, Path]]) -> None:
    for model in (open_directory(places[family][0]), open_gguf(places[family][1])):
        teacher = arranged(model, CPU, torch.float32)
        tokens = [model.tokenizer.id_to_token(number) for number in teacher.words.tolist()]
        assert tokens[-1] == SPECIAL[family][-1]
        assert teacher.texts[teacher.end] == ""
        assert [token.replace("\u0120", " ") for token in tokens[:-1]] == list(teacher.texts[:-1])
        assert {" the", " in", "ing", ".", ",", "!", "?", " I", "a"} <= set(teacher.texts)
        assert not {" ", "\n", "4", '"', "A", "<|im_start|>", "<|eot_id|>"} & set(teacher.texts[:-1])


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("\u0120warm", " warm"),
        ("\u2581warm", " warm"),
        ("ing", "ing"),
        ("\u0120Tom", " Tom"),
        ("\u0120I", " I"),
        ("'ll", "'ll"),
        ("?", "?"),
        ("\u0120war", None),
        ("\u0120Killed", None),
        ("\u0120stories", None),
        ("\u0120A", None),
        ("Tom", None),
        ("\u01204", None),
        ("\u0120caf\u00c3\u00a9", None),
        (".\u010a", None),
        ("'", None),
    ],
)
def test_a_token_is_said_as_it_stands_in_a_story_or_not_at_all(token: str, text: str | None) -> None:
    assert sayable(token) == text


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_an_arranged_teacher_scores_its_words_as_the_model_does(
    family: str, dtype: torch.dtype, places: dict[str, tuple[Path, Path]]
) -> None:
    model = open_gguf(places[family][1])
    teacher = arranged(model, CPU, dtype)
    if dtype == torch.bfloat16:
        assert isinstance(teacher.decoder.kernels, Packed) == Packed.work(dtype, CPU)
    ids = torch.randint(0, 600, (4, 30), generator=torch.Generator().manual_seed(1))
    expected = logits(model.shape, from_hf(model.shape, model.tensors), ids[None])[0, :, -1, teacher.words]
    teacher.decoder.begin(4, 30)
    found = teacher.decoder(ids, 0)
    error = (found - expected).square().mean().sqrt()
    assert error < (1e-5 if dtype == torch.float32 else 0.1) * expected.std()


def test_it_speaks_bf16_on_a_gpu_and_whatever_is_faster_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_type(torch.device("cuda")) is torch.bfloat16
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 2.0 ** next(ticks))  # whoever comes later is slower
    assert fastest_type(CPU) is torch.float32


# --- bringing it in ------------------------------------------------------------------------------------


def test_a_teacher_that_was_brought_in_is_told_with_its_licence_and_hashes(
    places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    directory, file = places["qwen2"]
    bring_teacher(GgufTeacher(model=str(file), licence="MIT", sha256=sha256(file)), tmp_path / "gguf")
    facts = read_json(tmp_path / "gguf/teacher.json")
    assert facts["recipe"]["licence"] == "MIT"
    assert (facts["place"], facts["files"]) == (str(file), {"qwen2.gguf": sha256(file)})
    bring_teacher(LocalTeacher(model=str(directory), licence="MIT"), tmp_path / "local")
    files = read_json(tmp_path / "local/teacher.json")["files"]
    assert files["model.safetensors"] == sha256(directory / "model.safetensors")
    one, other = (load_teacher(tmp_path / kind / "teacher.json", CPU) for kind in ("gguf", "local"))
    assert one.texts == other.texts


def test_a_teacher_that_has_changed_since_is_refused(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    file = shutil.copy(places["qwen2"][1], tmp_path / "teacher.gguf")
    bring_teacher(GgufTeacher(model=str(file), licence="MIT"), tmp_path)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"teacher.gguf: is not what it was when it was checked; delete .*teacher.json"):
        load_teacher(tmp_path / "teacher.json", CPU)
    file.unlink()
    with pytest.raises(UserError, match="is not what it was"):
        load_teacher(tmp_path / "teacher.json", CPU)


@pytest.fixture
def hub(places: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    files = {path.name: path.read_bytes() for path in places["qwen2"][0].iterdir()}
    files |= {"modeling.py": b"raise SystemExit", "chat_template.jinja": TEMPLATES["qwen2"].encode()}
    hub = Hub({("model", "tiny/teacher"): files})
    with serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def test_a_hubs_teacher_is_downloaded_at_one_commit(hub: Hub, tmp_path: Path) -> None:
    recipe = HubTeacher(model="tiny/teacher", model_revision="main", licence="MIT")
    bring_teacher(recipe, tmp_path / "teacher")
    facts = read_json(tmp_path / "teacher/teacher.json")
    assert facts["commit"] == COMMIT
    files = hub.repositories["model", "tiny/teacher"]
    assert facts["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "modeling.py"
    }
    teacher = load_teacher(tmp_path / "teacher/teacher.json", CPU)
    assert teacher.chat.source.endswith("chat_template.jinja")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_revision": "v7"}, "model_revision: read 'v7', but there is no such revision"),
        ({"model": "tiny/teecher"}, "no such repository"),
    ],
)
def test_a_hubs_teacher_that_is_not_there_is_told(
    changes: dict[str, str], words: str, hub: Hub, tmp_path: Path
) -> None:
    recipe = HubTeacher.model_validate({"model": "tiny/teacher", "model_revision": "main", "licence": "MIT"} | changes)
    with pytest.raises(UserError, match=words):
        bring_teacher(recipe, tmp_path / "teacher")
    assert not (tmp_path / "teacher/teacher.json").exists()


def test_an_altered_download_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.altered.add("model.safetensors")
    with pytest.raises(UserError, match="truncated or altered on the way"):
        bring_teacher(HubTeacher(model="tiny/teacher", model_revision="main", licence="MIT"), tmp_path / "teacher")


def test_the_same_model_is_the_same_teacher_wherever_it_lies() -> None:
    digest = "0" * 64
    here, there = (GgufTeacher(model=path, licence="MIT", sha256=digest) for path in ("a.gguf", "b/c.gguf"))
    assert teacher_hash(here) == teacher_hash(there)
    assert teacher_hash(here) == teacher_hash(here.model_copy(update={"licence": "mit"}))
    others = [
        GgufTeacher(model="a.gguf", licence="MIT"),
        GgufTeacher(model="b/c.gguf", licence="MIT"),
        GgufTeacher(model="a.gguf", licence="MIT", sha256="1" * 64),
        LocalTeacher(model="a.gguf", licence="MIT"),
        HubTeacher(model="a/b", model_revision="main", licence="MIT"),
        HubTeacher(model="a/b", model_revision="v2", licence="MIT"),
    ]
    assert len({teacher_hash(each) for each in [here, *others]}) == 7


# --- what cannot be a teacher --------------------------------------------------------------------------


def refused(recipe: Any, out: Path, words: str) -> None:
    """There is one message, of one line, and no teacher."""
    with pytest.raises(UserError, match=words) as caught:
        bring_teacher(recipe, out / "teacher")
    assert "\n" not in str(caught.value)
    assert not (out / "teacher/teacher.json").exists()


def test_without_its_file_the_message_says_how_to_get_it(tmp_path: Path) -> None:
    recipe = GgufTeacher(model=str(tmp_path / "none.gguf"), licence="MIT")
    refused(recipe, tmp_path, r"storyteller.teacher.model: read .*none.gguf', but there is no such file; docs/story")
    refused(LocalTeacher(model="none", licence="MIT"), tmp_path, "read 'none', but there is no such directory")


def test_a_file_with_another_hash_is_refused(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    recipe = GgufTeacher(model=str(places["llama"][1]), licence="MIT", sha256="0" * 64)
    refused(recipe, tmp_path, f"its SHA-256 is {sha256(places['llama'][1])}, not 0000")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 0.9999])
def test_a_gguf_file_that_is_cut_short_is_refused(
    share: float, places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    whole = places["qwen2"][1].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
    refused(GgufTeacher(model=str(tmp_path / "cut.gguf"), licence="MIT"), tmp_path, r"cut.gguf: cut short, or no GGUF")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general__architecture": "gemma2"}, "general.architecture: read 'gemma2'; choose .* llama or qwen2"),
        ({"tokenizer__chat_template": None}, "has no chat template"),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer.ggml.model: read 'llama'; .* Hugging Face directory"),
        ({"tokenizer__ggml__pre": "falcon"}, "tokenizer.ggml.pre: read 'falcon'"),
        ({"tokenizer__ggml__merges": None}, "the key 'tokenizer.ggml.merges' is missing"),
        ({"qwen2__block_count": None}, "the key 'block_count' is missing"),
        ({"qwen2__rope__scaling__type": "yarn"}, "qwen2.rope.scaling.type: read 'yarn'"),
        ({"qwen2__expert_count": 8}, "qwen2.expert_count: read 8"),
        ({"qwen2__block_count": 3}, r"blk.2.attn_q.bias has the shape None, not \(64,\)"),
        ({"qwen2__block_count": 1}, "holds blk.1.attn_k.bias, .*, which no plain LLaMA or Qwen2 has"),
        ({"qwen2__feed_forward_length": 97}, r"ffn_gate.weight has the shape \(96, 64\), not \(97, 64\)"),
    ],
    ids=str,
)
def test_a_gguf_file_that_is_no_plain_chat_model_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "odd.gguf", "qwen2", **changes)
    refused(GgufTeacher(model=str(file), licence="MIT"), tmp_path, words)


def test_a_directory_of_another_family_or_without_a_template_is_refused(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "plain", "llama", chat_template=None)
    recipe = LocalTeacher(model=str(directory), licence="MIT")
    refused(recipe, tmp_path, "has no chat template, so there is no telling how it wants to be asked")
    config = (directory / "config.json").read_text().replace('"llama"', '"gpt2"')
    (directory / "config.json").write_text(config)
    refused(recipe, tmp_path, "config.json: model_type: read 'gpt2'")


def test_a_directory_with_torn_weights_is_refused(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "torn", "llama")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(LocalTeacher(model=str(directory), licence="MIT"), tmp_path, "model.safetensors: corrupt weights")


def test_a_template_of_several_is_the_default_one(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATES["llama"]}]
    directory = write_directory(tmp_path / "several", "llama", chat_template=several)
    assert open_directory(directory).chat.template == TEMPLATES["llama"]


def test_weights_in_several_files_are_read_from_all_of_them(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "shards", "qwen2")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for part, own in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in own}, directory / f"model-{part}.safetensors")
        index |= dict.fromkeys(own, f"model-{part}.safetensors")
    (directory / "model.safetensors.index.json").write_text(f'{{"weight_map": {index!r}}}'.replace("'", '"'))
    model = open_directory(directory)
    assert all(torch.equal(model.tensors[name], tensors[name]) for name in names)
