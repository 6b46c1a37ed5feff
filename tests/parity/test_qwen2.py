"""A Qwen2 as transformers writes it: built as a base, trained by both engines, and read by transformers again."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.parity.test_runs_of_both_engines import both, differences
from tests.tiny import CELLS
from tests.unit.base.test_local import build, text
from torch import Tensor

from rewardgrid.cli.export import export_model
from rewardgrid.lm.model import logits
from rewardgrid.train.weights import base_weights, load_policy

PROMPT_TOKENS = 8
IDS = torch.randint(0, 30, (3, 20), generator=torch.Generator().manual_seed(0))


def save_qwen2(directory: Path, tied: bool) -> Path:
    """A tiny Qwen2 with its own kind of tokenizer, which knows fewer tokens than the model, as published ones do."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    marks = ["<|endoftext|>", ".", "Ġ", *string.ascii_lowercase, "th"]
    Qwen2Tokenizer({token: place for place, token in enumerate(marks)}, [("t", "h")]).save_pretrained(directory)
    sizes = {"vocab_size": len(marks) + 3, "hidden_size": 32, "intermediate_size": 44, "max_position_embeddings": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=tied))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 or name.endswith(".bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    model.save_pretrained(directory)
    return directory


def theirs(directory: Path) -> Tensor:
    """Logits of transformers for the model in a directory, which it knows for a Qwen2."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    with torch.no_grad():
        found: Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize(("method", "tied"), [("full", True), ("full", False), ("lora", True), ("routing", False)])
def test_a_directory_of_transformers_trains_with_both_engines_and_goes_back_to_it(
    method: str, tied: bool, tmp_path: Path
) -> None:
    source, stories = save_qwen2(tmp_path / "model", tied), text(tmp_path / "stories.txt", range(300))
    base = build(source, tmp_path / "base", stories, prompt_tokens=PROMPT_TOKENS)
    native = logits(*base_weights(base), IDS[None])[0]
    torch.testing.assert_close(native, theirs(source), rtol=0, atol=1e-5)

    of_it = {"base": base.name, "base_recipe": base.provenance["recipe_hash"]}
    cell = CELLS[method](prompt_tokens=PROMPT_TOKENS, **of_it)
    ours, others = both(cell, base, tmp_path)
    assert differences(ours, others) == []
    export_model(ours, base.directory, "both", tmp_path / "exported")
    trained = logits(*load_policy(ours / "train" / "weights", cell, base), IDS[None])[0]
    torch.testing.assert_close(theirs(tmp_path / "exported"), trained)
    assert (trained - native).abs().max() > 1e-2

    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "exported"))
    assert before.keys() == after.keys()
    biases = [name for name in before if name.endswith(".bias")]
    assert len(biases) == 6
    for name in biases:  # what LoRA freezes, a full run trains
        assert torch.equal(before[name], after[name]) == (method != "full"), name
