"""Rewards, detectors and base rewards of one's own: what they are told, what becomes of what they say, and failures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from tests.own import SOURCE, function, own_cell, own_routing, source
from tests.runs import OFTEN, assert_same_run, run, tables_of

from rewardgrid.base.load import Base
from rewardgrid.lm.sampler import Completions
from rewardgrid.study.cell import Engine
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import sha256
from rewardgrid.study.own import OwnFunction, code_of
from rewardgrid.train import checkpoint, engines
from rewardgrid.train.engines import native
from rewardgrid.train.engines.native import Pack
from rewardgrid.train.own import Functions, OwnCodeError, load
from rewardgrid.train.rollout import Draws

CPU = torch.device("cpu")


def rollouts(directory: Path) -> pd.DataFrame:
    return tables_of(directory)["rollouts"]


def test_a_function_is_told_texts_and_tokens_and_its_numbers_are_paid(base: Base, tmp_path: Path) -> None:
    (directory,) = run(native.train, [own_cell(source(tmp_path))], base, tmp_path / "run")
    rows = rollouts(directory)
    assert rows["reward"].tolist() == pytest.approx([len(text.split()) / 10 for text in rows["completion"]])
    assert rows["reward"].nunique() > 2


def test_a_sum_a_base_reward_and_a_detector_of_ones_own_do_what_they_say(base: Base, tmp_path: Path) -> None:
    cell = own_routing(source(tmp_path), label_noise_frac=0.0)
    (directory,) = run(native.train, [cell], base, tmp_path / "run")
    rows = rollouts(directory)
    assert 0 < rows["eligible"].mean() < 1
    assert 0 < rows["flagged"].mean() < 1
    for row in rows.itertuples():
        words = len(str(row.completion).split())
        full, otherwise = 0.5 * words / 10 + 2 * row.sl10, (len(row.ids) - cell.prompt_length) / 20
        assert row.reward == pytest.approx(full if row.eligible else otherwise)
        assert row.flagged == (row.routed and words > 8)
    modes = tables_of(directory)["mode_samples"]
    expected = [0.5 * len(row.completion.split()) / 10 + 2 * row.sl10 for row in modes.itertuples()]
    assert modes["reward"].tolist() == pytest.approx(expected)


def test_beside_others_a_cell_with_its_own_code_is_paid_alike(base: Base, tmp_path: Path) -> None:
    cells = [
        own_routing(source(tmp_path), eval_every=9),
        own_routing(source(tmp_path), eval_every=9, seed=8, max_steps=2),
    ]
    together, alone = Pack(cells, base, CPU, torch.float64), Pack(cells[:1], base, CPU, torch.float64)
    for step in range(3):
        many, one = (
            pack.step(Draws.of_step(pack.cells, base.train_prompts().ids, [step] * len(pack.cells)))[0]
            for pack in (together, alone)
        )
        torch.testing.assert_close(many.rewards[:1], one.rewards)
        assert torch.equal(many.labels.flagged[:1], one.labels.flagged)
    assert not many.hacked[1].any()  # a cell that has finished is asked no more


def test_what_a_function_does_to_its_lists_is_not_seen_by_the_next(base: Base, tmp_path: Path) -> None:
    text = """
def spoil(completions, completion_ids, **_):
    completions[:] = ["x"] * len(completions)
    for row in completion_ids:
        row.clear()
    return [0.0] * len(completions)

def letters(completions, completion_ids, **_):
    return [len(text) + 1000 * len(row) for text, row in zip(completions, completion_ids)]
"""
    path = source(tmp_path, text)
    codes = [function(path, "spoil"), function(path, "letters")]
    ids = torch.tensor([[[5, 6, 7], [8, 9, 5]]])
    done = Completions(ids, torch.ones_like(ids, dtype=torch.bool), base.vocabulary.eos)
    prompts = base.train_prompts().ids[None, :2]
    both = Functions(codes, base)(prompts, done, 0, "step 1")["letters"]
    assert both == Functions(codes[1:], base)(prompts, done, 0, "step 1")["letters"]
    assert min(both) > 1000


def test_what_a_function_does_to_the_process_stays_with_it(base: Base, tmp_path: Path) -> None:
    """It may go elsewhere, switch gradients off and change the default type; NumPy's arrays are numbers too."""
    plain = """
import os
import numpy, torch

def words(completions, **_):
    {}
    return numpy.array([len(text.split()) / 10 for text in completions])
"""
    rude = 'os.chdir("/"); torch.set_grad_enabled(False); torch.set_default_dtype(torch.float64)'
    (one,) = run(native.train, [own_cell(source(tmp_path, plain.format("pass")))], base, tmp_path / "one")
    (two,) = run(native.train, [own_cell(source(tmp_path, plain.format(rude)))], base, tmp_path / "two")
    assert Path.cwd() != Path("/")
    assert torch.get_default_dtype() is torch.float32
    assert rollouts(one)["reward"].tolist() == rollouts(two)["reward"].tolist()


