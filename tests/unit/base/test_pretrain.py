"""The pieces of pretraining, and the embedded base that comes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rewardgrid.base import build
from rewardgrid.base.build import build_base
from rewardgrid.base.embedded import config_of
from rewardgrid.base.load import load_base
from rewardgrid.base.pretrain import (
    Muon,
    backward,
    first_weights,
    learning_rate,
    next_token_loss,
    orthogonalize,
    rows_of,
)
from rewardgrid.base.stories import story
from rewardgrid.lm.model import Shape
from rewardgrid.study.bases import EmbeddedBase, recipe_hash
from rewardgrid.study.errors import UserError

TINY = EmbeddedBase(
    hidden=16, mlp_width=24, steps=30, batch=8, length=40, context=64, train_prompts=60, eval_prompts=20
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("base") / "tiny"
    build_base("tiny", TINY, out)
    return out


def test_rows_begin_where_a_story_begins_and_lose_what_is_left_over() -> None:
    assert rows_of([[1, 2, 3, 9], [4, 9], [5, 6, 7, 8, 9], [3]], 5).tolist() == [[1, 2, 3, 9, 4], [5, 6, 7, 8, 9]]
    assert rows_of([[1, 2]], 5).shape == (0, 5)


def test_the_learning_rate_rises_stays_and_falls_to_nearly_nothing() -> None:
    rates = [learning_rate(step, 100) for step in range(100)]
    assert rates[0] == 0.5
    assert rates[1:51] == [1.0] * 50
    assert rates[75] == 0.5
    assert rates[99] == pytest.approx(0.02)


@pytest.mark.parametrize("size", [(8, 8), (16, 6), (5, 20)])
def test_orthogonalising_evens_out_the_singular_values(size: tuple[int, int]) -> None:
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonalize(matrix)
    assert torch.linalg.svdvals(ours).min() > 0.5
    assert torch.linalg.svdvals(ours).max() < 1.3
    # The singular vectors stay: seen in them, the result is diagonal.
    seen = u.mT @ ours @ vh.mT
    assert (seen - seen.diag().diag()).abs().max() < 1e-4


def test_muon_moves_a_matrix_against_its_gradient_by_the_learning_rate_whatever_the_gradients_size() -> None:
    moves = []
    for scale in (1.0, 1000.0):
        matrix = torch.zeros(4, 4, requires_grad=True)
        matrix.grad = scale * torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        Muon([matrix]).step(0.1)
        assert matrix.grad is None
        moves.append(matrix.detach())
    assert torch.allclose(moves[0], moves[1], atol=1e-5)
    assert ((moves[0].diag() < -0.05) & (moves[0].diag() > -0.13)).all()


def test_first_weights_depend_on_the_seed_alone() -> None:
    shape = Shape.from_config(config_of(TINY, 1))
    torch.manual_seed(1)
    one = first_weights(shape, 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, other = first_weights(shape, 0), first_weights(shape, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_attention_begins_by_copying_half_of_what_it_attends_to() -> None:
    """Every query head reads the values of its group; their outputs add up to 0.5 V^T V on the values' subspace."""
    shape = Shape.from_config(config_of(TINY, 1))
    weights = first_weights(shape, 0)
    values = weights["model.layers.0.self_attn.v_proj.weight"]  # (kv_heads * d, hidden), orthonormal rows
    out = weights["model.layers.0.self_attn.o_proj.weight"]
    per_query_head = values.reshape(2, 4, 16).repeat_interleave(2, dim=0).flatten(0, 1)
    assert torch.allclose(out @ per_query_head, 0.5 * values.mT @ values, atol=1e-6)


def test_two_processes_build_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rewardgrid.base.build import build_base; "
        "from rewardgrid.study.bases import read_recipe; import torch; torch.manual_seed(5); torch.set_num_threads(2); "
        "build_base('tiny', read_recipe(sys.argv[1], 'x'), Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", code, TINY.model_dump_json(), str(tmp_path / "other")]
    subprocess.run(arguments, check=True, capture_output=True, env={"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"})

    def files(directory: Path) -> dict[str, str]:
        return json.loads((directory / "provenance.json").read_text())["files"]

    assert files(tiny) == files(tmp_path / "other")
    assert len(files(tiny)) == 8


