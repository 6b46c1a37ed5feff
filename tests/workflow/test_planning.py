"""What a dry run plans and says, before anything has run."""

from __future__ import annotations

import re
import time
from copy import deepcopy
from pathlib import Path

import pytest

from rewardgrid.study.files import read_json
from tests.workflow.project import MICRO, Project, make_project


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Project:
    return make_project(root, tmp_path / "a project")


@pytest.fixture(scope="module")
def published(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A checkout with the published study's configuration, for dry runs only."""
    project = make_project(root, tmp_path_factory.mktemp("published"))
    for name in ("config.yaml", "quick.yaml"):
        (project.directory / "config" / name).write_bytes((root / "config" / name).read_bytes())
    for name in ("storyteller", "storyteller-small"):  # what the identity of a base comes from
        package = f"resources/bases/{name}/provenance.json"
        (project.directory / package).parent.mkdir(parents=True)
        (project.directory / package).write_bytes((root / package).read_bytes())
    return project


def test_the_published_study_is_planned_in_seconds(published: Project) -> None:
    start = time.monotonic()
    text = published.run("--dry-run", "--cores", "1").stdout
    assert time.monotonic() - start < 20
    assert "jobs: 157 train, 157 evaluate, " in text
    assert ", 1 base, " in text
    assert ", 1 evaluate_base, " in text
    assert max(map(len, text.splitlines())) < 250
    assert text.count(": 157 cells (157 waiting).") == 1
    assert "Training left: about " in text
    assert not (published.directory / "results").exists()


def test_the_default_profile_is_used_beneath_any_other(published: Project) -> None:
    assert "profiles/default for setting" in published.run("--dry-run", "--cores", "1").stdout
    text = published.run("--dry-run", "--verbose", "--profile", "profiles/quick").stdout
    assert "profiles/quick and workflow specific profile profiles/default" in text
    assert "results/quick/RESULTS.md" in text


@pytest.mark.parametrize("profile", ["local", "gpu", "slurm"])
def test_every_profile_plans_the_whole_study(published: Project, profile: str) -> None:
    assert published.plan("--profile", f"profiles/{profile}")["train"] == 157


@pytest.mark.parametrize("name", ["all", "any", "input", "12-3"])
def test_partitions_and_accounts_are_texts_even_where_they_are_python(
    name: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", name)
    monkeypatch.setenv("SBATCH_PARTITION", name)
    monkeypatch.setenv("REWARDGRID_GRES", "gpu:a100:1")
    text = project.run("--dry-run", "--verbose", "--profile", "profiles/slurm", "sweep").stdout
    (train, *_) = re.findall(r"^rule train:\n(?: .*\n)*? +resources: (.*)$", text, re.MULTILINE)
    wanted = {f"slurm_account={name}", f"slurm_partition={name}", "gres=gpu:a100:1", "slurm_extra=--signal=USR1@60"}
    assert wanted <= set(train.split(", "))
    monkeypatch.delenv("SBATCH_PARTITION")
    monkeypatch.setenv("REWARDGRID_GPU_PARTITION", name)
    text = project.run("--dry-run", "--verbose", "--profile", "profiles/slurm", "sweep").stdout
    assert text.count(f"slurm_partition={name}") == text.count("\nrule train:") == 2


def test_a_resource_that_the_plugin_refuses_is_told_before_anything_is_planned(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDGRID_GRES", "gpu:1,shard:2")
    done = project.run("--dry-run", "--profile", "profiles/slurm", check=False)
    assert done.returncode == 1
    assert "REWARDGRID_GRES: read 'gpu:1,shard:2'; write one resource" in done.stdout
    assert "Traceback" not in done.stdout


def test_paths_that_snakemake_reads_otherwise_than_they_are_written_are_targets(project: Project) -> None:
    for path in ("./results/tables/sweep.parquet", "results//tables/sweep.parquet", "results/figures/sweep/"):
        assert project.plan(path)["table"] == 1


def test_an_experiment_is_a_target_with_its_own_cells_only(published: Project) -> None:
    plan = published.plan("batch_size")
    assert plan["train"] == plan["evaluate"] == 6
    assert plan["table"] == plan["figures"] == 1


def test_the_storyteller_is_made_in_shards_and_only_when_asked_for(published: Project) -> None:
    overlay = published.directory / "config" / "untold.yaml"
    overlay.write_text("storyteller: {told: null, tokens: 0.3M}\n")
    plan = published.plan("storyteller", "--configfile", "config/untold.yaml")
    assert plan == {"teacher": 1, "tell": 4, "sift": 1, "make_storyteller": 2, "storyteller": 1}
    assert not {"teacher", "tell", "sift", "make_storyteller"} & set(published.plan("all"))


def test_the_stories_that_come_with_rewardgrid_need_no_teacher(published: Project, root: Path) -> None:
    (published.directory / "resources/stories").symlink_to(root / "resources/stories")
    assert published.plan("storyteller", "--config", "storyteller={tokens: 1M}") == {
        "sift": 1,
        "make_storyteller": 2,
        "storyteller": 1,
    }


def test_a_study_that_stands_alone_is_planned_without_the_published_one(published: Project) -> None:
    (published.directory / "alone.yaml").write_text(
        "inherit: [bases]\nresults: results/alone\ndefaults: {base: storyteller-small}\n"
        "experiments: {own: {title: Own, grids: [{seed: [1, 2]}]}}\n"
    )
    whole = {"base": 1, "evaluate_base": 1, "train": 2, "evaluate": 2, "table": 1, "figures": 1}
    report = {"study": 1, "index": 1, "findings": 1, "page": 1, "results": 1}
    assert published.plan("--configfile", "alone.yaml") == whole | report
    words = ["--configfile", "alone.yaml", "--config", "experiments={own: {grids: [{seed: 1}]}}"]
    assert published.plan(*words)["train"] == 1


def test_bases_are_a_target_without_training(published: Project) -> None:
    assert published.plan("bases") == {"base": 1, "evaluate_base": 1, "bases": 1}


def test_one_cell_needs_its_own_training_only(published: Project) -> None:
    study = published.study
    plan = published.plan(str(study.layout.metrics(study.grid["lora_rank"][0].name)))
    assert plan == {"study": 1, "base": 1, "evaluate_base": 1, "train": 1, "evaluate": 1}


@pytest.mark.parametrize("base", ["simplestories", "storyteller-small"])
def test_one_rule_brings_in_a_base_wherever_it_comes_from(published: Project, base: str) -> None:
    text = published.run("-n", "--verbose", "--cores", "1", "bases", "--config", f"defaults={{base: {base}}}").stdout
    assert text.count("\nrule base:") == 1
    assert f"wildcards: base={base}-" in text


def test_mistakes_are_told_once_and_without_a_traceback_before_anything_runs(project: Project) -> None:
    wrong = deepcopy(MICRO)
    wrong["defaults"]["bete"] = 1
    wrong["experiments"]["sweep"]["columns"] = ["rnak"]
    project.configure(wrong)
    overlay = project.directory / "config" / "overlay.yaml"
    overlay.write_text("experiments: {shared: {grids: [{batch_size: 5}]}}\n")
    done = project.run("--cores", "1", "--configfile", "config/overlay.yaml", check=False)
    assert done.returncode == 1
    assert "2 problems in the configuration" in done.stdout
    assert 'config/config.yaml: defaults.bete: read 1; unknown key; did you mean "beta"?' in done.stdout
    assert "config/overlay.yaml: experiments.shared.grids[0].batch_size: read 5" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (project.directory / "results").exists()


def test_an_unknown_column_is_told_before_anything_runs(project: Project) -> None:
    wrong = deepcopy(MICRO)
    wrong["experiments"]["sweep"]["columns"] = ["final_rewrad"]
    project.configure(wrong)
    done = project.run("--cores", "1", check=False)
    assert done.returncode == 1
    assert 'did you mean "final_reward"?' in done.stdout
    assert not (project.directory / "results").exists()


def test_a_path_that_is_no_cell_is_explained(project: Project) -> None:
    done = project.run("-n", "--cores", "1", "results/cells/full_lr1e-5-0123456789/spec.json", check=False)
    assert done.returncode == 1
    assert "the configuration has no such cell; `python -m rewardgrid cells` lists" in done.stdout


def test_a_target_after_the_configuration_files_is_told_to_stand_before_them(project: Project) -> None:
    (project.directory / "latin.yaml").write_bytes("title: d\u00e9j\u00e0 vu\n".encode("latin-1"))
    (project.directory / "half.yaml").write_text("# A title\ntitle: Half: one\n")
    (project.directory / "text.yaml").write_text("just text\n")
    for word, told in (
        ("sweep", "read 'sweep'; no such file; all words after --configfile are files, so a target stands before it"),
        ("config", "read 'config'; cannot be read as text"),
        ("latin.yaml", "read 'latin.yaml'; cannot be read as text"),
        ("half.yaml", "read 'half.yaml'; line 2 is no YAML: mapping values are not allowed"),
        ("text.yaml", "read 'text.yaml'; write a mapping of keys to values"),
    ):
        done = project.run("-n", "--cores", "1", "--configfile", "config/config.yaml", word, check=False)
        assert done.returncode == 1
        assert f"error: --configfile: {told}" in done.stdout.splitlines()[-1]
        assert "Traceback" not in done.stdout


def test_what_is_asked_for_and_is_not_there_is_told_without_a_traceback(project: Project) -> None:
    for words, message in (
        (["config/config.yaml"], "a file of settings stands after --configfile"),
        ([next(iter(project.study.cells))], "is a cell; write its path: results/cells/"),
        (["sweeep"], 'sweeep: no such target; did you mean "sweep"?'),
        (["results/cells/full-0123456789/train"], "the configuration has no such cell"),
        (["results/tables/swep.parquet"], "results/tables/swep.parquet': nothing makes such a file; name a target"),
        ([str(Path.cwd() / "x.parquet")], "x.parquet': nothing makes such a file"),
        (
            [str(project.study.layout.cell(next(iter(project.study.cells))) / "trian")],
            "/trian': nothing makes such a file",
        ),
        (
            ["--config", "published=nowhere"],
            "nowhere/lora_rank.csv: (file): read None; no such file; check `published`",
        ),
        (["--config", "results=Snakefile/x"], "Snakefile is no directory; name another one"),
    ):
        done = project.run("--cores", "1", *words, check=False)
        assert done.returncode == 1
        assert message in done.stdout
        assert "Traceback" not in done.stdout
        assert "MissingRule" not in done.stdout
    elsewhere = project.directory / "config"
    done = Project(elsewhere).run("-n", "--cores", "1", "--snakefile", "../Snakefile", check=False)
    assert "There is no config/config.yaml here: run it in the repository's directory." in done.stdout


def test_another_studys_results_are_refused_before_anything_runs(project: Project) -> None:
    project.run("--cores", "1", "results/study.json")
    before = (project.directory / "results/study.json").read_bytes()
    (project.directory / "other.yaml").write_text(
        "inherit: [bases]\ndefaults: {base: tiny, max_new_tokens: 12}\n"
        "experiments: {own: {title: Own, grids: [{seed: 1}]}}\n"
    )
    for words in (["-n"], ["results/study.json"]):
        done = project.run("--cores", "1", *words, "--configfile", "other.yaml", check=False)
        assert done.returncode == 1
        assert (
            "other.yaml: results: read 'results'; holds the results of another study (config/config.yaml); write a "
            "directory of its own, such as results/other, or"
        ) in done.stdout
        assert "Traceback" not in done.stdout
    assert (project.directory / "results/study.json").read_bytes() == before
    project.run("-n", "--cores", "1", "--configfile", "other.yaml", "--config", "results=results/other")
    assert project.plan("results/study.json") == {}


def test_nested_values_on_the_command_line_are_numbers_and_truths_to_every_job(project: Project) -> None:
    words = ["--config", "defaults={seed: 9, prompt_eos: true}", "published=null"]
    project.run("--cores", "1", "results/study.json", *words)
    study = read_json(project.directory / "results/study.json")
    assert study["defaults"]["seed"] == 9
    assert study["defaults"]["prompt_eos"] is True
    assert study["published"] is None


def test_a_configuration_of_any_size_reaches_its_jobs(project: Project) -> None:
    large = deepcopy(MICRO)
    large["experiments"] = {
        "sweep": {"title": "Sweep", "grids": [{"seed": seed, "beta": 0.1} for seed in range(4000)]},
    }
    project.configure(large)
    project.run("--cores", "1", "results/cells.tsv")
    assert len((project.directory / "results/cells.tsv").read_text().splitlines()) == 4001
    assert project.plan("results/cells.tsv") == {}
    large["title"] = "Another"
    project.configure(large)
    assert project.plan("results/cells.tsv") == {"study": 1, "index": 1}


def test_the_paths_of_the_rules_are_those_of_the_library(project: Project) -> None:
    study = project.study
    text = project.run("--dry-run", "--verbose", "--cores", "1").stdout
    (name, *_), (base, *_) = study.cells, study.base_recipes
    layout = study.layout
    for path in (
        *(layout.spec(name), layout.train(name), layout.metrics(name), layout.samples(name), layout.routing(name)),
        *(layout.base(base) / "provenance.json", layout.base_metrics(base), layout.table("sweep")),
    ):
        assert str(path) in text
