"""The sampler against Hugging Face's ``generate``: the same draws give the same tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny import SHAPE, hf_model, random_tensors
from torch import Tensor

from rewardgrid.base.load import Base
from rewardgrid.lm.draws import uniforms
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.sampler import Completions, sample

LENGTH, ROWS = 24, 24


def prompts_of(base: Base) -> Tensor:
    return torch.from_numpy(base.eval_prompts().ids[:ROWS])


def draws() -> Tensor:
    return torch.from_numpy(uniforms(1, "generation test", 0, (ROWS, LENGTH)))


def generated(base: Base, **settings: Any) -> Tensor:
    """Ids (B, L) from ``generate``, whose own processors come first and whose choice is then made by the draws."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class Inverted(LogitsProcessor):  # type: ignore[misc]
        """Leaves only the token in whose interval the draw lies."""

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            draw = draws()[:, input_ids.shape[1] - prompts.shape[1]].double().unsqueeze(1)
            chosen = (scores.double().softmax(-1).cumsum(-1) <= draw).sum(-1, keepdim=True)
            return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    prompts = prompts_of(base)
    model = hf_model(SHAPE, random_tensors())
    out: Tensor = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=base.vocabulary.eos,
        pad_token_id=base.vocabulary.eos,
        logits_processor=LogitsProcessorList([Inverted()]),
        **settings,
    )
    return torch.nn.functional.pad(
        out[:, prompts.shape[1] :], (0, LENGTH + prompts.shape[1] - out.shape[1]), value=base.vocabulary.eos
    )


def sampled(base: Base, penalty: float | None = None) -> Completions:
    return sample(
        SHAPE,
        from_hf(SHAPE, random_tensors()),
        prompts_of(base)[None],
        draws()[None],
        base.vocabulary.eos,
        None if penalty is None else torch.tensor([penalty]),
    )


@pytest.mark.parametrize("penalty", [None, 1.1, 1.5])
def test_completions_are_token_for_token_those_of_generate(penalty: float | None, base: Base) -> None:
    settings = {} if penalty is None else {"repetition_penalty": penalty}
    ours, theirs = sampled(base, penalty), generated(base, **settings)
    assert torch.equal(ours.ids[0], theirs)
    assert 0 < int(ours.ended.sum()) < ROWS
    # TRL's mask: everything up to and including the first end of text.
    after = (theirs == base.vocabulary.eos).cumsum(1) - (theirs == base.vocabulary.eos).int()
    assert torch.equal(ours.mask[0], after == 0)


@pytest.mark.parametrize(("ours", "theirs"), [(1.1, 1.15), (None, 1.1), (1.1, None)])
def test_another_penalty_gives_other_tokens(ours: float | None, theirs: float | None, base: Base) -> None:
    settings = {} if theirs is None else {"repetition_penalty": theirs}
    assert not torch.equal(sampled(base, ours).ids[0], generated(base, **settings))
