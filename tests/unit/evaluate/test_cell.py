"""Evaluating a base, a finished cell and a diverged one: the files and what stands in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tests.own import own_cell, own_routing, source
from tests.runs import run
from tests.tiny import CELLS, PROMPT_TOKENS, TOKENS, make_cell, routing_cell

from rewardgrid.base.load import Base
from rewardgrid.evaluate.cell import course_of, evaluate_base, evaluate_cell, judge, routing_table
from rewardgrid.evaluate.course import base_rollouts
from rewardgrid.study.cell import REWARDS, Cell
from rewardgrid.study.contracts import (
    COURSE,
    HISTORY,
    MODE_SAMPLES,
    ROLLOUTS,
    ROUTING,
    SAMPLES,
    read_table,
    write_table,
)
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json
from rewardgrid.study.own import OwnFunction
from rewardgrid.study.study import Evaluation
from rewardgrid.study.verdict import LABELS
from rewardgrid.train.engines.native import train
from rewardgrid.train.weights import base_weights

SETTINGS = Evaluation(samples=20, published_samples=10, published_prompts=5, published_top_k=5, base_draws=3)
LENGTH = make_cell().max_new_tokens


@pytest.fixture(scope="module")
def reference(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base's own metrics."""
    out = tmp_path_factory.mktemp("reference")
    evaluate_base(base, SETTINGS, LENGTH, out)
    return out / "metrics.json"


def evaluated(cell: Cell, base: Base, reference: Path, root: Path) -> tuple[Path, dict[str, Any]]:
    (directory,) = run(train, [cell], base, root)
    evaluate_cell(directory, cell, base, reference, SETTINGS)
    return directory / "evaluation", read_json(directory / "evaluation" / "metrics.json")


