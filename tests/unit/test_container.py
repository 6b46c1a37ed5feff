"""The container's definition agrees with the package and its environments; nothing here can build it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def sections(root: Path) -> dict[str, str]:
    """The definition's header and its sections, by name."""
    text = (root / "container/rewardgrid.def").read_text(encoding="utf-8")
    header, *parts = re.split(r"^%", text, flags=re.MULTILINE)
    return {"header": header} | {name: body for name, _, body in (part.partition("\n") for part in parts)}


def test_its_python_is_that_of_the_conda_environments(sections: dict[str, str], root: Path) -> None:
    (version,) = re.findall(r"^From: python:(\d+\.\d+)-", sections["header"], re.MULTILINE)
    for path in (root / "envs").glob("*.yaml"):
        assert f"python={version}" in yaml.safe_load(path.read_text())["dependencies"]


def test_it_installs_the_pinned_versions_of_all_that_programs_of_rules_need(
    sections: dict[str, str], root: Path
) -> None:
    (extras,) = re.findall(
        r"pip install --no-cache-dir --constraint constraints.txt '\.\[([\w,-]+)\]'", sections["post"]
    )
    known = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = re.findall(r"rewardgrid\[(.*)\]", known["all"][0])
    # Snakemake stays outside.
    assert set(extras.split(",")) == set(everything.split(",")) - {"workflow", "dev"}


def test_it_copies_all_that_the_package_is_built_of(sections: dict[str, str], root: Path) -> None:
    copied = dict(line.split() for line in sections["files"].strip().splitlines())
    assert all((root / source).exists() and target == f"/opt/rewardgrid/{source}" for source, target in copied.items())
    project = tomllib.loads((root / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    built_of = {"pyproject.toml", project["project"]["readme"], "LICENSE", *wheel["packages"], *wheel["force-include"]}
    assert {path.partition("/")[0] for path in built_of} <= set(copied)


def test_rules_ask_for_its_image_and_only_they(root: Path) -> None:
    (image,) = re.findall(r'^container: "(.*)"$', (root / "rules/common.smk").read_text(), re.MULTILINE)
    definition = root / Path(image).with_suffix(".def")
    assert definition.exists()
    assert f"apptainer build {image} {definition.relative_to(root)}" in definition.read_text()
