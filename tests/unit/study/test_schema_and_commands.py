"""``python -m rewardgrid`` and the schema that it writes for editors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from rewardgrid.__main__ import main
from rewardgrid.cli.cells import select
from rewardgrid.cli.reference import keys, reference
from rewardgrid.report.columns import COLUMNS
from rewardgrid.study.bases import HubBase, LocalBase, PackagedBase, Pretrained, StorytellerRecipe
from rewardgrid.study.cell import REWARDS, ROUTING_DEFAULTS, Cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.own import OwnReward
from rewardgrid.study.schema import configuration_schema, schema_text
from rewardgrid.study.study import (
    TARGETS,
    WRITABLE,
    Evaluation,
    Experiment,
    FigureName,
    FindingName,
    Recording,
    Study,
    load_study,
)
from rewardgrid.study.targets import asked_for, check_request, ready
from rewardgrid.study.thresholds import Thresholds


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def study(root: Path) -> Study:
    return load_study([root / "config/config.yaml"])


def test_the_schema_beside_the_configuration_is_the_models_own(root: Path) -> None:
    """If this fails, run `python -m rewardgrid schema`."""
    assert (root / "config/schema.json").read_text(encoding="utf-8") == schema_text()


@pytest.fixture(scope="module")
def written() -> str:
    return reference()


def test_the_reference_is_that_of_the_code(root: Path, written: str) -> None:
    """If this fails, run `python -m rewardgrid reference`."""
    assert (root / "docs/reference.md").read_text(encoding="utf-8") == written


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Study, {*Study.model_fields} - {"origin"}),
        (Cell, set(WRITABLE)),
        *((model, {*model.model_fields}) for model in (Experiment, Evaluation, Recording, StorytellerRecipe)),
        *((model, {*model.model_fields} - {"kind"}) for model in (HubBase, LocalBase, PackagedBase, Pretrained)),
        (OwnReward, {"python", "sum", "reward_weights"}),
    ],
)
def test_every_key_is_in_the_reference_with_its_meaning(model: type[BaseModel], names: set[str], written: str) -> None:
    found = keys(model, names, ROUTING_DEFAULTS if model is Cell else None)
    assert found in written
    rows = {line.split("`")[1]: line for line in found.splitlines()[2:]}
    assert set(rows) == names
    for name, row in rows.items():
        assert (model.model_fields[name].description or "?").replace("|", r"\|") in row


def test_the_reference_has_every_reward_finding_figure_column_and_limit(written: str) -> None:
    tables = {
        "Rewards": set(REWARDS),
        "Findings": set(get_args(FindingName)),
        "Figures": set(get_args(FigureName)),
        "Columns": {name for name in COLUMNS if name not in Cell.model_fields and "_only_" not in name},
        "Limits of the verdict": set(Thresholds.model_fields),
    }
    for heading, names in tables.items():
        section = written.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")} == names


@pytest.mark.parametrize(
    "row",
    [
        "| `lr` | number > 0 | `1e-5` | peak learning rate",
        "| `epsilon` | number > 0, < 1 | `0.2` |",
        "| `seed` | whole number ≥ 0 | `42` |",  # below 2**32, which nobody means
        "| `prompt_eos` | `true`, `false` | `false` |",
        "| `routing_mode` | `shared`, `exclusive` | routing: `shared` |",
        "| `detector` | text |  |",
        "| `bases` | block | required |",
        "| `reward_weights` | list of numbers |  |",
        "| `grids` | list of blocks | `[{}]` |",
        "| `completion_length` | ≤ 0.5 | ≤ 0.25 |",
        "| `jaccard` | ≥ 1.3 | ≥ 2.2 |",
        r"| `sentence_length_10_smooth` | mean over sentences of 1 - 0.2 \|10 - tokens\|,",
    ],
)
def test_a_row_of_the_reference_reads_as_people_say_it(row: str, written: str) -> None:
    assert f"\n{row}" in written


@pytest.mark.parametrize("name", ["config.yaml", "quick.yaml"])
def test_both_configurations_obey_the_schema_that_their_first_line_names(root: Path, name: str) -> None:
    text = (root / "config" / name).read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    jsonschema.Draft202012Validator(configuration_schema()).validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "inherit: [base]",
        "defaults: {bete: 1}",
        "defaults: {beta: [1, 2]}",
        "experiments: {x: {fixed: {seed: many}}}",
        "experiments: {x: {grids: [{rnak: 1}]}}",
        "experiments: {x: {grids: [{rank: []}]}}",
        "experiments: {x: {findings: [none]}}",
        "titel: x",
    ],
)
def test_the_schema_finds_what_editors_should_underline(text: str) -> None:
    assert not jsonschema.Draft202012Validator(configuration_schema()).is_valid(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "bases: {simplestories: null}",
        "rewards: {dogs: null}",
        "evaluation: {metrics: {dogs: null}}",
        "evaluation: null",
        "published: null",
        "experiments: {x: null}",
        "inherit: [bases]",
    ],
)
def test_the_schema_knows_what_null_removes(text: str) -> None:
    assert jsonschema.Draft202012Validator(configuration_schema()).is_valid(yaml.safe_load(text))


def test_every_key_of_a_cell_is_explained_to_editors() -> None:
    for block in ("Values", "Grid"):
        properties = configuration_schema()["$defs"][block]["properties"]
        assert {"lr", "rank", "reward", "rh_eligible_frac"} <= set(properties)
        assert not {"base_recipe", "results_version"} & set(properties)
        assert all(field["description"] for field in properties.values())


def test_cells_are_chosen_by_experiment_and_values(study: Study) -> None:
    assert len(select(study, [])) == 157
    assert len(select(study, ["lora_rank"])) == 33
    chosen = select(study, ["lora_rank", "rank=1,2", "seed=42", "lr=3e-4"])
    assert {(cell.rank, cell.seed, cell.lr) for cell in chosen} == {(1, 42, 3e-4), (2, 42, 3e-4)}
    assert {cell.method for cell in select(study, ["routing_frac=null"])} == {"full", "lora"}
    assert len(select(study, ["batch_size", "lora_rank"])) == 37


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lora_rnk", 'no such experiment; did you mean "lora_rank"?'),
        ("xyz", "no such experiment; known: reward_sweep"),
        ("rnak=1", 'no such key of a cell; did you mean "rank"?'),
        ("rank=none", "cannot be a value of rank; write a valid integer"),
        ("method=laura", "cannot be a value of method; write 'full', 'lora' or 'routing'"),
        ("seed=5", "no cell has seed=5; the study has 157 cells"),
    ],
)
def test_a_choice_that_cannot_be_is_explained(study: Study, word: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        select(study, [word])


def test_into_a_pipe_cells_are_paths_to_give_to_snakemake(capsys: pytest.CaptureFixture[str], study: Study) -> None:
    assert main(["cells", "batch_size", "batch_size=128"]) == 0
    names = [cell.name for cell in study.grid["batch_size"] if cell.batch_size == 128]
    assert capsys.readouterr().out.splitlines() == [f"results/cells/{name}/evaluation/metrics.json" for name in names]


def test_an_overlay_changes_the_cells_that_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cells", "--configfile", "config/quick.yaml"]) == 0
    assert all(line.startswith("results/quick/cells/") for line in capsys.readouterr().out.splitlines())


def test_on_a_terminal_cells_are_a_table_of_what_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["cells", "batch_size"]) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if "state" in line)
    assert re.findall(r"\w+", head) == ["state", "rank", "lr", "batch_size", "cell"]


def test_mistakes_are_one_message_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["cells", "lora_rnk"]) == 2
    overlay = tmp_path / "bad.yaml"
    overlay.write_text("titel: x\n")
    assert main(["check", "--configfile", str(overlay)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 2
    assert "Traceback" not in captured.err


def test_check_tells_all_that_is_wrong_in_one_go(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "published").mkdir()
    overlay = tmp_path / "overlay.yaml"
    content = {
        "published": str(tmp_path / "published"),
        "bases": {"mine": {"kind": "local", "model": str(tmp_path / "none"), "stories": "none.txt"}},
        "experiments": {
            "one": {"title": "One", "grids": [{"beta": [1, 2]}], "columns": ["beta", "rewrad"]},
            "two": {"title": "Two", "grids": [{"lr": [0.1, 0.2], "beta": [1, 2]}], "by": ["beta"]},
            "three": {"title": "Three", "grids": [{"base": "mine"}]},
            "four": {"title": "Four", "grids": [{"rank": -1}]},
        },
    }
    overlay.write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setenv("REWARDGRID_GRES", "gpu:1,shard:2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    base = {"defaults": {"base": "mine"}, "experiments": {"zero": {"title": "Zero", "grids": [{"seed": 1}]}}}
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    assert main(["check", "--configfile", str(overlay)]) == 2
    text = capsys.readouterr().err
    for part in (
        "experiments.four.grids[0].rank",
        "experiments.one.columns: read 'rewrad'",
        "experiments.two.by",
        "reward_sweep.csv: (file)",
        "claims.yaml: (file)",
        "REWARDGRID_GRES",
        f"{tmp_path / 'none'}",
    ):
        assert part in text, text
    first, *rest = [line for line in text.splitlines() if not line.startswith("building")]
    assert first == f"error: {len(rest)} problems:"
    assert all(line.startswith("  ") for line in rest)


def test_check_counts_what_it_has_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "config/config.yaml: 14 experiments, 157 cells, no problems\n"


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        (
            "bases: {mine: {kind: local, model: nowhere, stories: s.txt}}",
            "overlay.yaml: bases.mine.model: read 'nowhere'; there",
        ),
        ("bases: {mine: {kind: local, model: config, stories: s.txt}}", "config/config.json: no such file"),
        ("bases: {mine: {kind: packaged, path: config}}", "bases.mine.path: read 'config'; there is no base"),
        (
            "bases: {mine: {kind: packaged, path: resources/bases/storyteller-small}}\nevaluation: {samples: 2000}",
            "base mine: has 1000 prompts, the evaluation needs 2000; write evaluation.samples: 1000",
        ),
    ],
)
def test_check_knows_a_base_that_is_missing_or_does_not_fit(
    overlay: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "overlay.yaml").write_text(
        f"{overlay}\ndefaults: {{base: mine}}\nexperiments: {{one: {{title: One, grids: [{{seed: 1}}]}}}}\n"
    )
    assert main(["check", "--configfile", str(tmp_path / "overlay.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_check_names_the_file_that_asks_for_an_unknown_column(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "above.yaml").write_text("title: Another\n")
    (tmp_path / "overlay.yaml").write_text("experiments: {lora_rank: {columns: [rank, final_rewrad]}}\n")
    assert main(["check", "--configfile", str(tmp_path / "overlay.yaml"), str(tmp_path / "above.yaml")]) == 2
    told = capsys.readouterr().err
    assert "overlay.yaml: experiments.lora_rank.columns: read 'final_rewrad'; no such column; did you mean" in told


def test_check_knows_published_figures_that_are_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "overlay.yaml").write_text("published: nowhere\n")
    assert main(["check", "--configfile", str(tmp_path / "overlay.yaml")]) == 2
    assert "nowhere/lora_rank.csv: (file): read None; no such file; check `published`" in capsys.readouterr().err
    (tmp_path / "overlay.yaml").write_text("published: null\n")
    assert main(["check", "--configfile", str(tmp_path / "overlay.yaml")]) == 0


def test_elsewhere_the_message_says_where_to_run_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 2
    assert "no such file; check the path, and run it in the repository's directory" in capsys.readouterr().err


def test_what_the_workflow_is_asked_for_must_be_there(study: Study) -> None:
    name = next(iter(study.cells))
    base = next(iter(study.base_recipes))
    sound = ["all", "lora_rank", "RESULTS.md", f"results/cells/{name}/train", f"./results/base/{base}/model", "docs/x"]
    check_request(study, sound, write=False)
    for target, message in {
        "lora_rnk": 'lora_rnk: no such target; did you mean "lora_rank"?',
        "result": 'did you mean "results"?',
        f"results/cells/{name}x/train": f'the configuration has no such cell; did you mean "{name}"?',
        "results/base/storyteller-0123456789/model": "the configuration has no such base",
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            check_request(study, [target], write=False)


def test_the_targets_of_a_command_are_told_from_its_options() -> None:
    words = [
        "--cores",
        "1",
        "all",
        "--config",
        "title=x",
        "--rerun-triggers",
        "mtime",
        "--configfile",
        "config/quick.yaml",
    ]
    for program in ("/venv/bin/snakemake", "/lib/snakemake/__main__.py"):
        assert asked_for([program, *words]) == ["all"]
    assert asked_for(["/venv/bin/pytest", "tests"]) == []


def test_results_that_cannot_be_written_are_told_before_anything_runs(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = study.model_copy(update={"results": str(tmp_path / "a/b")})
    check_request(elsewhere, [], write=True)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    check_request(elsewhere, [], write=False)
    with pytest.raises(UserError, match=f"results: read .*/a/b', but {tmp_path} cannot be written"):
        check_request(elsewhere, [], write=True)


def test_no_experiment_can_have_the_name_of_a_rule(root: Path) -> None:
    text = "".join(path.read_text() for path in (root / "Snakefile", *(root / "rules").glob("*.smk")))
    assert sorted(re.findall(r"^rule (\w+):", text, re.MULTILINE)) == sorted(TARGETS)


def test_listing_cells_needs_no_numerical_library(root: Path) -> None:
    code = (
        "import sys; from rewardgrid.__main__ import main; main(['cells'])\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'pyarrow', 'rich', 'snakemake') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_a_run_leaves_is_named_by_its_targets(study: Study) -> None:
    report = ["results/RESULTS.md", "results/report.html"]
    assert ready(study, []) == ready(study, ["all"]) == ready(study, ["results_partial"]) == report
    assert ready(study, ["lora_rank"]) == ["results/tables/lora_rank.parquet", "results/figures/lora_rank"]
    assert ready(study, ["results/cells.tsv", "bases", "all"]) == ["results/cells.tsv", *report]