def test_the_shards_of_a_batch_add_up_to_the_gradient_of_its_mean_loss() -> None:
    shape = Shape.from_config(config_of(TINY, 1))
    rows = np.random.default_rng(0).integers(0, shape.vocabulary, (5, 12))  # shards of three and two sequences
    weights = {name: weight.requires_grad_() for name, weight in first_weights(shape, 0).items()}
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        loss = backward(shape, weights, rows, pool)
    whole = next_token_loss(shape, weights, rows)
    assert torch.allclose(loss, whole)
    for weight, gradient in zip(weights.values(), torch.autograd.grad(whole, list(weights.values())), strict=True):
        assert weight.grad is not None
        assert torch.allclose(weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_pretraining_lowers_the_loss_of_stories_it_has_not_met(tiny: Path) -> None:
    base = load_base(tiny)
    shape = Shape.from_config(base.config)
    unseen = rows_of([base.tokenizer.encode(story(0, 10_000 + index)).ids for index in range(8)], 40)
    with torch.no_grad():
        before = next_token_loss(shape, first_weights(shape, TINY.seed), unseen).item()
        after = next_token_loss(shape, load_file(base.weights[0]), unseen).item()
    assert before == pytest.approx(np.log(1312), abs=0.3)
    assert after < before - 0.2
    assert 0 < base.provenance["facts"]["held_out_loss"] < before


def test_transformers_reads_the_model_and_agrees_on_the_loss(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = load_base(tiny)
    theirs = AutoModelForCausalLM.from_pretrained(tiny / "model")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == theirs.config.pad_token_id == 1
    assert theirs.config.bos_token_id is None
    ids = rows_of([base.tokenizer.encode(story(0, 5)).ids], 40)
    with torch.no_grad():
        loss = theirs(torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss.item()
        ours = next_token_loss(Shape.from_config(base.config), load_file(base.weights[0]), ids).item()
    assert ours == pytest.approx(loss, abs=1e-5)


def test_a_built_base_has_what_its_recipe_says(tiny: Path) -> None:
    base = load_base(tiny)
    assert base.name == "tiny"
    assert base.vocabulary.size == TINY.vocabulary == base.tokenizer.get_vocab_size()
    assert base.vocabulary.eos == 1
    train, evaluation = base.train_prompts(), base.eval_prompts()
    assert (len(train), len(evaluation)) == (60, 20)
    assert train.ids.shape == (60, 8)
    assert len(set(train.text)) == 60
    assert base.decode(train.ids[0].tolist()) == train.text[0]
    assert base.provenance["recipe"] == TINY.model_dump(mode="json")
    assert base.provenance["recipe_hash"] == recipe_hash(TINY)


def test_loading_a_base_imports_no_model_library(tiny: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rewardgrid.base.load import load_base; "
        "load_base(Path(sys.argv[1])).train_prompts(); "
        "print([name for name in ('transformers', 'trl', 'datasets', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/tokenizer.json", "model/config.json"])
def test_a_changed_or_missing_file_of_a_base_is_named(tiny: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny, copy)
    content = bytearray((copy / name).read_bytes())
    content[-3] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: corrupt .* delete .* run again"):
        load_base(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: no such file; delete .* run again"):
        load_base(copy)


def test_a_build_that_fails_leaves_nothing_and_touches_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "base"
    (out / "evaluation").mkdir(parents=True)
    (out / "evaluation" / "metrics.json").write_text("{}")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_prompts", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        build_base("tiny", TINY, out)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert [path.name for path in out.iterdir()] == ["evaluation"]


def test_a_rebuilt_base_replaces_the_old_one_and_keeps_its_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "base"
    (out / "model").mkdir(parents=True)
    (out / "model" / "stale.bin").write_text("old")
    (out / "evaluation").mkdir()
    build_base("tiny", TINY.model_copy(update={"steps": 2, "train_prompts": 5}), out)
    assert not (out / "model" / "stale.bin").exists()
    assert (out / "evaluation").exists()
    assert len(load_base(out).train_prompts()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
