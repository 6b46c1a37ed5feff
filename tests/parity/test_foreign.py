"""Models that the native engine does not compute: through transformers, from the base to the verdict."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.test_runs_of_both_engines import differences
from tests.runs import OFTEN, assert_same_run, killed_at, run, tables_of
from tests.tiny import lora_cell, make_cell
from tests.unit.base.test_local import build
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.cli.check import check_study
from rewardgrid.cli.run import by_base
from rewardgrid.evaluate.cell import evaluate_base, evaluate_cell
from rewardgrid.lm.foreign import Foreign
from rewardgrid.lm.hf.config import NotNative
from rewardgrid.lm.hf.models import open_foreign, whole_state
from rewardgrid.lm.model import logits, token_logps
from rewardgrid.lm.sampler import sample
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Evaluation, Study
from rewardgrid.train.engines import native, trl
from rewardgrid.train.weights import frozen_base, load_policy

PROMPT_TOKENS = 8
IDS = torch.randint(0, 29, (3, 20), generator=torch.Generator().manual_seed(0))
SETTINGS = Evaluation(samples=20, published_samples=10, published_prompts=5, published_top_k=5, base_draws=1)
ENDS = "<|endoftext|>"


def save_gpt2(directory: Path) -> Path:
    """A tiny GPT-2 with dropout, whose files name no end of text, as those of the first one do."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    marks = [ENDS, ".", ",", "Ġ", *string.ascii_lowercase, "th"]
    GPT2Tokenizer({token: place for place, token in enumerate(marks)}, [("t", "h")]).save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": 64}))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(marks) + 2, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    assert model.config.resid_pdrop == 0.1
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    model.save_pretrained(directory)
    return directory


def tales(path: Path) -> str:
    """Stories of letters, each another from its first."""
    draws = random.Random(0)
    path.write_text("\n".join("".join(draws.choices(string.ascii_lowercase, k=20)) for _ in range(400)))
    return str(path)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Base:
    place = tmp_path_factory.mktemp("gpt2")
    stories = tales(place / "stories.txt")
    return build(save_gpt2(place / "model"), place / "base", stories, prompt_tokens=PROMPT_TOKENS)


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(IDS).logits
    return found


