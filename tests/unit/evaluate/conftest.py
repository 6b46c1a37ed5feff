"""The tiny base that these tests sample from."""

from __future__ import annotations

import pytest
from tests.tiny import make_base

from rewardgrid.base.load import Base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A LLaMA with random weights and a vocabulary of some forty tokens."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny")
