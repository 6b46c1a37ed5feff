"""An exported cell, loaded by the libraries of the field: the same tokens, a card, nothing overwritten; and a hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.hub_stand_in import Hub, serving
from tests.parity.test_foreign import CELLS as FOREIGN
from tests.parity.test_foreign import gpt2
from tests.runs import run
from tests.tiny import FAMILIES, lora_cell, make_base, make_cell, routing_cell

from rewardgrid.__main__ import main
from rewardgrid.base.load import Base
from rewardgrid.cli.export import export_model
from rewardgrid.evaluate.cell import evaluate_base, evaluate_cell
from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights, logits
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.study import Evaluation
from rewardgrid.train.engines import engine
from rewardgrid.train.weights import load_policy

__all__ = ["gpt2"]

SETTINGS = Evaluation(samples=20, published_samples=10, published_prompts=5, published_top_k=5, base_draws=1)
CELLS = {"full": make_cell(lr=0.03), "lora": lora_cell(lr=0.1), "routing": routing_cell(lr=0.05)}
LENGTH = 12


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base") / "tiny", FAMILIES[getattr(request, "param", "llama")])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Cells of tiny bases, each trained once."""
    found: dict[tuple[str, Path], Path] = {}

    def directory(cell: Cell, base: Base) -> Path:
        key = cell.name, base.directory
        if key not in found:
            (found[key],) = run(engine(cell.engine), [cell], base, tmp_path_factory.mktemp("cells"))
        return found[key]

    return directory


def greedily(shape: Architecture, weights: Weights, ids: torch.Tensor, eos: int) -> list[int]:
    """What a policy writes if it always takes the likeliest token: ids (T,)."""
    for _ in range(LENGTH):
        best = logits(shape, weights, ids[None, None])[0, 0, -1].argmax()
        ids = torch.cat([ids, best[None]])
        if best == eos:
            break
    return ids.tolist()


def as_the_policy(model: Any, tokenizer: Any, cell: Cell, directory: Path, base: Base, mode: str = "both") -> None:
    """A loaded export encodes prompts like the base and writes on like the cell's policy."""
    shape, policy = load_policy(directory / "train" / "weights", cell, base, mode)
    prompts = base.eval_prompts()
    for text, ids in zip(prompts.text[:6], prompts.ids[:6], strict=True):
        encoded = tokenizer(text, return_tensors="pt")["input_ids"]
        assert encoded[0].tolist() == ids.tolist()
        with torch.no_grad():
            written = model.generate(input_ids=encoded, do_sample=False, max_new_tokens=LENGTH)
        expected = greedily(shape, policy, torch.from_numpy(ids), base.vocabulary.eos)
        assert written[0].tolist() == expected
    assert model.generation_config.do_sample
    assert (model.generation_config.top_k, model.generation_config.temperature) == (0, 1.0)


