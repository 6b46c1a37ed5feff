"""A base that was built before: checked, and copied."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rewardgrid.study.bases import PackagedBase
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, sha256
from rewardgrid.study.shipped import shipped


def copy_packaged(recipe: PackagedBase, directory: Path) -> dict[str, Any]:
    """Copy every file that the package's provenance.json names; returns the facts that it tells.

    Raises:
        UserError: there is no such package, or a file of it is missing or has other bytes than it was built with.
    """
    source = shipped(recipe.path)
    if not (source / "provenance.json").is_file():
        raise UserError(f"{recipe.path}: no base (it has no provenance.json); write the path of one")
    provenance = read_json(source / "provenance.json")
    for name, digest in provenance["files"].items():
        path = source / name
        if not path.is_file() or sha256(path) != digest:
            state = "corrupt (not the bytes that were built)" if path.is_file() else "missing"
            raise UserError(f"{path}: {state}; restore it, for example with `git checkout -- {recipe.path}`")
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, directory / name)
    facts: dict[str, Any] = provenance["facts"]
    return facts
