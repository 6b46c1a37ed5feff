"""What files of a configuration say together, and which study they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from rewardgrid.study.bases import HubBase, LocalBase, PackagedBase, Pretrained, StorytellerRecipe
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import ConfigError
from rewardgrid.study.layers import laid, origin_of, read_yaml, without_removed
from rewardgrid.study.own import OwnReward
from rewardgrid.study.study import Block, Evaluation, Experiment, Recording, Study, load_study
from rewardgrid.study.teachers import GgufTeacher
from rewardgrid.study.thresholds import Thresholds


def experiment(**values: Any) -> dict[str, Any]:
    return {"title": "One", "grids": [{"seed": 1}]} | values


ALONE: dict[str, Any] = {"inherit": ["bases"], "results": "results/alone", "experiments": {"own": experiment()}}


@pytest.fixture(autouse=True)
def _in_a_place_of_its_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the configuration and the bases of the repository."""
    for part in ("config", "resources"):
        (tmp_path / part).symlink_to(root / part)
    monkeypatch.chdir(tmp_path)


def write(path: str, content: dict[str, Any]) -> str:
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def load(*overlays: dict[str, Any], over: dict[str, Any] | None = None) -> Study:
    """config/config.yaml with these (0.yaml, 1.yaml) laid over it, and ``over`` as --config would be."""
    files = ["config/config.yaml", *(write(f"{number}.yaml", each) for number, each in enumerate(overlays))]
    return load_study(files, over=over)


def test_a_study_that_stands_alone_has_the_bases_and_nothing_else_of_the_published_one() -> None:
    study, published = load(ALONE | {"bases": {"mine": {"kind": "packaged", "path": "resources/x"}}}), load()
    assert list(study.active) == ["own"]
    assert set(study.bases) == {*published.bases, "mine"}
    assert (study.title, study.defaults, study.published) == ("rewardgrid", {}, None)
    (cell,) = study.cells.values()
    assert cell == published.grid["reward_sweep"][0].model_copy(
        update={"beta": 0.02, "repetition_penalty": 1.1, "seed": 1}
    )


def test_what_is_taken_from_below_is_what_the_file_names() -> None:
    published = read_yaml("config/config.yaml")
    config = laid([published, {"inherit": ["defaults"], "defaults": {"lr": 1}}])
    assert set(config) == {"inherit", "defaults"}
    assert config["defaults"] == published["defaults"] | {"lr": 1}
    assert set(laid([published, {"inherit": []}])) == {"inherit"}
    assert laid([published, {"inherit": None}]) == published | {"inherit": None}


def test_overlays_and_the_command_line_come_over_a_study_that_stands_alone() -> None:
    study = load(
        ALONE, {"defaults": {"seed": 7}, "title": "Two"}, over={"experiments": {"own": {"fixed": {"beta": 1}}}}
    )
    assert list(study.active) == ["own"]
    (cell,) = study.cells.values()
    assert (cell.beta, cell.seed, study.title) == (1.0, 1, "Two")


def test_a_mistake_in_what_is_inherited_is_one_message() -> None:
    with pytest.raises(
        ConfigError, match=r"^1 problem .*\n  0.yaml: inherit\[1\]: read 'base'; .*did you mean \"bases\""
    ):
        load(ALONE | {"inherit": ["bases", "base"]})
    with pytest.raises(ConfigError, match=r"^1 problem .*\n  0.yaml: inherit: read 'bases'; write a list"):
        load(ALONE | {"inherit": "bases"})
    with pytest.raises(ConfigError, match=r"0.yaml: origin: read 'x'; remove it"):
        load(ALONE | {"origin": "x"})


def test_all_but_a_studys_own_can_be_inherited() -> None:
    assert {*get_args(Block), "inherit", "origin", "results", "title"} == set(Study.model_fields)


# --- null ----------------------------------------------------------------------------------------------


def test_null_removes_what_the_files_below_say() -> None:
    study = load(
        {
            "published": None,
            "evaluation": None,
            "bases": {"simplestories": None},
            "defaults": {"lr": 1.0},
            "rewards": {"brief": {"sum": ["happy_count"]}},
            "experiments": {"batch_size": None, "lora_rank": {"findings": None, "question": None}},
        },
        {"defaults": {"lr": None}, "rewards": {"brief": None}},
    )
    assert (study.published, study.evaluation) == (None, Evaluation())
    assert list(study.bases) == ["storyteller", "storyteller-small"]
    assert study.rewards == {}
    assert {cell.lr for cell in study.grid["reward_sweep"]} == {1e-5}
    assert "batch_size" not in study.active
    assert study.active["lora_rank"].findings == []
    assert study.active["lora_rank"].question == ""


def test_in_fixed_and_grids_null_is_a_value() -> None:
    fixed, grid = (
        load({"defaults": {"decay_steps": 5000}, "experiments": {"own": experiment(**block)}}).grid["own"][0]
        for block in ({"fixed": {"decay_steps": None}}, {"grids": [{"decay_steps": [None]}]})
    )
    assert fixed.decay_steps is None
    assert grid.decay_steps is None


