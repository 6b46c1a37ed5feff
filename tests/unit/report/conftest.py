"""Fixtures of the report's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rewardgrid.report.published import Published, load_published

from .trees import REPOSITORY, Tree, make_study


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Tree]:
    """Make an empty tree for some experiments: ``tree(reward_sweep=SWEEP)``."""

    def make(**experiments: object) -> Tree:
        return Tree(make_study(tmp_path / "results", experiments))

    return make


@pytest.fixture(scope="session")
def published() -> Published:
    """The published study's figures."""
    return load_published(REPOSITORY / "config" / "published")