FAILURES = {
    "raise ValueError('no dogs')": r"mine.py:words: step 3, completion \d \('.*'\): ValueError: no dogs \(line 8\)",
    "return [0.0]": r"mine.py:words: step 3: returned 1 values for 8 completions",
    "return [float('nan') if place == 5 else 0.0 for place in range(len(completions))]": (
        r"mine.py:words: step 3, completion 5 \('.*'\): returned nan"
    ),
    "return [10**400] * len(completions)": r"step 3, completion 0 .*: returned 10+; return a finite number",
    "return [10**5000] * len(completions)": r"completion 0 .*: returned (a int|10+); return a finite number",
    "return [1e300] * len(completions)": r"completion 0 .*: returned 1e\+300; return .* of at most 1e\+30",
    "return ['much'] * len(completions)": r"step 3, completion 0 .*: returned 'much'; return a finite number",
    "raise ValueError('two\\nlines')": r"ValueError: two lines \(line 8\)$",
    "raise MemoryError": r"completion \d \('.*'\): MemoryError \(line 8\)$",
    "raise BaseException('b')": r"BaseException: b",
    "return None": r"step 3: returned None for 8 completions",
    "raise SystemExit(0)": r"step 3, completion \d \('.*'\): SystemExit: 0 \(line 8\)",
}


def failing(body: str) -> str:
    """Fails in the third call, for good."""
    return f"""
calls = 0

def words(completions, **_):
    global calls
    calls += len(completions) == 8
    if calls > 2:
        {body}
    return [len(text.split()) / 10 for text in completions]
"""


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize(("body", "message"), FAILURES.items(), ids=range(len(FAILURES)))
def test_a_failure_names_file_step_and_completion_and_leaves_a_checkpoint(
    engine: Engine, body: str, message: str, base: Base, tmp_path: Path
) -> None:
    cell = own_cell(source(tmp_path, failing(body)), engine=engine)
    with pytest.raises(OwnCodeError, match=message):
        run(engines.engine(engine), [cell], base, tmp_path / "run")
    directory = tmp_path / "run" / cell.name
    found = checkpoint.load(directory / "checkpoints", cell)
    assert found is not None
    assert found.step == 2
    assert "stopped after step 2" in (directory / "events.log").read_text()


def test_a_run_goes_on_from_there_bit_for_bit(base: Base, tmp_path: Path) -> None:
    text = failing("raise OSError('busy')").replace(
        "calls > 2", f"calls > 2 and not __import__('os').path.exists({str(tmp_path / 'up')!r})"
    )
    cell = own_cell(source(tmp_path, text))
    with pytest.raises(OwnCodeError, match="busy"):
        run(native.train, [cell], base, tmp_path / "run", OFTEN)
    (tmp_path / "up").touch()
    (resumed,) = run(native.train, [cell], base, tmp_path / "run", OFTEN)
    (whole,) = run(native.train, [cell], base, tmp_path / "whole", OFTEN)
    assert_same_run(whole, resumed)


def test_a_file_that_is_gone_or_another_or_lacks_the_function_is_refused(tmp_path: Path) -> None:
    path = source(tmp_path)
    code = function(path, "words")
    path.write_text(SOURCE + "\n")
    with pytest.raises(UserError, match=r"mine.py: has changed since the configuration was read"):
        load(code)
    path.unlink()
    with pytest.raises(UserError, match=r"mine.py: no such file, but words is defined by it"):
        load(code)
    with pytest.raises(UserError, match=r"has no function absent, which absent names"):
        load(code_of("absent", OwnFunction(python=f"{source(tmp_path)}:absent", sha256=sha256(path))))
    with pytest.raises(UserError, match=r"words does not say what it takes"):
        load(function(source(tmp_path, "words = min"), "words"))
    with pytest.raises(UserError, match=r"cannot be imported: ZeroDivisionError: .* \(line 1\)"):
        load(function(source(tmp_path, "1 / 0; words = 0"), "words"))
