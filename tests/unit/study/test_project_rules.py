"""Rules that the project's files keep among themselves: layers of imports, pins, small workflow files."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What each part of the library may import, besides itself; the first two stand on the ground.
BELOW = {
    "study": set[str](),
    "lm": {"study"},
    "base": {"study", "lm"},
    "train": {"study", "lm", "base"},
    "evaluate": {"study", "lm", "base", "train"},
    "report": {"study"},
    "published": {"study", "report"},
    "page": {"study", "lm", "base", "train", "report"},
}
HEAVY = {"transformers", "trl", "peft", "datasets", "huggingface_hub", "matplotlib", "jinja2", "scipy", "snakemake"}


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, anywhere or only when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", BELOW)
def test_the_library_imports_only_downwards(root: Path, part: str) -> None:
    allowed = BELOW[part] | {part}
    for path in (root / "src/rewardgrid" / part).rglob("*.py"):
        own = {name.split(".")[1] for name in imports(path) if name.startswith("rewardgrid.")}
        assert not own & set(BELOW) - allowed, f"{path} imports upwards: {own - allowed}"
        assert not own & {"cli", "__main__"}, f"{path} imports the roof"


def test_heavy_libraries_are_imported_only_where_they_are_used(root: Path) -> None:
    for path in [*(root / "src").rglob("*.py"), *(root / "workflow/scripts").glob("*.py")]:
        if path.parent.name == "engines" and path.stem == "trl":
            continue  # imported by its name, when a cell asks for it
        heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
        assert not heavy, f"{path} imports {heavy} at its top: training would start slowly"


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([\w.-]+)==([\w.+]+)", line.strip()) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def test_the_conda_environments_have_the_versions_of_the_constraints(root: Path) -> None:
    constraints = pins((root / "constraints.txt").read_text().splitlines())
    files = sorted((root / "envs").glob("*.yaml"))
    assert {path.stem for path in files} == {"base", "train", "evaluate", "report", "page", "storyteller", "workflow"}
    for path in files:
        (packages,) = (
            part["pip"] for part in yaml.safe_load(path.read_text())["dependencies"] if isinstance(part, dict)
        )
        ours = pins(packages)
        assert len(ours) == len(packages), f"{path}: a package without an exact version"
        assert ours.items() <= constraints.items(), f"{path}: {set(ours.items()) - set(constraints.items())}"


MODULES = {"pyyaml": "yaml"}
PARTS_OF = {"pydantic_core": "pydantic", "markupsafe": "jinja2"}
SCRIPTS = {
    "base": ["base"],
    "train": ["train"],
    "evaluate": ["evaluate"],
    "report": ["study", "index", "table", "figures", "findings", "published", "results"],
    "page": ["page"],
    "storyteller": ["teacher", "tell", "storyteller"],
}


@pytest.mark.parametrize("environment", SCRIPTS)
def test_a_conda_environment_holds_all_that_its_scripts_import(root: Path, environment: str) -> None:
    """Follow the imports of a rule's scripts through the library, except into the other stages' environments."""
    seen: set[Path] = set()
    needed: set[str] = set()
    queue = [root / "workflow/scripts" / f"{name}.py" for name in SCRIPTS[environment]]
    if environment == "train":  # engines are imported by name
        queue += (root / "src/rewardgrid/train/engines").glob("*.py")
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        in_functions = environment in path.parts or path.parent.name == "scripts"
        for name in imports(path, top_level=not in_functions):
            if name.startswith("rewardgrid"):
                module = root / "src" / Path(*name.split("."))
                queue += [file for file in (module.with_suffix(".py"), module / "__init__.py") if file.exists()]
            elif name.split(".")[0] not in sys.stdlib_module_names:
                needed.add(PARTS_OF.get(name.split(".")[0], name.split(".")[0]))
    (packages,) = (
        part["pip"]
        for part in yaml.safe_load((root / f"envs/{environment}.yaml").read_text())["dependencies"]
        if isinstance(part, dict)
    )
    held = {MODULES.get(name, name.replace("-", "_")) for name in pins(packages)}
    assert needed <= held, f"missing in envs/{environment}.yaml: {sorted(needed - held)}"


def test_the_snakefile_and_rules_stay_readable(root: Path) -> None:
    assert len((root / "Snakefile").read_text().splitlines()) < 80
    for path in (root / "rules").glob("*.smk"):
        text = path.read_text()
        assert "script:" not in text, f"{path}: script: trains again whenever a file's time changes"
        for rule in re.split(r"^rule ", text, flags=re.MULTILINE)[1:]:
            name = rule.partition(":")[0]
            assert re.match(r'\w+:\n    """[^\n]+\."""\n', rule), f"{path}: rule {name} has no docstring"
            if "shell:" in rule:
                for directive in ("log:", "conda:"):
                    assert f"    {directive}" in rule, f"{path}: rule {name} has no {directive}"


def test_dependencies_named_for_installation_are_pinned(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    constraints = pins((root / "constraints.txt").read_text().splitlines())
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")  # type: ignore[index]
        assert name == "rewardgrid" or name in constraints, f"{requirement}: not in constraints.txt"


def test_the_constraints_pin_all_that_an_installation_brings_along(root: Path) -> None:
    """Every package that is here because rewardgrid or one of its extras needs it, at any remove."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    queue = [Requirement(requirement) for requirement in wanted]
    asked: set[tuple[str, str]] = {
        ("rewardgrid", ""),
        *(("rewardgrid", extra) for extra in project["optional-dependencies"]),
    }
    found: dict[str, str] = {}
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in asked:
                continue
            asked.add((name, extra))
            try:
                there = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # of an extra that is not installed
            found[name] = there.version.partition("+")[0]
            needs = map(Requirement, there.requires or [])
            queue += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    assert {"torch", "snakemake", "pytest", "markupsafe"} <= set(found)
    constraints = pins((root / "constraints.txt").read_text().splitlines())
    assert found.items() <= constraints.items(), sorted(found.items() - constraints.items())
