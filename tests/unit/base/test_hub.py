"""A base from a hub, against a stand-in that serves a real tiny model and data set; and every way it can fail."""

from __future__ import annotations

import hashlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.base.hub_stand_in import COMMIT, Hub, serving

from rewardgrid.base.build import build_base
from rewardgrid.base.load import load_base
from rewardgrid.base.stories import story
from rewardgrid.study.bases import EmbeddedBase, HubBase
from rewardgrid.study.errors import UserError

TINY = EmbeddedBase(hidden=16, mlp_width=24, steps=2, batch=8, length=40, context=64, train_prompts=5, eval_prompts=5)
RECIPE = HubBase(model="tales/tiny", dataset="tales/stories", train_prompts=12, eval_prompts=3)


def table(first: int, last: int, column: str = "story") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({column: [story(0, index) for index in range(first, last)], "topic": ["x"] * 10}), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("made") / "tiny"
    build_base("tiny", TINY, out)
    return {path.name: path.read_bytes() for path in (out / "model").iterdir()}


@pytest.fixture
def hub(model_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants as constants

    served = Hub(
        {
            ("model", "tales/tiny"): dict(model_files) | {"modeling_evil.py": b"raise SystemExit", "README.md": b"hi"},
            ("dataset", "tales/stories"): {
                "data/train-00000-of-00003.parquet": table(0, 10),
                "data/train-00001-of-00003.parquet": table(10, 20),
                "data/train-00002-of-00003.parquet": table(20, 30),
                "data/test-00000-of-00001.parquet": table(30, 40),
            },
        }
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library waits between attempts
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield served


def test_a_hub_base_is_what_the_hub_serves_at_one_commit(
    hub: Hub, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    build_base("tales", RECIPE, tmp_path / "out")
    base = load_base(tmp_path / "out")
    assert base.weights[0].read_bytes() == model_files["model.safetensors"]
    assert (len(base.train_prompts()), len(base.eval_prompts())) == (12, 3)
    expected = {tuple(base.tokenizer.encode(story(0, index)).ids[:8]) for index in range(12)}
    assert set(map(tuple, base.train_prompts().ids.tolist())) == expected

    source = base.provenance["facts"]["source"]
    assert source["model"]["commit"] == source["dataset"]["commit"] == COMMIT
    digest = hashlib.sha256(model_files["model.safetensors"]).hexdigest()
    assert source["model"]["files"]["model.safetensors"] == digest
    assert not (tmp_path / "out" / "model" / "modeling_evil.py").exists()


def test_only_the_shards_that_the_prompts_need_are_fetched(hub: Hub, tmp_path: Path) -> None:
    build_base("tales", RECIPE, tmp_path / "out")
    fetched = load_base(tmp_path / "out").provenance["facts"]["source"]["dataset"]["files"]
    assert sorted(fetched) == [
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00003.parquet",
        "data/train-00001-of-00003.parquet",
    ]
    assert not any("00002" in path or path.endswith((".py", ".md")) for path in hub.requested)
    assert all("/resolve/" not in path or f"/resolve/{COMMIT}/" in path for path in hub.requested)


def fails(recipe: HubBase, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_base("tales", recipe, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_revision": "v9"}, "model tales/tiny: model_revision: read 'v9', but there is no such revision"),
        ({"dataset_revision": "v9"}, "dataset tales/stories: dataset_revision: read 'v9'"),
        ({"model": "tales/none"}, "model tales/none: no such repository at http"),
        ({"dataset": "tales/none"}, "dataset tales/none: no such repository at http"),
        ({"model": "a/b/c"}, "model a/b/c: no valid repository name"),
        ({"eval_split": "tset"}, "no parquet file of the split 'tset'; did you mean \"test\""),
        (
            {"story_column": "stori"},
            "story_column: read 'stori', but the columns are story, topic; did you mean \"story\"",
        ),
    ],
)
def test_a_recipe_that_names_what_the_hub_has_not_gives_one_clear_error(
    hub: Hub, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    fails(RECIPE.model_copy(update=changes), tmp_path, message)


def test_a_download_that_is_cut_short_gives_one_clear_error(hub: Hub, tmp_path: Path) -> None:
    hub.cut.add("model.safetensors")
    fails(RECIPE, tmp_path, "model tales/tiny: model.safetensors: the download")


def test_a_file_with_other_bytes_than_the_hub_names_is_refused_and_fetched_again(hub: Hub, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):  # one kept in LFS, one in git
        hub.altered = {name}
        fails(RECIPE, tmp_path, f"{name}: truncated or altered on the way .* run again")
    hub.altered = set()
    build_base("tales", RECIPE, tmp_path / "out")


def test_a_cached_file_that_was_truncated_is_refused_and_fetched_again(hub: Hub, tmp_path: Path) -> None:
    build_base("tales", RECIPE, tmp_path / "first")
    cached = next((tmp_path / "cache").rglob("model.safetensors")).resolve()
    cached.write_bytes(cached.read_bytes()[:-50])
    fails(RECIPE, tmp_path, "model.safetensors: truncated or altered on the way")
    build_base("tales", RECIPE, tmp_path / "out")


def test_without_a_network_there_is_one_clear_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        fails(RECIPE, tmp_path, "model tales/tiny: cannot reach http.*; check the network")


def test_offline_mode_is_respected(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails(RECIPE, tmp_path, "model tales/tiny: HF_HUB_OFFLINE forbids the download; unset it")
    assert hub.requested == []


def test_a_model_that_is_no_llama_or_has_only_pickles_is_refused(hub: Hub, tmp_path: Path) -> None:
    files = hub.repositories["model", "tales/tiny"]
    config = files["config.json"]
    files["config.json"] = config.replace(b"LlamaForCausalLM", b"GPT2LMHeadModel")
    fails(RECIPE, tmp_path, "architectures: read .'GPT2LMHeadModel'.")
    files["config.json"] = config
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    fails(RECIPE, tmp_path, "has no safetensors weights at 0123456789, and pickles are not opened")
