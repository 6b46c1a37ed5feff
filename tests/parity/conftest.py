"""The tiny base that both engines train on, and what TRL does on it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from tests.parity.trl_side import Step, watch
from tests.tiny import CELLS, FAMILIES, exact_hf, make_base

from rewardgrid.base.load import Base

Traces = Callable[[str, torch.dtype], list[Step]]


@pytest.fixture(scope="session")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A LLaMA, or another of the FAMILIES, with random weights and a vocabulary of some forty tokens."""
    family = getattr(request, "param", "llama")
    # With these weights it, too, closes sentences and ends stories in every batch.
    return make_base(tmp_path_factory.mktemp("base") / "tiny", FAMILIES[family], seed=8 if family == "biased" else 0)


@pytest.fixture(scope="session")
def trl_steps(base: Base) -> Traces:
    """TRL's steps of the tiny cell of a method, in one arithmetic; computed once."""

    @functools.cache
    def steps(method: str, dtype: torch.dtype) -> list[Step]:
        if dtype == torch.float64:
            with exact_hf():
                return watch(CELLS[method](), base, dtype)
        return watch(CELLS[method](), base, dtype)

    return steps
