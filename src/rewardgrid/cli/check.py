"""What can be known of a study before anything runs: `check` and the workflow look at the same things."""

from __future__ import annotations

from collections.abc import Mapping

from rewardgrid.cli.slurm import check_gres
from rewardgrid.published.comparison import load_published
from rewardgrid.report.tables import check_columns
from rewardgrid.study.errors import all_of
from rewardgrid.study.study import Study


def check_study(study: Study, environment: Mapping[str, str]) -> None:
    """Make sure that the study's tables can be made, its published figures read and its jobs submitted.

    Raises:
        UserError: they cannot; with everything that is wrong.
    """
    published = study.published
    all_of(
        lambda: check_columns(study),
        lambda: None if published is None else load_published(published),
        lambda: check_gres(environment),
    )
