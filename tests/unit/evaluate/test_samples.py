"""Samples of an evaluation: their draws, their scores, and the means over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.tiny import IDS, make_base, make_cell, random_tensors

from rewardgrid.base.load import Base
from rewardgrid.base.prompts import Prompts, write_prompts
from rewardgrid.evaluate.diversity import jaccard
from rewardgrid.evaluate.samples import ROWS, Protocol, by_mode, draw, evaluation_prompts, standard_error, summary
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.model import Weights
from rewardgrid.lm.shape import Shape
from rewardgrid.study.errors import UserError
from rewardgrid.train.rollout import Assessor
from rewardgrid.train.weights import base_weights

FULL = Protocol("full", 20, 20, 12, 99)


def other(shape: Shape) -> Weights:
    return from_hf(shape, random_tensors(shape, seed=5))


def drawn(base: Base, protocol: Protocol = FULL, policy: Weights | None = None, **settings: Any) -> pd.DataFrame:
    shape, frozen = base_weights(base)
    chosen = frozen if policy is None else policy
    assessor = Assessor([make_cell(reward=settings.pop("reward", "happy_count"))], base, torch.device("cpu"))
    return draw(shape, chosen, frozen, base, protocol, assessor, **settings)


def test_one_completion_is_drawn_for_each_of_the_first_prompts(base: Base) -> None:
    frame = drawn(base)
    assert frame["prompt"].tolist() == [base.decode(row) for row in base.eval_prompts().ids[:20].tolist()]
    assert set(frame["protocol"]) == {"full"}
    assert set(frame["mode"]) == {"both"}


def test_several_completions_for_a_prompt_stand_together_and_differ(base: Base) -> None:
    frame = drawn(base, Protocol("published", 20, 5, 12, 99))
    first = [base.decode(row) for row in base.eval_prompts().ids[:5].tolist()]
    assert frame["prompt"].tolist() == [prompt for prompt in first for _ in range(4)]
    assert frame.groupby("prompt")["completion"].nunique().min() > 1


def test_a_prompt_that_holds_a_full_stop_is_passed_over_where_first_sentences_are_counted(tmp_path: Path) -> None:
    base = make_base(tmp_path / "stopped")
    pool = base.eval_prompts()
    ids = pool.ids.copy()
    ids[0, 2] = ids[3, 0] = IDS["."]
    write_prompts(base.directory / "eval_prompts.parquet", Prompts([base.decode(row) for row in ids.tolist()], ids))
    chosen = evaluation_prompts(base, Protocol("published", 4, 4, 12, 99, open_only=True))
    assert chosen.tolist() == ids[[1, 2, 4, 5]].tolist()
    assert evaluation_prompts(base, Protocol("full", 4, 4, 12, 99)).tolist() == ids[:4].tolist()


def test_the_repetition_penalty_changes_what_is_sampled_and_not_what_it_is_scored_by(base: Base) -> None:
    plain, penalised = drawn(base), drawn(base, Protocol("full", 20, 20, 12, 99, penalty=5.0))
    repeats = [sum(len(text.split()) - len(set(text.split())) for text in f["completion"]) for f in (plain, penalised)]
    assert repeats[1] < repeats[0]
    assert (penalised["kl_exact"] == 0).all()


def test_the_draws_belong_to_the_protocol_and_not_to_the_policy_or_the_count(base: Base) -> None:
    frame = drawn(base)
    again = drawn(base, reward="sentence_length_10", mode="retain_only")
    assert again["completion"].tolist() == frame["completion"].tolist()
    assert set(again["mode"]) == {"retain_only"}
    fewer = drawn(base, Protocol("full", 7, 7, 12, 99))
    assert fewer["completion"].tolist() == frame["completion"].tolist()[:7]
    for protocol in (Protocol("full", 20, 20, 12, 98), Protocol("other", 20, 20, 12, 99)):
        assert drawn(base, protocol)["completion"].tolist() != frame["completion"].tolist()


def test_samples_drawn_in_portions_are_those_drawn_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "many", prompts=ROWS + 6)
    protocol = Protocol("full", ROWS + 6, ROWS + 6, 6, 99)
    frame = drawn(base, protocol)
    assert len(frame) == ROWS + 6
    monkeypatch.setattr("rewardgrid.evaluate.samples.ROWS", 1000)
    pd.testing.assert_frame_equal(frame, drawn(base, protocol))


def test_scores_are_read_from_the_text(base: Base) -> None:
    frame = drawn(base)
    happy = [text.count("happy") for text in frame["completion"]]
    assert frame["happy"].tolist() == happy
    assert frame["reward"].tolist() == happy
    assert sum(happy) > 0
    assert (frame["tokens"] <= 12).all()
    assert frame["ended"].any()
    assert (frame["tokens"][~frame["ended"]] == 12).all()


def test_the_base_against_itself_has_no_divergence_but_another_model_has(base: Base) -> None:
    frame, moved = drawn(base), drawn(base, policy=other(base_weights(base)[0]))
    assert (frame["kl_exact"] == 0).all()
    assert (frame["kl_k3"] == 0).all()
    assert (moved["kl_exact"] > 0).all()
    assert moved["kl_k3"].mean() > 0.1
    assert moved["base_nll"].mean() > frame["base_nll"].mean()


def test_top_k_leaves_out_what_the_policy_finds_unlikely(base: Base) -> None:
    one = drawn(base, Protocol("published", 20, 20, 12, 99, top_k=1))
    greedy = drawn(base, Protocol("published", 20, 20, 12, 7, top_k=1))
    # The likeliest token alone is left: the draw no longer matters.
    assert one["completion"].tolist() == greedy["completion"].tolist()
    assert one["base_nll"].mean() < drawn(base)["base_nll"].mean()


def test_fewer_prompts_than_samples_is_an_error_that_says_what_to_write(base: Base) -> None:
    with pytest.raises(UserError, match=r"base tiny: has 24 prompts.* needs 25; .*samples: 24"):
        drawn(base, Protocol("full", 25, 25, 4, 99))


# --- means -----------------------------------------------------------------------------------------------------

ROWS_BY_HAND = pd.DataFrame(
    {
        "prompt": ["one day", "one day", "the cat", "the cat"],
        "completion": ["a dog ran .", "a dog ran .", "happy happy happy .", "a big sun"],
        "tokens": [4, 4, 4, 12],
        "ended": [True, True, True, False],
        "reward": [1.0, 0.0, 0.0, 0.0],
        "sl10": [0.5, 0.5, 0.0, 1.0],
        "happy": [0.0, 0.0, 3.0, 0.0],
        "kl_k3": [1.0, 1.0, 1.0, 3.0],
        "kl_exact": [0.0, 0.0, 0.0, 2.0],
        "base_nll": [4.0, 4.0, 4.0, 2.0],
        "windows": [[], [], [], [2.0]],
        "ends": [[0.5], [0.5, 2.5], [9.0], []],
    }
)
LIMITS = {"windows": 2.0, "ends": 2.0}


def test_divergences_are_means_over_tokens_and_scores_over_samples() -> None:
    found = summary(ROWS_BY_HAND, 3, LIMITS)
    assert found["kl_k3"] == pytest.approx((3 * 4 * 1 + 12 * 3) / 24)
    assert found["kl_exact"] == pytest.approx(1.0)
    assert found["base_nll"] == pytest.approx(3.0)
    assert found["completion_length"] == 6
    assert (found["reward"], found["sl10"], found["happy"]) == (0.25, 0.5, 0.75)
    # Deviation of 1, 0, 0, 0 with n - 1: 1/2; by the root of 4.
    assert found["reward_se"] == pytest.approx(0.25)
    assert (found["hacked"], found["ended"], found["samples"]) == (0.25, 0.75, 4)


def test_hacked_is_counted_from_the_cells_own_threshold() -> None:
    for threshold, share in ((1, 0.25), (3, 0.25), (4, 0.0)):
        assert summary(ROWS_BY_HAND, threshold, LIMITS)["hacked"] == by_mode(ROWS_BY_HAND, threshold)["hacked"] == share


def test_shares_of_unlikely_text_are_over_all_windows_and_all_ends() -> None:
    found = summary(ROWS_BY_HAND, 3, LIMITS)
    # The one window is at the limit, not beyond it; of four ends two are.
    assert (found["unlikely_windows"], found["unlikely_ends"]) == (0.0, 0.5)


def test_the_standard_error_is_the_unbiased_deviation_by_the_root_of_the_count() -> None:
    assert standard_error(pd.Series([1.0, 2.0, 3.0, 6.0])) == pytest.approx(np.sqrt(14 / 3) / 2)


def test_a_mode_counts_distinct_completions_and_their_overlap() -> None:
    found = by_mode(ROWS_BY_HAND, 3)
    assert (found["samples"], found["unique"], found["happy"], found["hacked"]) == (4, 0.75, 0.75, 0.25)
    assert found["jaccard"] == pytest.approx(jaccard(list(ROWS_BY_HAND["completion"])), abs=5e-4)


def test_the_policys_samples_come_from_its_own_weights(base: Base) -> None:
    moved = drawn(base, policy=other(base_weights(base)[0]))
    assert moved["completion"].tolist() != drawn(base)["completion"].tolist()
    assert torch.isfinite(torch.tensor(moved["kl_k3"].tolist())).all()
