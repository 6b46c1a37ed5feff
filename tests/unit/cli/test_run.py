"""Training and evaluating without Snakemake: what cannot be is said before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny import make_base, make_cell

from rewardgrid.cli.run import train_cells
from rewardgrid.study.errors import UserError
from rewardgrid.study.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Any:
    """A study of one cell, whose base lies where it would be built; told what is different."""

    def make(cell: dict[str, Any], evaluation: dict[str, Any]) -> Study:
        values = make_cell(**cell).model_dump(exclude_defaults=True, exclude={"base_recipe", "results_version"})
        study = Study.model_validate(
            {
                "results": str(tmp_path / "results"),
                "bases": {"tiny": {"kind": "hub"}},  # whose context is not known beforehand
                "evaluation": evaluation,
                "experiments": {"one": {"title": "One", "grids": [values]}},
            }
        )
        (base,) = study.base_recipes
        make_base(study.layout.base(base))
        return study

    return make


FEW = {"samples": 20, "published_samples": 4, "published_prompts": 2}


@pytest.mark.parametrize(
    ("cell", "evaluation", "message"),
    [
        ({"max_new_tokens": 61}, FEW, "max_new_tokens: read 61; .* need 65 tokens, .* is 64; write at most 60"),
        (
            {"max_new_tokens": 60, "prompt_eos": True},
            FEW,
            "max_new_tokens: read 60; .* need 65 tokens, .* is 64; write at most 59",
        ),
        ({}, FEW | {"samples": 25}, r"has 24 prompts, the evaluation needs 25; write evaluation\.samples: 24, or give"),
        (
            {},
            FEW | {"published_samples": 50, "published_prompts": 25},
            "has 24 prompts without a full stop, the evaluation needs 25; give the base more stories",
        ),
    ],
)
def test_what_does_not_fit_the_base_is_refused_before_training(
    cell: dict[str, Any], evaluation: dict[str, Any], message: str, study: Any
) -> None:
    planned = study(cell, evaluation)
    with pytest.raises(UserError, match=message):
        train_cells(planned, list(planned.cells.values()), "cpu")
    assert not (planned.layout.root / "cells").exists()
