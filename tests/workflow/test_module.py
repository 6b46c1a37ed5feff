"""The workflow inside another one, which has its own directory, configuration and targets (docs/module.md)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from rewardgrid.study.files import read_json
from rewardgrid.study.shipped import HOME, shipped
from rewardgrid.study.study import Study
from tests.workflow.project import MICRO, Project

BASE = "resources/bases/storyteller-small"
TINY: dict[str, Any] = {
    **deepcopy(MICRO),
    "results": "results/tiny",
    "published": "config/published",
    "bases": {"small": {"kind": "packaged", "path": BASE}},
    "defaults": MICRO["defaults"] | {"base": "small"},
    "experiments": {"sweep": MICRO["experiments"]["sweep"] | {"grids": [{"beta": 0.1}]}},
}
TRIGGERS = "rerun-triggers: [mtime, params]\n"


def importing(directory: Path, module: str, config: dict[str, Any], triggers: str = TRIGGERS) -> Project:
    """A project whose workflow has a rule of its own on what the module's makes."""
    for name, text in {
        "workflow/Snakefile": f'configfile: "config/config.yaml"\n{module}\n'
        'rule count:\n    input: rules.rewardgrid_all.input\n    output: "count.txt"\n'
        "    default_target: True\n    shell: 'cat {input:q} | wc > {output}'\n",
        "config/config.yaml": json.dumps({"samples": 3, **config}),
        "profiles/default/config.yaml": f"show-failed-logs: true\n{triggers}",
    }.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    return Project(directory)


def block(snakefile: str, name: str = "rewardgrid", prefix: str | None = None, config: str | None = None) -> str:
    """A module block, and all its rules under its name."""
    lines = [f"snakefile: {snakefile}", f"config: {config or f'config[{name!r}]'}"]
    lines += [f"prefix: {prefix!r}"] if prefix else []
    return f"module {name}:\n    " + "\n    ".join(lines) + f"\nuse rule * from {name} as {name}_*\n"


