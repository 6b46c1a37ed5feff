"""Training and evaluation without Snakemake."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from rewardgrid.base.build import build_base
from rewardgrid.cli.run import by_base, evaluate_cells
from rewardgrid.study.study import load_study


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
