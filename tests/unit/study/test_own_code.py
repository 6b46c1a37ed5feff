"""Code of one's own in a configuration: which cells it names, what is part of them, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.own import source

from rewardgrid.report.tables import check_columns
from rewardgrid.study.cell import Cell, read_cell
from rewardgrid.study.errors import ConfigError
from rewardgrid.study.problems import validated
from rewardgrid.study.study import BaseEvaluation, Evaluation, Study, load_study

STORYTELLER = {"kind": "packaged", "path": str(Path(__file__).parents[3] / "resources/bases/storyteller")}


def load(directory: Path, rewards: Any = None, grid: Any = None, **blocks: Any) -> Study:
    config = {
        "bases": {"storyteller": STORYTELLER},
        "rewards": rewards or {},
        "experiments": {"one": {"title": "One", "grids": [grid or {"reward": ["happy_count", *(rewards or {})]}]}},
    } | blocks
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return load_study([path])


def test_the_source_is_part_of_the_cells_that_use_it_and_its_place_is_not(tmp_path: Path) -> None:
    path = source(tmp_path)
    first = load(tmp_path, {"words": {"python": f"{path}:words"}}).grid["one"]
    elsewhere = path.rename(tmp_path / "moved.py")
    moved = load(tmp_path, {"words": {"python": f"{elsewhere}:words"}}).grid["one"]
    elsewhere.write_text(elsewhere.read_text() + "# edited\n")
    edited = load(tmp_path, {"words": {"python": f"{elsewhere}:words"}}).grid["one"]
    other = load(tmp_path, {"words": {"python": f"{elsewhere}:tokens"}}).grid["one"]
    assert (
        first[0].name
        == moved[0].name
        == edited[0].name
        == Cell(reward="happy_count", base_recipe=first[0].base_recipe).name
    )
    assert first[1].name == moved[1].name
    assert len({cells[1].name for cells in (first, edited, other)}) == 3
    assert first[1].name.startswith("full_words_")
    assert read_cell(first[1].canonical_json(), "spec.json") == first[1]


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        ("def score(completions): return []", "scoer", 'has no function scoer; did you mean "score"?'),
        ("x = 1", "score", "has no function score; it defines: x"),
        ("", "score", "has no function score; write one of this name there"),
        ("def score(texts): return []", "score", "score takes texts, which nobody gives; write some of prompts"),
        ("def score(completions, /): return []", "score", "score takes completions, which nobody gives"),
        ("async def score(completions): return []", "score", "score is async; write def"),
        ("def score(completions): yield 1", "score", "score is a generator; return a list"),
        ("def other():\n    def score(completions): return []", "score", "has no function score; it defines: other"),
        ("class Other:\n    def score(completions): return []", "score", "has no function score"),
        ("'score'", "score", "has no function score"),
        ("x = -" + "-" * 200_000 + "1", "score", "cannot be read|is no Python"),
        ("def score(:", "score", r"mine.py is no Python: .* \(line 1\); mend it there"),
    ],
)
def test_a_function_that_is_not_there_is_said_before_anything_runs(
    text: str, function: str, said: str, tmp_path: Path
) -> None:
    path = source(tmp_path, text)
    with pytest.raises(ConfigError, match=f"rewards.words.python: read .*{said}"):
        load(tmp_path, {"words": {"python": f"{path}:{function}"}})


@pytest.mark.parametrize(
    "text",
    [
        "from os.path import *",
        "from math import sqrt as score",
        "if True:\n    def score(completions): return []",
        "globals()['score'] = lambda completions: []",
        "def score(completions, prompts=(), *, weight=2, **more): return [*(each for each in completions)]",
        "with open(__file__) as file:\n    def score(prompt_ids): return []",
        "try:\n    from fast import score\nexcept ImportError:\n    score = print",
        "import functools\n\n@functools.cache\ndef score(texts): return []",
        "def __getattr__(name): return print",
        "score, other = (lambda completions: []), 1",
        "class score: pass",
    ],
)
def test_a_function_may_be_made_in_any_way(text: str, tmp_path: Path) -> None:
    load(tmp_path, {"words": {"python": f"{source(tmp_path, text)}:score"}})


def test_a_hash_by_hand_is_refused_and_a_broken_reward_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^1 problem .*\n.*: rewards\.words\.sha256: read 'abc'; remove it"):
        load(tmp_path, {"words": {"python": f"{source(tmp_path)}:words", "sha256": "abc"}}, {"seed": [1]})
    with pytest.raises(ConfigError, match=r"^1 problem .*\n.*: rewards\.words\.python: read .*no such file"):
        load(tmp_path, {"words": {"python": f"{tmp_path}/.py:f"}})
    with pytest.raises(ConfigError, match=r"reward_weights\[0\]: read nan; write a finite number"):
        load(tmp_path, {"sum": {"sum": ["happy_count"], "reward_weights": [float("nan")]}})


def test_a_sum_is_part_of_its_cells_with_its_weights_and_all_sources(tmp_path: Path) -> None:
    path = source(tmp_path)

    def name(**total: Any) -> str:
        rewards = {"total": total, "words": {"python": f"{path}:words"}}
        return load(tmp_path, rewards, {"reward": "total"}).grid["one"][0].name

    names = [name(sum=["words", "happy_count"], reward_weights=weights) for weights in ([1, 2], [2, 1])]
    assert name(sum=["words", "happy_count"]) == name(sum=["words", "happy_count"], reward_weights=[1.0, 1])
    path.write_text(path.read_text() + "\n")
    assert len({*names, name(sum=["words", "happy_count"], reward_weights=[1, 2])}) == 3


def test_a_study_that_was_read_keeps_the_source_that_it_was_read_with(tmp_path: Path) -> None:
    path = source(tmp_path)
    study = load(tmp_path, {"words": {"python": f"{path}:words"}})
    path.unlink()
    assert list(validated(Study, study.model_dump_json(), "study.json").cells) == list(study.cells)


def test_metrics_are_columns_and_a_study_without_any_is_measured_as_before(tmp_path: Path) -> None:
    path = source(tmp_path)
    assert "metrics" not in Evaluation().model_dump_json()
    block = {"title": "One", "grids": [{"seed": 1}], "columns": ["own_words", "own_words_se"]}
    metrics = {"metrics": {"words": {"python": f"{path}:words"}}}
    study = load(tmp_path, evaluation=metrics, experiments={"one": block})
    check_columns(study)
    assert "words" in validated(Study, study.model_dump_json(), "study.json").evaluation.metrics
    with pytest.raises(ConfigError, match=r'own_word.*did you mean "own_words"'):
        check_columns(load(tmp_path, evaluation=metrics, experiments={"one": block | {"columns": ["own_word"]}}))


def test_a_base_is_measured_by_the_code_of_its_cells_and_as_before_without_any(tmp_path: Path) -> None:
    path = source(tmp_path)
    rewards = {"words": {"python": f"{path}:words"}, "both": {"sum": ["words", "happy_count"]}}
    plain = load(tmp_path)
    (base_id,) = plain.base_recipes
    assert plain.base_evaluation(base_id).model_dump_json() == plain.evaluation.model_dump_json()
    unused = load(tmp_path, rewards, {"reward": "happy_count"})
    assert unused.base_evaluation(base_id).model_dump_json() == plain.evaluation.model_dump_json()
    used = load(tmp_path, rewards, {"reward": ["both", "happy_count"]}).base_evaluation(base_id)
    assert [code.name for code in used.own] == ["both", "words"]
    assert validated(BaseEvaluation, used.model_dump_json(), "--settings") == used


@pytest.mark.parametrize(
    ("rewards", "grid", "message"),
    [
        ({"dogs": {"python": "absent.py:score"}}, None, r"rewards.dogs.python: read 'absent.py:score'; no such file"),
        ({"dogs": {"python": "dogs.py"}}, None, r"rewards.dogs.python: read 'dogs.py'; "),
        ({"dogs": {}}, None, r"rewards.dogs.python: read None; write either python: FILE.py:FUNCTION or sum"),
        ({"dogs": {"sum": ["happy_count"], "reward_weights": [1, 2]}}, None, r"reward_weights: .*one number for each"),
        ({"dogs": {"sum": ["happy_counts"]}}, None, r'no such reward as .happy_counts.*did you mean "happy_count"'),
        ({"happy_count": {"sum": ["happy_binary"]}}, None, r"happy_count: rewardgrid has a reward of this name"),
        (None, {"reward": "dogs"}, r"grids\[0\].reward: read 'dogs'; write one of .* or a name that `rewards` defines"),
        (
            None,
            {"reward": "happy_count", "method": "routing", "rank": 2, "detector": "crowd"},
            r"detector: read 'crowd'; write a name that `detectors` defines",
        ),
        (None, {"base_reward": "happy_count"}, r"base_reward: .*remove it, or write \"method: routing\""),
    ],
)
def test_mistakes_say_what_to_write(rewards: Any, grid: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, rewards, grid)


def test_a_detector_takes_the_place_of_the_count_of_happy(tmp_path: Path) -> None:
    path = source(tmp_path)
    grid = {"method": "routing", "rank": 2, "reward": "sentence_length_10", "detector": "long"}
    detectors = {"long": {"python": f"{path}:long"}}
    (cell,) = load(tmp_path, None, grid, detectors=detectors).grid["one"]
    assert (cell.hack_threshold, cell.detector, [code.name for code in cell.own]) == (None, "long", ["long"])
    with pytest.raises(ConfigError, match="hack_threshold: read 2; remove it: detector long decides"):
        load(tmp_path, None, grid | {"hack_threshold": 2}, detectors=detectors)