def numbers(value: object) -> list[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_the_bases_metrics_are_those_of_its_samples(reference: Path) -> None:
    found = read_json(reference)
    assert (found["state"], found["max_new_tokens"], found["verdict"]) == ("base", LENGTH, None)
    samples = read_table(reference.parent / "samples.parquet", SAMPLES)
    assert samples.groupby("protocol").size().to_dict() == {"full": 20, "published": 10, "top_k": 20}
    full = samples[samples["protocol"] == "full"]
    assert found["full"]["sl10"] == pytest.approx(full["sl10"].mean())
    assert found["full"]["happy_se"] == pytest.approx(full["happy"].std() / math.sqrt(20))
    assert found["full"]["kl_exact"] == 0
    assert found["rewards"]["sentence_length_10_smooth"] == pytest.approx(full["sl10"].mean())
    assert found["rewards"]["happy_binary"] == pytest.approx((full["happy"] > 0).mean())
    assert set(found["rewards"]) == set(REWARDS)
    few = samples[samples["protocol"] == "published"]
    assert few["prompt"].tolist() == [prompt for prompt in full["prompt"][:5] for _ in range(2)]
    assert found["published"]["unique_first_sentences"] == len(
        {f"{row.prompt} {row.completion}".partition(".")[0].strip() for row in few.itertuples()}
    )


def test_the_bases_quantiles_are_those_of_its_samples_under_each_protocol(reference: Path) -> None:
    found = read_json(reference)
    samples = read_table(reference.parent / "samples.parquet", SAMPLES)
    for protocol in ("full", "top_k"):
        ends = np.concatenate(list(samples[samples["protocol"] == protocol]["ends"]))
        limit = found["usual"][protocol]["ends"]
        assert limit == pytest.approx(np.quantile(ends, 0.95))
        assert found[protocol]["unlikely_ends"] == (ends > limit).mean()
    assert found["usual"]["full"] != found["usual"]["top_k"]


def test_further_draws_of_the_base_are_judged_like_cells(reference: Path) -> None:
    draws = read_json(reference)["other_draws"]
    assert len(draws) == 3
    values = [tuple(judged["value"] for judged in draw["evidence"]) for draw in draws]
    assert len(set(values)) == 3
    assert all(draw["verdict"] in ("ok", "borderline", "degenerate") for draw in draws)


@pytest.mark.parametrize("method", CELLS)
def test_a_finished_cell_has_samples_figures_and_a_verdict(
    method: str, base: Base, reference: Path, tmp_path: Path
) -> None:
    cell = CELLS[method](lr=0.05)
    out, found = evaluated(cell, base, reference, tmp_path)
    assert (found["cell"], found["state"]) == (cell.name, "done")
    assert found["verdict"] in ("ok", "borderline", "degenerate")
    assert len(numbers(found)) > 20
    assert all(map(math.isfinite, numbers(found)))
    samples = read_table(out / "samples.parquet", SAMPLES)
    modes = ["both", "retain_only", "forget_only"] if cell.is_routing else ["both"]
    full = samples[samples["protocol"] == "full"]
    assert full.groupby("mode").size().to_dict() == dict.fromkeys(modes, 20)
    assert {judged["signal"] for judged in found["evidence"]} >= {"unlikely_ends", "unlikely_ends_top_k", "jaccard"}
    both = full[full["mode"] == "both"]
    for name in ("reward", "sl10", "happy"):
        assert found["full"][name] == pytest.approx(both[name].mean())
    assert found["full"]["kl_exact"] > 1e-3
    assert full.groupby("mode")["completion"].agg(tuple).nunique() == len(modes)
    assert set(found["modes"]) == (set(modes) if cell.is_routing else set())
    usual = read_json(reference)["usual"]["full"]
    for mode, figures in found["modes"].items():
        written = full[full["mode"] == mode]
        assert figures["happy"] == pytest.approx(written["happy"].mean())
        seen = {judged["signal"]: judged["value"] for judged in figures["evidence"]}
        assert seen["unlikely_ends"] == (np.concatenate(list(written["ends"])) > usual["ends"]).mean()
        assert seen["completion_length"] == written["tokens"].mean()
        assert not seen.keys() & {"unlikely_ends_top_k", "unique_first_sentences"}
        worst = max(figures["evidence"], key=lambda judged: LABELS.index(judged["label"]))
        assert figures["verdict"] == worst["label"]


def test_the_evaluations_of_training_become_a_row_for_each_step_and_mode(
    base: Base, reference: Path, tmp_path: Path
) -> None:
    cell = routing_cell()
    out, _ = evaluated(cell, base, reference, tmp_path)
    table = read_table(out / "routing.parquet", ROUTING)
    assert sorted(zip(table["step"], table["mode"], strict=True)) == [
        (step, mode) for step in (2, 4) for mode in ("both", "forget_only", "retain_only")
    ]
    raw = pd.read_parquet(tmp_path / cell.name / "train" / "mode_samples.parquet")
    for row in table.to_dict("records"):
        own = raw[(raw["step"] == row["step"]) & (raw["mode"] == row["mode"])]
        assert row["samples"] == len(own) == 6
        assert row["sl10"] == pytest.approx(own["sl10"].mean())
        assert row["happy"] == pytest.approx(own["happy"].mean())
        assert row["unique"] == pytest.approx(own["completion"].nunique() / 6)


def test_a_course_turns_where_the_recorded_rollouts_do(base: Base, tmp_path: Path) -> None:
    cell = make_cell(max_steps=6, batch_size=32, lr=1e-6)
    (directory,) = run(train, [cell], base, tmp_path)
    path = directory / "train" / "rollouts.parquet"
    rollouts, draws = read_table(path, ROLLOUTS), np.random.default_rng(0)
    words = len(TOKENS) - 6
    noise = [np.concatenate([ids[:PROMPT_TOKENS], 6 + draws.integers(words, size=LENGTH)]) for ids in rollouts["ids"]]
    rollouts["ids"] = rollouts["ids"].where(rollouts["step"] < 4, pd.Series(noise))
    write_table(path, rollouts, ROLLOUTS)
    course, onset = course_of(directory / "train", cell, base, SETTINGS)
    assert course["step"].tolist() == [1, 2, 4, 6]
    assert course["unlikely_windows"][:2].max() < 0.25
    assert course["unlikely_windows"][2:].min() > 0.5
    assert course["completion_length"][2:].tolist() == [LENGTH, LENGTH]
    assert course["verdict"].tolist() == ["ok", "ok", "degenerate", "degenerate"]
    assert onset["degeneration_onset"] == 4


def test_hacking_begins_where_the_mean_of_ten_steps_leaves_the_bases_share_behind(
    base: Base, reference: Path, tmp_path: Path
) -> None:
    cell = make_cell(reward="happy_binary", hack_threshold=2, max_steps=12)
    (directory,) = run(train, [cell], base, tmp_path)
    path = directory / "train" / "history.parquet"
    history = read_table(path, HISTORY)
    write_table(path, history.assign(hacked=[0.0] * 5 + [1.0] * 7), HISTORY)
    shape, weights = base_weights(base)
    own = base_rollouts(shape, weights, base, cell, SETTINGS)
    share = float((own["happy"] >= 2).mean())
    assert 0 < share < 0.3
    # After 9 or 10 of them, four or five of ten steps are hacked.
    for excess, step in ((0.4 - share, None), (0.5 - share, 10), (0.51 - share, 11), (0.9, None)):
        settings = SETTINGS.model_copy(update={"hack_onset": excess})
        onset = course_of(directory / "train", cell, base, settings)[1]["hack_onset"]
        assert onset == (10 if step is None and excess < 0.9 else step)


def test_a_cell_without_two_adapters_has_no_evaluations_by_mode(base: Base, reference: Path, tmp_path: Path) -> None:
    out, found = evaluated(make_cell(), base, reference, tmp_path)
    assert read_table(out / "routing.parquet", ROUTING).empty
    assert found["modes"] == {}
    assert list(routing_table(pd.DataFrame({"step": [], "mode": []}), 3).columns) == ROUTING.names


def test_a_diverged_cell_has_no_figures_and_no_verdict(base: Base, reference: Path, tmp_path: Path) -> None:
    out, found = evaluated(make_cell(kl_cap=1e-9), base, reference, tmp_path)
    assert found["state"] == "diverged"
    assert found["verdict"] is None
    assert found["published"] == found["full"] == found["top_k"] == found["modes"] == found["onset"] == {}
    assert read_table(out / "samples.parquet", SAMPLES).empty
    assert read_table(out / "routing.parquet", ROUTING).empty
    assert read_table(out / "course.parquet", COURSE).empty


def test_an_evaluation_can_be_repeated(base: Base, reference: Path, tmp_path: Path) -> None:
    cell = make_cell()
    out, _ = evaluated(cell, base, reference, tmp_path)
    first = (out / "metrics.json").read_bytes()
    evaluate_cell(out.parent, cell, base, reference, SETTINGS)
    assert (out / "metrics.json").read_bytes() == first


def test_more_samples_than_prompts_is_an_error_that_says_what_to_write(
    base: Base, reference: Path, tmp_path: Path
) -> None:
    cell = make_cell()
    (directory,) = run(train, [cell], base, tmp_path)
    with pytest.raises(UserError, match=r"has 24 prompts, the evaluation needs 40; write evaluation.samples: 24"):
        evaluate_cell(directory, cell, base, reference, Evaluation(samples=40))


def test_an_unfinished_cell_is_not_evaluated(base: Base, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"status.json: no such file"):
        evaluate_cell(tmp_path / "none", make_cell(), base, reference, SETTINGS)


def test_another_cells_training_is_not_evaluated(base: Base, reference: Path, tmp_path: Path) -> None:
    (directory,) = run(train, [make_cell()], base, tmp_path)
    with pytest.raises(UserError, match=r"train: it is of cell 'full_.*'; move it to the directory of that cell"):
        evaluate_cell(directory, make_cell(seed=8), base, reference, SETTINGS)
    assert (directory / "train" / "status.json").is_file()


def test_lengths_are_not_judged_against_a_base_sampled_to_another_length(reference: Path) -> None:
    figures = read_json(reference)
    same, longer = (
        judge(figures, figures | {"max_new_tokens": length}, make_cell(), SETTINGS) for length in (LENGTH, 2 * LENGTH)
    )
    missing = {judged["signal"] for judged in same["evidence"]} - {judged["signal"] for judged in longer["evidence"]}
    assert missing == {"completion_length", "compression_ratio"}


def test_metrics_and_detectors_of_ones_own_are_measured(base: Base, tmp_path: Path) -> None:
    path = source(tmp_path)
    settings = SETTINGS.model_copy(update={"metrics": {"words": OwnFunction(python=f"{path}:words")}, "base_draws": 0})
    evaluate_base(base, settings, LENGTH, tmp_path / "reference")
    (directory,) = run(train, [own_routing(path, eval_every=4)], base, tmp_path / "run")
    cell = own_routing(path, eval_every=4)
    evaluate_cell(directory, cell, base, tmp_path / "reference" / "metrics.json", settings)
    found = read_json(directory / "evaluation" / "metrics.json")
    samples = read_table(directory / "evaluation" / "samples.parquet", SAMPLES)
    full = samples[(samples["protocol"] == "full") & (samples["mode"] == "both")]
    words = full["completion"].map(lambda text: len(text.split()))
    assert found["own"]["own_words"] == pytest.approx((words / 10).mean())
    assert found["own"]["own_words_se"] == pytest.approx((words / 10).std() / math.sqrt(len(words)))
    assert found["full"]["hacked"] == found["modes"]["both"]["hacked"] == (words > 8).mean()
    assert full["reward"].tolist() == pytest.approx((0.05 * words + 2 * full["sl10"]).tolist())
    assert set(read_json(tmp_path / "reference" / "metrics.json")["own"]) == {"own_words", "own_words_se"}


def test_a_base_is_asked_what_it_earns_and_whether_it_hacks_by_code_of_ones_own(base: Base, tmp_path: Path) -> None:
    cell = own_routing(source(tmp_path))
    evaluate_base(base, SETTINGS, LENGTH, tmp_path, cell.own)
    found = read_json(tmp_path / "metrics.json")
    samples = read_table(tmp_path / "samples.parquet", SAMPLES)
    full = samples[samples["protocol"] == "full"]
    words = full["completion"].map(lambda text: len(text.split()))
    assert found["rewards"]["words"] == pytest.approx((words / 10).mean())
    assert found["rewards"]["total"] == pytest.approx((0.05 * words + 2 * full["sl10"]).mean())
    assert found["rewards"]["happy_count"] == pytest.approx(full["happy"].mean())
    assert found["says"]["long"] == (words > 8).mean()
    assert full["says_long"].tolist() == (words > 8).tolist()
    evaluate_base(base, SETTINGS, LENGTH, tmp_path / "plain")
    plain = read_json(tmp_path / "plain" / "metrics.json")
    assert {**plain, "rewards": 0} == {key: value for key, value in found.items() if key != "says"} | {"rewards": 0}
    assert pq.read_schema(tmp_path / "plain" / "samples.parquet").names == SAMPLES.names


def test_what_a_detector_says_is_known_of_every_mode_and_evaluation(
    base: Base, reference: Path, tmp_path: Path
) -> None:
    out, _ = evaluated(own_routing(source(tmp_path), eval_every=2), base, reference, tmp_path / "run")
    samples = read_table(out / "samples.parquet", SAMPLES)
    long = samples["completion"].map(lambda text: len(text.split()) > 8)
    assert samples["says_long"].tolist() == long.tolist()
    assert 0 < long.mean() < 1
    evaluations = read_table(out.parent / "train" / "mode_samples.parquet", MODE_SAMPLES)
    shares = evaluations.assign(long=evaluations["completion"].map(lambda text: len(text.split()) > 8))
    expected = shares.groupby(["step", "mode"])["long"].mean()
    routed = read_table(out / "routing.parquet", ROUTING).set_index(["step", "mode"])["says_long"]
    assert routed.to_dict() == pytest.approx(expected.to_dict())


def test_a_metric_that_is_called_like_a_reward_is_another_function(base: Base, tmp_path: Path) -> None:
    path = source(tmp_path)
    metrics = {"words": OwnFunction(python=f"{path}:tokens")}
    settings = SETTINGS.model_copy(update={"metrics": metrics, "base_draws": 0})
    cell = own_cell(path)
    evaluate_base(base, settings, LENGTH, tmp_path / "reference", cell.own)
    (directory,) = run(train, [cell], base, tmp_path / "run")
    evaluate_cell(directory, cell, base, tmp_path / "reference" / "metrics.json", settings)
    found = read_json(directory / "evaluation" / "metrics.json")
    samples = read_table(directory / "evaluation" / "samples.parquet", SAMPLES)
    full = samples[samples["protocol"] == "full"]
    assert found["full"]["reward"] == pytest.approx(full["completion"].map(lambda text: len(text.split()) / 10).mean())
    assert found["own"]["own_words"] == pytest.approx((full["tokens"] / 20).mean())


def test_a_stopped_cell_is_measured_as_it_is_and_says_that_it_was_stopped(
    base: Base, reference: Path, tmp_path: Path
) -> None:
    rule: Any = {"verdict": "degenerate", "for": 2}
    cell = make_cell(stop_when=rule, lr=0.03, beta=0.0, reward="happy_count", max_steps=12, max_new_tokens=20)
    out, found = evaluated(cell, base, reference, tmp_path)
    assert (found["state"], found["verdict"]) == ("stopped", "degenerate")
    assert found["full"]["samples"] == 20
    last = read_json(out.parent / "train" / "status.json")["stopped_at"]
    assert read_table(out / "course.parquet", COURSE)["step"].max() == last < 12
