"""What comes with rewardgrid beside the library: its rules and programs, its bases, the published figures."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

HOME = _PACKAGE / "home" if (_PACKAGE / "home").is_dir() else _PACKAGE.parents[1]
"""Where it lies: the repository of a checkout, or the copy of its files in an installed package (pyproject.toml)."""


def shipped(path: Path | str) -> Path:
    """A path of a configuration: seen from where snakemake runs, or else what comes with rewardgrid under its name."""
    here = Path(path)
    return here if here.exists() or not (HOME / here).exists() else HOME / here