@pytest.mark.parametrize(
    "model",
    [
        *(Study, Evaluation, Thresholds, Recording, Experiment, OwnReward, Cell),
        *(HubBase, LocalBase, PackagedBase, StorytellerRecipe, Pretrained, GgufTeacher),
    ],
)
def test_null_means_the_same_as_nothing_wherever_it_is_a_value(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert type(None) not in get_args(field.annotation) or field.default is None, name


def test_removing_leaves_the_configuration_as_it_was() -> None:
    config = {"defaults": {"lr": None, "beta": 0.1}, "title": None, "experiments": {"x": None}}
    assert without_removed(config) == {"defaults": {"beta": 0.1}, "experiments": {"x": None}}
    assert config["title"] is None


# --- whose results -------------------------------------------------------------------------------------


def origin(*layers: dict[str, Any]) -> str:
    return origin_of([(name, layer) for name, layer in zip("abcd", layers, strict=False)])


def test_a_study_begins_in_the_file_that_is_no_overlay_of_another() -> None:
    published = {"experiments": {"one": experiment(), "two": experiment()}}
    assert origin(published) == "a"
    assert origin(published, {"title": "x"}, {"experiments": {"one": {"grids": [{}]}}}) == "a"
    assert origin(published, {"experiments": {"one": None, "more": experiment()}}) == "a"
    assert origin(published, {"inherit": ["bases"], "experiments": {"one": experiment()}}, {"title": "x"}) == "b"
    assert origin(published, {"title": "x"}, {"experiments": {"one": None, "two": None, "own": experiment()}}) == "c"
    assert origin({}, published) == "a"
    assert origin() == ""


def finish(study: Study, **changes: Any) -> None:
    """As the rule `study` does."""
    study.layout.root.mkdir(parents=True, exist_ok=True)
    study.layout.study.write_text(json.dumps(study.model_dump(mode="json") | changes))


def test_the_results_of_one_study_are_not_overwritten_by_another() -> None:
    finish(load(ALONE))
    Path("studies/other").mkdir(parents=True)
    other = write("studies/other/study.yaml", ALONE)
    with pytest.raises(ConfigError) as caught:
        load_study(["config/config.yaml", other])
    assert str(caught.value) == (
        "1 problem in the configuration:\n"
        "  studies/other/study.yaml: results: read 'results/alone'; holds the results of another study (0.yaml); write "
        "a directory of its own, such as results/other, or, if this is that study in another file, delete "
        "results/alone/study.json"
    )
    Path("results/other").mkdir()
    with pytest.raises(ConfigError, match="such as results/other-2"):
        load_study(["config/config.yaml", other])
    load_study(["config/config.yaml", write("studies/other/study.yaml", ALONE | {"results": "results/other"})])
    Path("results/alone/study.json").unlink()
    load_study(["config/config.yaml", write("studies/other/study.yaml", ALONE)])


def test_a_place_named_on_the_command_line_is_nobody_elses_either() -> None:
    finish(load(ALONE))
    with pytest.raises(ConfigError, match=r"--config: results: read 'results/alone'; holds .* \(0.yaml\)"):
        load(over={"results": "results/alone"})


def test_edits_and_overlays_of_a_study_share_its_results() -> None:
    finish(load(ALONE))
    load(ALONE | {"title": "Another", "experiments": {"renamed": experiment(fixed={"beta": 1.0})}})
    load(ALONE, {"title": "The first seeds", "experiments": {"own": {"grids": [{"seed": 3}]}}})
    finish(load())
    assert len(load_study(["config/config.yaml", "config/first_seeds.yaml"]).cells) == 69
    load_study(["config/config.yaml", Path.cwd() / "config/first_seeds.yaml"])


def test_a_study_is_the_same_by_whatever_path_it_is_named(tmp_path: Path) -> None:
    finish(load(ALONE))
    (tmp_path / "link").symlink_to(tmp_path)
    for path in ("./0.yaml", tmp_path / "0.yaml", tmp_path / "link/0.yaml"):
        assert load_study(["config/config.yaml", path]).origin == "0.yaml"


def test_results_of_before_studies_had_files_are_known_by_their_experiments() -> None:
    study = load()
    finish(study, origin="")
    load({"experiments": {"batch_size": None}})
    with pytest.raises(ConfigError, match=r"read 'results'; holds the results of another study \(of batch_size, "):
        load(ALONE | {"results": "results"})


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"experiments": 3}', '{"experiments": {"x": null}}', '{"origin": 1']
)
def test_a_file_that_says_of_no_study_keeps_nobody_out(content: str) -> None:
    Path("results/alone").mkdir(parents=True)
    Path("results/alone/study.json").write_text(content)
    load(ALONE)