def loaded(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


SPEC: dict[str, Any] = {"engine": "trl", "prompt_tokens": PROMPT_TOKENS, "max_steps": 3, "max_new_tokens": 12}
CELLS = {"full": make_cell(**SPEC, lr=0.01), "lora": lora_cell(**SPEC, lr=0.05)}


def test_a_gpt2_becomes_a_base_with_its_sizes_and_its_end(gpt2: Base) -> None:
    assert (gpt2.config["vocab_size"], gpt2.config["max_position_embeddings"]) == (33, 64)
    assert gpt2.vocabulary.eos == 0
    assert read_json(gpt2.model_dir / "tokenizer_config.json")["eos_token"] == ENDS
    shape, weights = frozen_base(gpt2)
    assert isinstance(shape, Foreign)
    torch.testing.assert_close(logits(shape, weights, IDS[None])[0], theirs(loaded(gpt2.model_dir)))
    with pytest.raises(UserError, match=r"read 60; prompt and completion need 68 tokens, .* is 64; write at most 56"):
        gpt2.check_room("a cell", PROMPT_TOKENS, 60)


@pytest.mark.parametrize("method", CELLS)
def test_a_gpt2_is_trained_measured_and_read_again(method: str, gpt2: Base, tmp_path: Path) -> None:
    cell = CELLS[method]
    (directory,) = run(trl.train, [cell], gpt2, tmp_path)
    weights = directory / "train" / "weights"
    shape, policy = load_policy(weights, cell, gpt2)
    ours = logits(shape, policy, IDS[None])[0]
    if method == "full":
        model = loaded(weights)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(loaded(gpt2.model_dir), weights)
        config = read_json(weights / "adapter_config.json")
        assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"]
        assert (config["r"], config["lora_alpha"]) == (3, 3)
    torch.testing.assert_close(ours, theirs(model), rtol=0, atol=1e-5)
    assert (ours - theirs(loaded(gpt2.model_dir))).abs().max() > 1e-2

    evaluate_base(gpt2, SETTINGS, cell.max_new_tokens, tmp_path / "reference")
    base_figures = read_json(tmp_path / "reference" / "metrics.json")
    assert base_figures["full"]["kl_exact"] == 0
    evaluate_cell(directory, cell, gpt2, tmp_path / "reference" / "metrics.json", SETTINGS)
    figures = read_json(directory / "evaluation" / "metrics.json")
    assert figures["state"] == "done"
    assert figures["verdict"] in ("ok", "borderline", "degenerate")
    assert figures["full"]["kl_exact"] > 0
    history = tables_of(directory)["history"]
    assert history["kl"][0] == pytest.approx(0, abs=1e-9)  # no dropout: the policy is the base
    assert history["kl"][2] > 1e-6


@pytest.mark.parametrize("method", CELLS)
def test_a_killed_run_of_a_gpt2_goes_on_bit_for_bit(
    method: str, gpt2: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = CELLS[method].model_copy(update={"max_steps": 4})
    (whole,) = run(trl.train, [cell], gpt2, tmp_path / "whole", OFTEN)
    with killed_at(3, monkeypatch):
        run(trl.train, [cell], gpt2, tmp_path / "killed", OFTEN)
    (resumed,) = run(trl.train, [cell], gpt2, tmp_path / "killed", OFTEN)
    assert_same_run(whole, resumed)


def test_a_llama_trains_and_measures_the_same_through_transformers(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws, sampling with the cache, loss, evaluation: the ways part nowhere."""

    def refuse(*_: object) -> None:
        raise NotNative("as if")

    cell = make_cell(max_steps=3, kl_estimator="k2")
    found = {}
    for name, engine in (("native", native), ("trl", trl)):
        if name == "trl":
            monkeypatch.setattr("rewardgrid.train.weights.base_weights", refuse)
            assert isinstance(frozen_base(base)[0], Foreign)
        twin = cell.model_copy(update={"engine": name})
        (directory,) = run(engine.train, [twin], base, tmp_path / name)
        evaluate_base(base, SETTINGS, cell.max_new_tokens, tmp_path / f"{name} base")
        evaluate_cell(directory, twin, base, tmp_path / f"{name} base" / "metrics.json", SETTINGS)
        found[name] = directory, read_json(directory / "evaluation" / "metrics.json")
    assert differences(found["native"][0], found["trl"][0]) == []
    ours, others = (figures["full"] for _, figures in found.values())
    for key, value in ours.items():
        assert others[key] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)), key


def study_of(place: Path, **cell: Any) -> Study:
    values = make_cell(prompt_tokens=PROMPT_TOKENS, **cell).model_dump(
        exclude_defaults=True, exclude={"base", "base_recipe", "results_version"}
    )
    stories = tales(place / "stories.txt")
    return Study.model_validate(
        {
            "results": str(place / "results"),
            "bases": {
                "tiny": {"kind": "local", "model": str(save_gpt2(place / "model")), "stories": stories}
                | {"prompt_tokens": PROMPT_TOKENS}
            },
            "evaluation": SETTINGS.model_dump(),
            "experiments": {"one": {"title": "One", "grids": [values | {"base": "tiny"}]}},
        }
    )


def test_what_only_transformers_computes_names_the_engine_before_anything_runs(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    for look in (lambda: check_study(study, {}), lambda: list(by_base(study, list(study.cells.values())))):
        with pytest.raises(
            UserError, match=r'config\.json: model_type: read .gpt2.; .*: write "engine: trl".*base tiny'
        ):
            look()


def test_routing_is_refused_where_transformers_computes(tmp_path: Path, gpt2: Base) -> None:
    routing = {"method": "routing", "rank": 4, "reward": "sentence_length_10_smooth_with_happy", "eval_samples": 6}
    study = study_of(tmp_path, engine="trl", **routing)
    with pytest.raises(UserError, match=r'method: read "routing", which needs .* a gpt2: write method: full or lora'):
        check_study(study, {})
    with pytest.raises(UserError, match="write method: full or lora"):
        run(trl.train, list(study.cells.values()), gpt2, tmp_path)


# --- the model as a function ---------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neox": SMALL | {"intermediate_size": 48, "max_position_embeddings": 64},
    "mistral": SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "sliding_window": 6},
    "mamba": {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_token_at_a_time_any_model_gives_what_it_gives_at_once(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **OTHERS[kind], pad_token_id=0))
    for parameter in module.parameters():
        parameter.data = parameter.data * (4 if parameter.ndim == 2 else 1)
    shape, weights, ids = Foreign(module), whole_state(module), IDS[None]
    whole = logits(shape, weights, ids)[0]
    with torch.inference_mode():
        decoder = shape.decoder(weights)
        decoder.begin(3, 20)
        torch.testing.assert_close(decoder(IDS[:, :5], 0), whole[:, 4], rtol=0, atol=1e-5)
        for place in range(5, 12):
            torch.testing.assert_close(decoder(IDS[:, place : place + 1], place), whole[:, place], rtol=0, atol=1e-5)
        rows = torch.tensor([True, False, True])
        decoder.keep(rows)
        for place in range(12, 16):
            fed = IDS[rows, place : place + 1]
            torch.testing.assert_close(decoder(fed, place), whole[rows, place], rtol=0, atol=1e-5)


def test_samples_follow_the_draws_and_log_probabilities_the_logits(gpt2: Base) -> None:
    shape, weights = open_foreign(gpt2.model_dir)
    draws = torch.rand(1, 3, 12, generator=torch.Generator().manual_seed(3))
    done = sample(shape, weights, IDS[None, :, :5], draws, eos=0)
    sequences = torch.cat([IDS[None, :, :5], done.ids], -1)
    probabilities = logits(shape, weights, sequences)[0, :, 4:-1].softmax(-1)
    below = probabilities.cumsum(-1).gather(-1, done.ids[0, :, :, None]).squeeze(-1)
    own = probabilities.gather(-1, done.ids[0, :, :, None]).squeeze(-1)
    inside = (below - own - 1e-5 <= draws[0]) & (draws[0] <= below + 1e-5)
    assert inside[done.mask[0]].all()
    expected = own.log()
    torch.testing.assert_close(token_logps(shape, weights, sequences, 5)[0], expected, rtol=0, atol=1e-5)
