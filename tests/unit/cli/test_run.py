"""Training and evaluating without Snakemake: what cannot be is said before anything trains."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import make_base, make_cell

from rewardgrid.base.build import build_base
from rewardgrid.cli.run import by_base, evaluate_cells, train_cells
from rewardgrid.study.errors import UserError
from rewardgrid.study.study import Study, load_study


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


def test_evaluation_by_hand_sums_in_the_order_of_the_workflows_jobs(root: Path) -> None:
    study = load_study([root / "config/config.yaml"])
    torch.set_num_threads(2)
    evaluate_cells(study, [])
    assert torch.get_num_threads() == 1


def test_a_base_is_built_once_when_two_commands_want_it_at_a_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each used to build it, and one took away what the other was reading."""
    monkeypatch.chdir(root)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"results: {tmp_path / 'results'}\ndefaults: {{base: storyteller-small}}\n")
    study = load_study([root / "config/config.yaml", overlay])
    cells, built = list(study.cells.values())[:1], []

    def slowly(name: str, *rest: Any) -> None:
        built.append(name)
        time.sleep(0.2)
        build_base(name, *rest)

    monkeypatch.setattr("rewardgrid.cli.run.build_base", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: [base.name for base, _ in by_base(study, cells)], range(2)))
    assert found == [["storyteller-small"]] * 2
    assert built == ["storyteller-small"]
