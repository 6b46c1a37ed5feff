"""Fixtures of the tests of the published study."""

from __future__ import annotations

import pytest
from tests.trees import REPOSITORY

from rewardgrid.published.comparison import Published, load_published


@pytest.fixture(scope="session")
def published() -> Published:
    """The published study."""
    return load_published(REPOSITORY / "config" / "published")
