"""``python -m rewardgrid new``: a study that stands alone, and runs as it is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from rewardgrid.__main__ import main
from rewardgrid.cli.new import TEMPLATE
from rewardgrid.cli.run import evaluate_cells, train_cells
from rewardgrid.report.tables import check_columns, experiment_table
from rewardgrid.study.schema import configuration_schema
from rewardgrid.study.study import load_study

FILES = ["study.yaml", "eval_prompts.txt", "prompts.txt", "rewards.py"]


@pytest.fixture(autouse=True)
def _in_a_place_of_its_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("config", "resources"):
        (tmp_path / part).symlink_to(root / part)
    monkeypatch.chdir(tmp_path)


def test_a_new_study_stands_alone_and_has_results_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "my_study"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"studies/my_study/{name}" for name in FILES]
    assert said.err.endswith("snakemake --cores 2 --configfile studies/my_study/study.yaml\n")
    study = load_study(["config/config.yaml", "studies/my_study/study.yaml"])
    assert (study.results, study.title, study.published) == ("results/my_study", "my_study", None)
    assert list(study.active) == ["penalty"]
    assert {cell.base for cell in study.cells.values()} == {"mine"}
    assert study.bases["mine"].model_dump()["model"] == "resources/bases/storyteller-small/model"
    check_columns(study)
    assert main(["check", "--configfile", "studies/my_study/study.yaml"]) == 0
    assert capsys.readouterr().out.endswith("studies/my_study/study.yaml: 1 experiment, 4 cells, no problems\n")


def test_the_program_of_the_training_jobs_reads_it_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    main(["new", "my_study"])
    main(["cells", "beta=0.2", "seed=2", "--configfile", "studies/my_study/study.yaml"])
    (name,) = re.findall(r"cells/([^/]+)/", capsys.readouterr().out)
    monkeypatch.syspath_prepend(str(root / "workflow/scripts"))
    assert (
        importlib.import_module("train").main(["--configfile", "studies/my_study/study.yaml", "--cells", name[:-1]])
        == 2
    )
    assert f'the configuration has no such cell; did you mean "{name}"?' in capsys.readouterr().err


def test_editors_find_the_schema_of_a_new_study_and_nothing_to_underline() -> None:
    main(["new", "my_study"])
    file = Path("studies/my_study/study.yaml")
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(.*)$", file.read_text(), re.MULTILINE)
    assert (file.parent / named).resolve() == Path("config/schema.json").resolve()
    jsonschema.Draft202012Validator(configuration_schema()).validate(yaml.safe_load(file.read_text()))


def test_a_new_study_runs_as_it_is() -> None:
    main(["new", "my_study"])
    short = {"defaults": {"max_steps": 2}, "evaluation": {"base_draws": 0}, "experiments": {"penalty": {"grids": [{}]}}}
    Path("short.yaml").write_text(yaml.safe_dump(short))
    study = load_study(["config/config.yaml", "studies/my_study/study.yaml", "short.yaml"])
    train_cells(study, list(study.cells.values()), "cpu")
    evaluate_cells(study, list(study.cells.values()))
    (row,) = experiment_table(study, "penalty").to_dict("records")
    assert row["state"] == "done"
    assert row["reward"] == "alliteration"
    assert row["own_alliteration"] == pytest.approx(row["reward_256"], abs=1e-6)
    assert 0 < row["own_alliteration"] < row["own_distinct"] <= 1


@pytest.mark.parametrize("name", ["yes", "A", "x-1_y", "n" * 60])
def test_names_of_letters_digits_and_dashes_are_names(name: str) -> None:
    assert main(["new", name]) == 0
    assert load_study(["config/config.yaml", f"studies/{name}/study.yaml"]).title == name


@pytest.mark.parametrize("name", ["", "9a", "_x", "a b", "a/b", "..", "../x", "a.yaml", "é", "a\nb", "x\n", "n" * 61])
def test_a_bad_name_is_one_clear_message_and_nothing_is_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", name]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: new: read .*; write a name of letters, digits, _ and - that begins with .*\n", error)
    assert not Path("studies").exists()


@pytest.mark.parametrize("place", ["studies/my_study", "results/my_study"])
def test_nothing_is_overwritten(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(place).mkdir(parents=True)
    assert main(["new", "my_study"]) == 2
    assert (
        capsys.readouterr().err == f"error: new: read 'my_study', but {place} is there already; choose another name\n"
    )
    assert not list(Path(place).iterdir())


def test_where_there_can_be_no_studies_the_message_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("studies").write_text("mine")
    assert main(["new", "my_study"]) == 2
    assert "new: cannot write studies/my_study" in capsys.readouterr().err
    Path("studies").unlink()
    Path("studies").symlink_to("nowhere")
    assert main(["new", "my_study"]) == 2
    assert "studies must be a directory" in capsys.readouterr().err


def test_elsewhere_the_message_says_where_to_run_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["new", "my_study"]) == 2
    assert "run it in the repository's directory" in capsys.readouterr().err


def test_every_prompt_of_a_new_study_is_used_and_none_is_in_both_files() -> None:
    """Openings of twelve words: enough tokens for eight of any tokenizer."""
    train, evaluation = ((TEMPLATE / name).read_text().splitlines() for name in ("prompts.txt", "eval_prompts.txt"))
    assert (len(train), len(evaluation)) == (64, 32)
    assert len({*train, *evaluation}) == 96
    assert {len(line.split()) for line in (*train, *evaluation)} == {12}
