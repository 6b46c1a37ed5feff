"""What a dry run says about the state of a study and the time that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardgrid.study.bases import HubBase, LocalBase, PackagedBase
from rewardgrid.study.cell import METRICS_VERSION, Cell
from rewardgrid.study.files import write_json, write_text
from rewardgrid.study.forecast import duration, forecast, measured, megaparameters, rule_of_thumb, workload
from rewardgrid.study.layout import done
from rewardgrid.study.study import Experiment, Study


def study(tmp_path: Path, **values: object) -> Study:
    experiment = Experiment(title="One", fixed={"max_steps": 100, **values}, grids=[{"seed": [1, 2, 3]}])
    return Study(
        results=str(tmp_path),
        title="Small",
        bases={"storyteller": HubBase()},
        experiments={"one": experiment},
    )


def finish(study: Study, number: int, seconds: float, steps: int = 100) -> Cell:
    cell = study.grid["one"][number]
    write_json(study.layout.train(cell.name) / "status.json", {"seconds": seconds, "steps_done": steps})
    return cell


def test_the_state_of_a_cell_is_read_from_its_files(tmp_path: Path) -> None:
    some = study(tmp_path)
    cell = some.grid["one"][0]
    assert done(some.layout, cell) == "waiting"
    some.layout.checkpoints(cell.name).mkdir(parents=True)
    assert done(some.layout, cell) == "started"
    finish(some, 0, 50)
    assert done(some.layout, cell) == "trained"
    write_text(some.layout.metrics(cell.name), '{"version": 0}')
    assert done(some.layout, cell) == "trained"  # measured by an older rewardgrid
    write_text(some.layout.metrics(cell.name), f'{{"version": {METRICS_VERSION}}}')
    assert done(some.layout, cell) == "done"


def test_time_left_is_measured_on_finished_cells_of_the_same_shape(tmp_path: Path) -> None:
    some = study(tmp_path)
    finish(some, 0, 50)
    finish(some, 1, 150)
    text = forecast(some).text
    assert "Small: 3 cells (2 trained, 1 waiting)." in text
    # 100 steps at the mean of 0.5 and 1.5 seconds
    assert "about 2 min one after another (cells: 1 by the mean seconds per step of finished cells" in text


def test_what_a_checkpoint_holds_is_not_left(tmp_path: Path) -> None:
    some = study(tmp_path)
    finish(some, 0, 50)
    (some.layout.checkpoints(some.grid["one"][1].name) / "step-000060").mkdir(parents=True)
    found = forecast(some)
    assert {name: rest.steps for name, rest in found.rests.items()} == {
        some.grid["one"][1].name: 40,
        some.grid["one"][2].name: 100,
    }
    assert "about 70 s one after another" in found.text


def test_a_diverged_cell_counts_the_steps_it_made(tmp_path: Path) -> None:
    some = study(tmp_path)
    cell = finish(some, 0, 50, steps=10)
    assert measured(some.layout, some.cells.values()) == {workload(cell): 5.0}


@pytest.mark.parametrize("content", ["", "{}", '{"seconds": 1, "steps_done": 0}', '{"seconds": null, "steps_done": 3}'])
def test_a_status_that_cannot_be_used_is_left_out(tmp_path: Path, content: str) -> None:
    some = study(tmp_path)
    write_text(some.layout.train(some.grid["one"][0].name) / "status.json", content)
    assert measured(some.layout, some.cells.values()) == {}


def test_without_finished_cells_a_rule_of_thumb_is_used_and_said_to_be(tmp_path: Path) -> None:
    some = study(tmp_path)
    assert "(cells: 3 by a rule of thumb for one CPU thread)" in forecast(some).text
    cell = some.grid["one"][0]
    twice = study(tmp_path, max_new_tokens=256).grid["one"][0]
    assert rule_of_thumb(some, twice) == pytest.approx(2 * rule_of_thumb(some, cell))


def test_a_finished_study_has_no_time_left(tmp_path: Path) -> None:
    some = study(tmp_path)
    for number in range(3):
        write_text(some.layout.metrics(finish(some, number, 1).name), f'{{"version": {METRICS_VERSION}}}')
    assert forecast(some).text == "Small: 3 cells (3 done)."


def test_only_what_changes_the_time_of_a_step_changes_the_shape() -> None:
    cell = Cell()
    assert workload(cell) == workload(Cell(seed=1, lr=1e-3, beta=0.1, max_steps=7, repetition_penalty=1))
    for other in (
        Cell(batch_size=64),
        Cell(max_new_tokens=64),
        Cell(method="lora", rank=1),
        Cell(engine="trl"),
    ):
        assert workload(cell) != workload(other)


def test_the_size_of_a_base_is_read_where_its_files_are_here(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    write_json(tmp_path / "model/config.json", sizes | {"intermediate_size": 341, "vocab_size": 4096})
    # 4 x (128*(128 + 64 + 64 + 128) + 3*128*341 + 2*128) + 4096*128 + 128, tied embeddings
    assert megaparameters(PackagedBase(path=str(tmp_path))) == pytest.approx(1.245824)
    assert megaparameters(LocalBase(model=str(tmp_path / "model"), stories="s.txt")) == pytest.approx(1.245824)


def test_a_base_whose_size_cannot_be_read_counts_like_the_published_one(tmp_path: Path) -> None:
    assert megaparameters(HubBase()) == megaparameters(PackagedBase(path=str(tmp_path / "nowhere"))) == 1.25
    write_json(tmp_path / "config.json", {"model_type": "another", "n_embd": 128})
    assert megaparameters(LocalBase(model=str(tmp_path), stories="s.txt")) == 1.25


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h"), (2e5, "2.3 d")],
)
def test_durations_are_in_one_readable_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