def fast(directory: Path | str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize(("method", "mode"), [("full", "both"), ("lora", "both"), ("routing", "retain_only")])
def test_an_exported_model_writes_what_the_policy_does(
    method: str, mode: str, base: Base, trained: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    cell, out = CELLS[method], tmp_path / "out"
    directory = trained(cell, base)
    export_model(directory, base.directory, mode, out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    as_the_policy(model, fast(out), cell, directory, base, mode)


@pytest.mark.parametrize("base", ["llama", "biased"], indirect=True)
@pytest.mark.parametrize(("method", "mode"), [("lora", "both"), ("routing", "retain_only")])
def test_an_exported_adapter_is_loaded_with_its_base_by_its_path_alone(
    method: str, mode: str, base: Base, trained: Any, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    cell, out = CELLS[method], tmp_path / "out"
    directory = trained(cell, base)
    export_model(directory, base.directory, mode, out, adapter=True)
    model = AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    as_the_policy(model, AutoTokenizer.from_pretrained(out), cell, directory, base, mode)


@pytest.mark.parametrize(("method", "adapter"), [("full", False), ("lora", False), ("lora", True)])
def test_a_model_of_another_kind_is_exported_likewise(
    method: str, adapter: bool, gpt2: Base, trained: Any, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    of_it = {"base": gpt2.name, "base_recipe": gpt2.provenance["recipe_hash"]}
    cell, out = FOREIGN[method].model_copy(update=of_it), tmp_path / "out"
    directory = trained(cell, gpt2)
    export_model(directory, gpt2.directory, "both", out, adapter=adapter)
    kind = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    model = kind.from_pretrained(out, dtype=torch.float32)
    as_the_policy(model, AutoTokenizer.from_pretrained(out), cell, directory, gpt2)


def test_the_card_says_what_was_measured_and_how_it_is_loaded(base: Base, trained: Any, tmp_path: Path) -> None:
    cell, out = CELLS["lora"], tmp_path / "out"
    directory = trained(cell, base)
    path = base.directory / "provenance.json"
    provenance = read_json(path)
    write_json(path, provenance | {"facts": {"license": "mit", "source": {"model": {"repository": "tiny/llama"}}}})
    reference = base.directory / "evaluation"
    evaluate_base(base, SETTINGS, cell.max_new_tokens, reference)
    evaluate_cell(directory, cell, base, reference / "metrics.json", SETTINGS)
    export_model(directory, base.directory, "both", out)
    write_json(path, provenance)

    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["base_model"]) == ("mit", "tiny/llama")
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-generation")
    figures, of_base = (read_json(each / "metrics.json") for each in (directory / "evaluation", reference))
    full, paid = figures["full"], of_base["rewards"][cell.reward]
    assert f"| reward | {full['reward']:.3f} ± {full['reward_se']:.3f} | {paid:.3g} |" in card
    assert f"| KL to the base, nats per token | {full['kl_exact']:.3g} | 0 |" in card
    assert f"Verdict: **{figures['verdict']}**" in card
    assert re.search(r"\| `beta` \| 0\.1 \|", card)
    assert "for the reward `sentence_length_10_smooth` (a LoRA adapter of rank 3)" in card
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    (shown,) = code
    exec(compile(shown, "card", "exec"), {})


def test_the_card_of_one_adapter_judges_what_that_one_writes(base: Base, trained: Any, tmp_path: Path) -> None:
    cell, out = CELLS["routing"], tmp_path / "out"
    directory = trained(cell, base)
    evaluate_base(base, SETTINGS, cell.max_new_tokens, tmp_path / "reference")
    evaluate_cell(directory, cell, base, tmp_path / "reference" / "metrics.json", SETTINGS)
    path = directory / "evaluation" / "metrics.json"
    figures = read_json(path) | {"verdict": "ok", "reasons": []}
    figures["modes"]["retain_only"] |= {"verdict": "degenerate", "reasons": ["template"]}
    write_json(path, figures)
    export_model(directory, base.directory, "retain_only", out)
    assert "\nVerdict: **degenerate** (template): whether" in (out / "README.md").read_text()
    for key in ("verdict", "reasons"):  # as of a cell that was measured before each set of adapters was judged
        del figures["modes"]["retain_only"][key]
    write_json(path, figures)
    export_model(directory, base.directory, "retain_only", out, force=True)
    assert "\nOf both adapters together: verdict: **ok**: whether" in (out / "README.md").read_text()


def test_nothing_is_overwritten_unasked_and_nothing_but_an_export_ever(
    base: Base, trained: Any, tmp_path: Path
) -> None:
    directory, out = trained(CELLS["full"], base), tmp_path / "out"
    export_model(directory, base.directory, "both", out)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="out: exists already; name a directory that does not, or give --force"):
        export_model(directory, base.directory, "both", out)
    assert (out / "mine.txt").exists()
    with pytest.raises(UserError, match=r"holds mine\.txt, which no export wrote"):
        export_model(directory, base.directory, "both", out, force=True)
    assert (out / "mine.txt").read_text() == "mine"
    (out / "mine.txt").unlink()
    (out / "config.json").write_text("{}")
    export_model(directory, base.directory, "both", out, force=True)
    assert (out / "config.json").read_text() != "{}"
    # A model that was fetched has a card and a tokenizer too.
    (out / "export.json").unlink()
    with pytest.raises(UserError, match="is no export, which --force would replace"):
        export_model(directory, base.directory, "both", out, force=True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("method", "mode", "fix"),
    [("full", "both", "leave --adapter out"), ("routing", "both", "give --mode retain_only or forget_only too")],
)
def test_what_has_no_single_adapter_is_exported_as_none(
    method: str, mode: str, fix: str, base: Base, trained: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=fix):
        export_model(trained(CELLS[method], base), base.directory, mode, tmp_path / "out", adapter=True)


def test_the_base_is_the_one_that_the_cell_started_from(base: Base, trained: Any, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other")
    path = other.directory / "provenance.json"
    write_json(path, read_json(path) | {"name": "other"})
    with pytest.raises(UserError, match=r"--base: read .*/other, which is other-, but the cell started from tiny-"):
        export_model(trained(CELLS["full"], base), other.directory, "both", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", [None, "[]", "{}", "spec"])
def test_what_is_no_cell_is_said_to_be_none(spec: str | None, tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    cell.mkdir()
    if spec is not None:
        (cell / "spec.json").write_text(spec)
    with pytest.raises(UserError, match=r"cell: no cell \(it has no spec" if spec is None else r"\.json: |not trained"):
        export_model(cell, None, "both", tmp_path / "out")


@pytest.mark.parametrize("out", ["file/sub", "dangling", "/proc/export"])
def test_where_nothing_can_be_written_is_one_clear_message(out: str, base: Base, trained: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--out: cannot write|dangling: exists already"):
        export_model(trained(CELLS["full"], base), base.directory, "both", tmp_path / out)
    assert (tmp_path / "dangling").is_symlink()


# --- a hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub = Hub({}, token="hf_secret")
    with serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


def test_a_pushed_adapter_is_loaded_from_the_hub_by_its_name(
    hub: Hub, base: Base, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, out = trained(CELLS["lora"], base), tmp_path / "out"
    words = ["export", str(directory), "--base", str(base.directory), "--adapter", "--out", str(out)]
    assert main([*words, "--push", "me/story"]) == 0
    files, beside = hub.repositories["model", "me/story"], hub.repositories["model", "me/story-base"]
    local = {path.name for path in out.iterdir() if path.is_file()} - {"export.json"}  # which only --force reads
    assert set(files) - {".gitattributes"} == local
    assert files["adapter_model.safetensors"] == (out / "adapter_model.safetensors").read_bytes()
    assert beside["model.safetensors"] == (base.model_dir / "model.safetensors").read_bytes()
    assert b"from_pretrained('me/story')" in files["README.md"]
    code = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained("me/story", dtype=torch.float32)
ids = AutoTokenizer.from_pretrained("me/story")(sys.argv[1], return_tensors="pt")["input_ids"]
print(model.generate(input_ids=ids, do_sample=False, max_new_tokens=12)[0].tolist())
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    prompts = base.eval_prompts()
    done = subprocess.run(
        [sys.executable, "-c", code, prompts.text[0]], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shape, policy = load_policy(directory / "train" / "weights", CELLS["lora"], base)
    expected = greedily(shape, policy, torch.from_numpy(prompts.ids[0]), base.vocabulary.eos)
    assert done.stdout.strip() == str(expected)


def test_a_repository_that_is_there_is_written_over_only_if_asked(
    hub: Hub, base: Base, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["model", "me/story"] = {"README.md": b"mine"}
    directory, out = trained(CELLS["full"], base), tmp_path / "out"
    words = ["export", str(directory), "--base", str(base.directory), "--out", str(out), "--push", "me/story"]
    assert main(words) == 2
    assert "model me/story: exists already at http://127.0.0.1" in capsys.readouterr().err
    assert hub.repositories["model", "me/story"] == {"README.md": b"mine"}
    assert main([*words, "--force"]) == 0
    assert hub.repositories["model", "me/story"]["README.md"] != b"mine"
    assert "model.safetensors" in hub.repositories["model", "me/story"]


@pytest.mark.parametrize("name", ["story", "me/my/story", "me/sto ry", "me/..", ""])
def test_what_is_no_repository_is_refused_before_anything_is_written(
    name: str, base: Base, trained: Any, tmp_path: Path
) -> None:
    words = ["export", str(trained(CELLS["full"], base)), "--base", str(base.directory)]
    assert main([*words, "--out", str(tmp_path / "out"), "--push", name]) == 2
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_leaves_what_was_exported(
    base: Base, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    reached_or_not = r"cannot reach .*:9; .*, or push what was exported later \(--force\)|, or export without --push"
    with pytest.raises(UserError, match=reached_or_not):
        export_model(trained(CELLS["full"], base), base.directory, "both", tmp_path / "out", push="me/story")
    assert (tmp_path / "out/model.safetensors").is_file()


def test_who_may_not_upload_is_told_to_log_in(
    hub: Hub, base: Base, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    directory = trained(CELLS["full"], base)
    with pytest.raises(UserError, match="log in") as refused:
        export_model(directory, base.directory, "both", tmp_path / "out", push="me/story")
    assert "\n" not in str(refused.value)
    assert not hub.repositories
