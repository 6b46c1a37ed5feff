"""Trained weights, read by the libraries of the field: transformers and PEFT give the logits that we merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.runs import run, weights_of
from tests.tiny import FAMILIES, lora_cell, make_cell, routing_cell
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.model import logits
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, sha256
from rewardgrid.train.engines.native import train
from rewardgrid.train.weights import base_weights, load_policy, load_tensors

IDS = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(0))


def trained(cell: Cell, base: Base, directory: Path) -> Path:
    (found,) = run(train, [cell], base, directory)
    return found / "train" / "weights"


def ours(weights: Path, cell: Cell, base: Base, mode: str = "both") -> Tensor:
    shape, policy = load_policy(weights, cell, base, mode)
    return logits(shape, policy, IDS[None])[0]


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(IDS).logits
    return found


def hf(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def frozen(base: Base) -> Tensor:
    return logits(*base_weights(base), IDS[None])[0]


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_a_full_cell_is_an_ordinary_model_with_its_tokenizer(base: Base, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    cell = make_cell(lr=0.03)
    weights = trained(cell, base, tmp_path)
    merged = ours(weights, cell, base)
    torch.testing.assert_close(theirs(hf(weights)), merged, rtol=0, atol=1e-5)
    assert (merged - frozen(base)).abs().max() > 1e-2
    text = "the dog saw a tree ."
    tokenizer = PreTrainedTokenizerFast.from_pretrained(weights)
    assert (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        == base.tokenizer.encode(text, add_special_tokens=False).ids
    )
    assert tokenizer.eos_token_id == base.vocabulary.eos


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_a_lora_cell_is_a_peft_adapter(base: Base, tmp_path: Path) -> None:
    from peft import PeftModel

    cell = lora_cell(lr=0.1)
    weights = trained(cell, base, tmp_path)
    model = PeftModel.from_pretrained(hf(base.model_dir), weights)
    torch.testing.assert_close(theirs(model), ours(weights, cell, base), rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs(model.merge_and_unload()), ours(weights, cell, base), rtol=0, atol=1e-5)
    assert (ours(weights, cell, base) - frozen(base)).abs().max() > 1e-2


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize(("alpha", "ranks"), [("retain_rank", (4, 2)), ("retain_rank", (3, 7)), ("own_rank", (4, 2))])
def test_a_routing_cell_is_two_peft_adapters_alone_and_together(
    alpha: str, ranks: tuple[int, int], base: Base, tmp_path: Path
) -> None:
    from peft import PeftModel

    cell = routing_cell(lr=0.05, adapter_alpha=alpha, rank=ranks[0], forget_rank=ranks[1])
    weights = trained(cell, base, tmp_path)
    model = PeftModel.from_pretrained(hf(base.model_dir), weights / "retain", adapter_name="retain")
    model.load_adapter(weights / "forget", adapter_name="forget")
    found = {}
    for mode, names in (("both", ["retain", "forget"]), ("retain_only", ["retain"]), ("forget_only", ["forget"])):
        model.base_model.set_adapter(names)
        found[mode] = ours(weights, cell, base, mode)
        torch.testing.assert_close(theirs(model), found[mode], rtol=0, atol=1e-5, msg=mode)
    with model.disable_adapter():
        torch.testing.assert_close(theirs(model), frozen(base), rtol=0, atol=1e-5)
    for one, other in (("both", "retain_only"), ("both", "forget_only"), ("retain_only", "forget_only")):
        assert (found[one] - found[other]).abs().max() > 1e-2


def test_the_status_names_the_digest_of_every_weights_file(base: Base, tmp_path: Path) -> None:
    weights = trained(routing_cell(), base, tmp_path)
    assert weights_of(weights.parents[1]) == {
        name: sha256(weights / name)
        for name in ("retain/adapter_model.safetensors", "forget/adapter_model.safetensors")
    }


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_files_hold_the_real_sizes_and_no_padding(base: Base, tmp_path: Path) -> None:
    full = load_file(trained(make_cell(), base, tmp_path) / "model.safetensors")
    original = load_file(base.model_dir / "model.safetensors")
    assert {name: tensor.shape for name, tensor in full.items()} == {
        name: tensor.shape for name, tensor in original.items()
    }
    assert {tensor.dtype for tensor in full.values()} == {torch.float32}


def test_the_adapters_configuration_names_the_base_and_its_alpha(base: Base, tmp_path: Path) -> None:
    weights = trained(routing_cell(rank=4, forget_rank=1), base, tmp_path)
    config = read_json(weights / "forget" / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("tiny", 1, 4)


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_weights_that_are_missing_or_torn_are_named(damage: str, base: Base, tmp_path: Path) -> None:
    weights = trained(make_cell(), base, tmp_path) / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model.safetensors: .*delete its directory and run again"):
        load_tensors(weights)
