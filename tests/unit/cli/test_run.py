"""Training and evaluation without Snakemake."""

from __future__ import annotations

from pathlib import Path

import torch

from rewardgrid.cli.run import evaluate_cells
from rewardgrid.study.study import load_study


def test_evaluation_by_hand_sums_in_the_order_of_the_workflows_jobs(root: Path) -> None:
    study = load_study([root / "config/config.yaml"])
    torch.set_num_threads(2)
    evaluate_cells(study, [])
    assert torch.get_num_threads() == 1
