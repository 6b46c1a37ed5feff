"""A base from a hub: whole, checked and repeatable, or one message that says why not."""

from __future__ import annotations

import hashlib
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.hub_stand_in import COMMIT, Hub, serving
from tests.parity.test_foreign import save_gpt2
from tests.tiny import PROMPT_TOKENS, WORDS, make_base

from rewardgrid.base.hub import Repository
from rewardgrid.base.load import load_base
from rewardgrid.study.bases import HubBase
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json

SCRIPT = Path(__file__).parents[3] / "workflow" / "scripts" / "base.py"
MODEL, DATASET = ("model", "tiny/llama"), ("dataset", "tiny/stories")
SHARDS = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


def stories(first: int, count: int) -> list[str]:
    """Stories of six words; no two of these numbers share their first four."""
    words = [word for word in WORDS if len(word) > 1]
    return [
        " ".join(words[number // len(words) ** place % len(words)] for place in range(3)) + " the cat ran."
        for number in range(first, first + count)
    ]


def parquet(rows: list[str], column: str = "story") -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({column: rows, "topic": ["t"] * len(rows)}), sink)
    return bytes(sink.getvalue().to_pybytes())


@dataclass
class Site:
    """A hub, and the program that downloads from it."""

    hub: Hub
    address: str
    directory: Path

    def build(self, out: str = "base", **recipe: object) -> int:
        """Run the program within this process; returns its exit status."""
        main: Callable[..., int] = runpy.run_path(str(SCRIPT))["main"]
        return main(["--name", "tiny", "--recipe", recipe_of(**recipe), "--out", str(self.directory / out)])


def recipe_of(**changes: object) -> str:
    values: dict[str, object] = {
        "model": MODEL[1],
        "dataset": DATASET[1],
        "prompt_tokens": PROMPT_TOKENS,
        "train_prompts": 60,
        "eval_prompts": 20,
    }
    return HubBase.model_validate(values | changes).model_dump_json()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, bytes]]:
    """A real, tiny LLaMA with its tokenizer beside code and pickles, and a data set of two shards and a test split."""
    model = make_base(tmp_path_factory.mktemp("origin") / "tiny").model_dir
    files = {path.name: path.read_bytes() for path in sorted(model.iterdir())}
    files |= {"modeling_evil.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "onnx/config.json": b"{}"}
    shards = [parquet(stories(0, 50)), parquet(stories(50, 50))]
    return {
        MODEL: files,
        DATASET: dict(zip(SHARDS, shards, strict=True))
        | {"data/test-00000-of-00001.parquet": parquet(stories(200, 30))},
    }


@pytest.fixture
def site(
    served: dict[tuple[str, str], dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    from huggingface_hub import constants

    # The library has read these from the environment when it was imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub = Hub({key: dict(files) for key, files in served.items()})
    with serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield Site(hub, address, tmp_path)


def complaint(site: Site, capsys: pytest.CaptureFixture[str], **recipe: object) -> str:
    """The one line that a build ends with, which must have left nothing behind."""
    assert site.build(**recipe) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1, printed
    assert not list(site.directory.glob(".*.tmp"))
    assert not (site.directory / "base" / "provenance.json").exists()
    return printed


def test_a_base_names_the_commits_and_the_hash_of_every_file_it_came_from(site: Site) -> None:
    assert site.build() == 0
    base = load_base(site.directory / "base")
    source = base.provenance["facts"]["source"]
    assert source["model"]["repository"] == MODEL[1]
    assert (source["model"]["revision"], source["model"]["commit"]) == ("main", COMMIT)
    assert source["dataset"]["commit"] == COMMIT
    files = site.hub.repositories
    for kind, key in (("model", MODEL), ("dataset", DATASET)):
        for name, digest in source[kind]["files"].items():
            assert digest == hashlib.sha256(files[key][name]).hexdigest()
    assert set(source["model"]["files"]) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert base.weights[0].read_bytes() == files[MODEL]["model.safetensors"]
    assert base.decode(base.tokenizer.encode("The cat ran, happy!").ids) == "the cat ran, happy!"
    assert (len(base.train_prompts()), len(base.eval_prompts())) == (60, 20)
    firsts = {" ".join(story.split()[:PROMPT_TOKENS]) for story in stories(200, 20)}
    assert set(base.eval_prompts().text) == firsts


def test_a_gpt2_is_fetched_whole_with_its_licence_and_without_its_code(site: Site, tmp_path: Path) -> None:
    place = save_gpt2(tmp_path / "gpt2")
    files = {path.name: path.read_bytes() for path in place.iterdir()}
    site.hub.repositories[MODEL] = files | {"modeling_mine.py": b"raise SystemExit"}
    site.hub.cards[MODEL[1]] = {"license": "mit"}
    site.hub.repositories[DATASET] = {
        f"{split}.parquet": parquet([f"{letter * 3}{other}{letter} cat." for letter in letters for other in "abcdefgh"])
        for split, letters in (("train", "abcdefghijk"), ("test", "nopqrst"))
    }
    assert site.build() == 0
    base = load_base(site.directory / "base")
    assert (base.config["model_type"], base.config["max_position_embeddings"]) == ("gpt2", 64)
    assert base.weights[0].read_bytes() == files["model.safetensors"]
    assert base.provenance["facts"]["license"] == "mit"
    assert "modeling_mine" not in " ".join(site.hub.requested)


def test_weights_that_the_model_does_not_consist_of_are_not_fetched(site: Site) -> None:
    files = site.hub.repositories[MODEL]
    files["model_ema.safetensors"] = files["model-00001-of-00002.safetensors"] = files["model.safetensors"]
    assert site.build() == 0
    assert [path.name for path in (site.directory / "base/model").glob("*.safetensors")] == ["model.safetensors"]
    assert not any("ema" in path or "model-00001" in path for path in site.hub.requested)


def test_code_and_pickles_are_never_asked_for(site: Site) -> None:
    assert site.build() == 0
    asked = " ".join(site.hub.requested)
    assert "modeling_evil" not in asked
    assert "pytorch_model" not in asked
    assert not list((site.directory / "base").rglob("*.py"))


def test_a_second_build_is_identical_and_downloads_no_file_again(site: Site) -> None:
    assert site.build("one") == 0
    site.hub.requested.clear()
    assert site.build("two") == 0
    assert not [path for path in site.hub.requested if "/resolve/" in path]
    one, two = (read_json(site.directory / out / "provenance.json") for out in ("one", "two"))
    assert one["files"] == two["files"]
    assert one["facts"] == two["facts"]


def test_shards_are_read_in_order_and_no_further_than_the_prompts_reach(site: Site) -> None:
    assert site.build("few", train_prompts=10) == 0
    assert SHARDS[1] not in " ".join(site.hub.requested)
    assert site.build("many", train_prompts=1000) == 0
    many = read_json(site.directory / "many" / "provenance.json")["facts"]
    assert many["train_prompts"] == 100  # both shards hold 50
    assert set(SHARDS) < set(many["source"]["dataset"]["files"])


def test_a_commit_is_a_revision_too(site: Site) -> None:
    assert site.build(model_revision=COMMIT) == 0
    assert read_json(site.directory / "base" / "provenance.json")["facts"]["source"]["model"]["revision"] == COMMIT


def test_a_wrong_revision_is_named_with_its_key(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model tiny/llama: model_revision: read 'v9', but" in complaint(site, capsys, model_revision="v9")
    assert "dataset tiny/stories: dataset_revision: read 'v8'" in complaint(site, capsys, dataset_revision="v8")


def test_an_unknown_repository_is_named_with_the_hub(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    message = complaint(site, capsys, model="tiny/lama")
    assert f"model tiny/lama: no such repository at {site.address}" in message
    assert "no valid repository name" in complaint(site, capsys, dataset="a/b/c")


def test_an_unreachable_hub_is_named_with_the_ways_out(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = complaint(site, capsys)
    for words in ("model tiny/llama: cannot reach http://127.0.0.1:9", "HF_ENDPOINT", "lies on this machine"):
        assert words in message


def test_a_download_that_ends_early_is_told_and_the_next_build_succeeds(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between its retries
    site.hub.cut.add("model.safetensors")
    assert "model tiny/llama: model.safetensors: the download was cut short" in complaint(site, capsys)
    site.hub.cut.clear()
    assert site.build() == 0


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", SHARDS[0]])
def test_a_file_that_is_not_what_the_hub_lists_is_refused_and_not_kept(
    name: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.hub.altered.add(name)
    assert f"{name}: truncated or altered on the way" in complaint(site, capsys)
    site.hub.altered.clear()
    assert site.build() == 0


def test_a_file_that_was_torn_in_the_cache_is_refused_and_then_fetched_again(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.build("first") == 0
    (cached,) = site.directory.glob("cache/models--tiny--llama/snapshots/*/model.safetensors")
    blob = cached.resolve()
    blob.write_bytes(blob.read_bytes()[:-8])
    assert "model.safetensors: truncated or altered" in complaint(site, capsys)
    assert site.build() == 0


def test_a_model_of_pickles_only_is_refused_without_downloading_any(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    del site.hub.repositories[MODEL]["model.safetensors"]
    message = complaint(site, capsys)
    assert "model tiny/llama: has no safetensors weights" in message
    assert "pytorch_model.bin" in message
    assert not [path for path in site.hub.requested if "/resolve/" in path]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json: no such file"),
        ("tokenizer.json", None, "tokenizer.json: no such file"),
        ("config.json", b'{"model_type": "gpt2"}', "config.json: model_type: read 'gpt2'"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0garbage!", "model.safetensors: corrupt weights"),
    ],
)
def test_a_repository_that_holds_no_sound_model_is_refused_by_name(
    name: str, content: bytes | None, message: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    files = site.hub.repositories[MODEL]
    if content is None:
        del files[name]
    else:
        files[name] = content
    assert f"model tiny/llama at {COMMIT[:10]}/{message}" in complaint(site, capsys)


def test_a_missing_split_lists_the_files_there_are(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    message = complaint(site, capsys, eval_split="tests")
    assert "dataset tiny/stories: has no parquet file of the split 'tests'; did you mean \"test\"?" in message
    assert "data/test-00000-of-00001.parquet, data/train-00000-of-00002.parquet" in message


def test_a_data_set_without_parquet_is_told_of_the_converted_branch(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.hub.repositories[DATASET] = {"train.csv": b"story\nonce"}
    assert "no parquet file at all (try dataset_revision: refs/convert/parquet)" in complaint(site, capsys)


def test_a_missing_column_lists_the_columns(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    message = complaint(site, capsys, story_column="text")
    assert "train-00000-of-00002.parquet: story_column: read 'text', but the columns are story, topic" in message


def held(*names: str) -> Repository:
    return Repository("dataset", "tiny/stories", COMMIT, dict.fromkeys(names), {})


@pytest.mark.parametrize(
    ("split", "names", "chosen"),
    [
        ("train", ["data/train-1.parquet", "data/train-0.parquet"], ["data/train-0.parquet", "data/train-1.parquet"]),
        ("train", ["default/train/0000.parquet", "default/test/0000.parquet"], ["default/train/0000.parquet"]),
        ("test", ["test.parquet", "test-set/train.parquet", "latest-0.parquet", "test.csv"], ["test.parquet"]),
        ("fr/train", ["en/train-0.parquet", "fr/train-0.parquet"], ["fr/train-0.parquet"]),
    ],
)
def test_a_splits_files_are_those_named_after_it(split: str, names: list[str], chosen: list[str]) -> None:
    assert held(*names).parquet(split) == chosen


def test_a_split_of_several_configurations_is_not_mixed() -> None:
    with pytest.raises(UserError, match="several folders; write one of 'en/train', 'fr/train'"):
        held("en/train-0.parquet", "fr/train-0.parquet").parquet("train")


def program(site: Site, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program as its own process, as the workflow does."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--name", "tiny", "--recipe", recipe_of(), "--out", str(site.directory / "base")],
        env=inherited | {"HF_HOME": str(site.directory / "home")} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_program_builds_from_the_hub_that_the_environment_names(site: Site) -> None:
    ended = program(site)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert load_base(site.directory / "base").name == "tiny"


def test_offline_the_program_ends_with_one_line_and_asks_nobody(site: Site) -> None:
    ended = program(site, HF_HUB_OFFLINE="1")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: model tiny/llama: HF_HUB_OFFLINE forbids it; unset it")
    assert ended.stderr.count("\n") == 1
    assert not site.hub.requested
