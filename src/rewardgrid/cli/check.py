"""What can be known of a study before anything runs: `check` and the workflow look at the same things."""

from __future__ import annotations

from collections.abc import Mapping

from rewardgrid.cli.slurm import check_gres
from rewardgrid.published.comparison import load_published
from rewardgrid.report.tables import check_columns
from rewardgrid.study.bases import HubBase, LocalBase, PackagedBase, is_there, model_config
from rewardgrid.study.errors import ConfigError, all_of
from rewardgrid.study.study import Study
from rewardgrid.train.engines import check_engine


def check_study(study: Study, environment: Mapping[str, str]) -> None:
    """Make sure that the study's models can be trained, its tables made, its published figures read and
    its jobs submitted.

    Raises:
        UserError: they cannot; with everything that is wrong.
    """
    published = study.published
    all_of(
        lambda: _check_models(study),
        lambda: _check_engines(study),
        lambda: check_columns(study),
        lambda: None if published is None else load_published(published),
        lambda: check_gres(environment),
    )


def _check_models(study: Study) -> None:
    problems = []
    for name, recipe in study.base_recipes.values():
        if is_there(recipe):
            continue
        if isinstance(recipe, LocalBase):
            fix = "there is no such directory; write the path of one, as seen from where rewardgrid is run"
            problems.append(study.problem(("bases", name, "model"), recipe.model, fix))
        if isinstance(recipe, PackagedBase):
            fix = "there is no base (provenance.json); write the path of one"
            problems.append(study.problem(("bases", name, "path"), recipe.path, fix))
    if problems:
        raise ConfigError(problems)


def _check_engines(study: Study) -> None:
    """Make sure that the engines compute the models that are known by now; those of a hub are not."""
    for cell in {(cell.base, cell.engine, cell.method): cell for cell in study.cells.values()}.values():
        recipe = study.bases[cell.base]
        if not isinstance(recipe, HubBase) and (config := model_config(recipe)):
            check_engine(cell, config, str(recipe.config))
