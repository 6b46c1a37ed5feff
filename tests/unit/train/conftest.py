"""The tiny base that these tests train on."""

from __future__ import annotations

import pytest
from tests.tiny import FAMILIES, make_base

from rewardgrid.base.load import Base


@pytest.fixture(scope="session")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A LLaMA, or another of the FAMILIES, with random weights and a vocabulary of some forty tokens."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny", FAMILIES[getattr(request, "param", "llama")])