@pytest.fixture(scope="module")
def local(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two modules of one workflow, from a checkout's Snakefile; what the first one makes has been made."""
    snakefile = repr(str(root / "Snakefile"))
    module = block(snakefile) + block(snakefile, "other")
    config = {"rewardgrid": TINY, "other": TINY | {"results": "out", "published": None}}
    project = importing(tmp_path_factory.mktemp("importing"), module, config)
    project.run("--cores", "2")
    return project


def test_a_study_runs_to_its_report_inside_another_workflow(local: Project) -> None:
    report = (local.directory / "results/tiny/RESULTS.md").read_text(encoding="utf-8")
    assert report.startswith("# Micro\n")
    assert "published" in report.lower()
    assert (local.directory / "count.txt").stat().st_size
    assert list((local.directory / "results/tiny/logs/train").glob("*.log"))
    made = {path.name for path in local.directory.iterdir()}
    assert made == {".snakemake", "config", "count.txt", "profiles", "results", "workflow"}


def test_cells_of_a_module_are_those_of_the_same_study_in_the_repository(
    local: Project, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (name,) = Study.model_validate(TINY).cells
    assert [path.name for path in (local.directory / "results/tiny/cells").iterdir()] == [name]


def test_nothing_is_made_again_and_modules_do_not_feel_each_other(local: Project) -> None:
    assert local.plan() == {}
    assert "Nothing to be done" in local.run("--cores", "1", "rewardgrid_sweep").stdout
    assert {rule.partition("_")[0] for rule in local.plan("other_all")} == {"other"}
    path = local.directory / "config/config.yaml"
    before = path.read_text(encoding="utf-8")
    more = json.loads(before)
    more["rewardgrid"]["experiments"]["sweep"]["grids"] = [{"beta": [0.1, 0.2]}]
    path.write_text(json.dumps(more), encoding="utf-8")
    try:
        plan = local.plan()
        partial = local.plan("rewardgrid_results_partial")
    finally:
        path.write_text(before, encoding="utf-8")
    assert plan["rewardgrid_train"] == plan["rewardgrid_evaluate"] == plan["count"] == 1
    assert partial["rewardgrid_train"] == 0
    assert partial["rewardgrid_results"] == 1


def test_other_reasons_to_run_again_train_no_finished_cell_and_are_refused_by_an_unfinished_one(
    local: Project, root: Path, tmp_path: Path
) -> None:
    words = ("--rerun-triggers", "mtime", "params", "input", "code", "software-env")
    assert local.plan(*words)["rewardgrid_train"] == 0
    fresh = importing(tmp_path, block(repr(str(root / "Snakefile"))), {"rewardgrid": TINY}, triggers="")
    done = fresh.run("-n", "--cores", "1", check=False)
    assert done.returncode == 1
    assert (
        "module rewardgrid: rerun-triggers: read code, input, software-env besides; "
        "write `rerun-triggers: [mtime, params]` in the workflow's profile" in done.stdout
    )


def test_mistakes_of_a_module_are_told_under_its_name(root: Path, tmp_path: Path) -> None:
    snakefile = repr(str(root / "Snakefile"))
    wrong = TINY | {"defaults": TINY["defaults"] | {"bete": 1}}
    for number, (module, config, message) in enumerate(
        (
            (
                block(snakefile),
                {"rewardgrid": wrong},
                'config: defaults.bete: read 1; unknown key; did you mean "beta"?',
            ),
            (block(snakefile, config="{}"), {}, "module rewardgrid: there is no configuration; write a study"),
            (block(snakefile).replace("    config", "    # config"), {}, "there is no configuration; write a study"),
        )
    ):
        done = importing(tmp_path / str(number), module, config).run("-n", "--cores", "1", check=False)
        assert done.returncode == 1
        assert message in done.stdout
        assert "module rewardgrid: " in done.stdout
        assert "Traceback" not in done.stdout


# --- from a git host --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip installs it: the wheel of this checkout, unpacked."""
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "site-packages")
    return built / "site-packages"


@pytest.fixture
def hosted(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A workflow with a module from GitHub, for which a repository on this machine stands in."""
    repository = tmp_path / "github/owner/rewardgrid"
    repository.mkdir(parents=True)
    for part in ("Snakefile", "rules", "envs", "workflow/Snakefile", "workflow/report"):
        source, target = root / part, repository / part
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    checkout = Project(repository)
    checkout.git("init", "--quiet")
    checkout.git("add", ".")
    checkout.git("commit", "--quiet", "--message", "The rules")
    checkout.git("tag", "v0.1.0")
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/github/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }.items():
        monkeypatch.setenv(name, value)
    snakefile = 'github("owner/rewardgrid", path="workflow/Snakefile", tag="v0.1.0")'
    module = block(snakefile, prefix="else where")
    return importing(tmp_path / "importing", module, {"rewardgrid": TINY | {"results": "out"}})


def test_rules_from_a_git_host_run_with_the_installed_package_and_a_prefix_before_all_that_they_make(
    hosted: Project, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed))
    assert "rule rewardgrid_train" in hosted.run("--cores", "2").stdout
    made = hosted.directory / "else where"
    assert [path.name for path in made.iterdir()] == ["out"]
    assert not (hosted.directory / "out").exists()
    assert (made / "out/RESULTS.md").is_file()
    assert read_json(made / "out/study.json")["results"] == "else where/out"
    assert len(list((made / "out/cells").glob("*/evaluation/metrics.json"))) == 1
    assert hosted.plan() == {}


def test_rules_from_a_git_host_without_the_package_say_how_to_install_it(
    hosted: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "none/rewardgrid/__init__.py"
    missing.parent.mkdir(parents=True)
    missing.write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "none"))
    done = hosted.run("-n", "--cores", "1", check=False)
    assert done.returncode == 1
    assert "the library does not come with them; install it where snakemake runs, of the same version" in done.stdout
    assert "Traceback" not in done.stdout


def test_an_installed_package_has_all_that_its_rules_and_programs_name(installed: Path, root: Path) -> None:
    home = installed / "rewardgrid/home"
    for path in [*(root / "rules").glob("*.smk"), *(root / "workflow/scripts").glob("*.py")]:
        assert (home / path.relative_to(root)).read_bytes() == path.read_bytes()
    named = re.findall(r"rewardgrid\.programs (\w+)", "".join(path.read_text() for path in (home / "rules").iterdir()))
    assert {f"{name}.py" for name in named} <= {path.name for path in (home / "workflow/scripts").iterdir()}
    for base in (root / "resources/bases").iterdir():
        assert (home / base.relative_to(root) / "model/model.safetensors").is_file()


def test_what_is_shipped_is_found_from_anywhere_and_a_file_of_ones_own_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped(BASE) == HOME / BASE
    assert shipped("no/such/base") == Path("no/such/base")
    Path(BASE).mkdir(parents=True)
    assert shipped(BASE) == Path(BASE)
