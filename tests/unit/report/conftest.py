"""Fixtures of the report's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trees import Tree, make_study


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Tree]:
    """Make an empty tree for some experiments: ``tree(reward_sweep=SWEEP)``."""

    def make(**experiments: object) -> Tree:
        return Tree(make_study(tmp_path / "results", experiments))

    return make
