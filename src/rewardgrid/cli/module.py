"""rewardgrid as a module of another Snakemake workflow (docs/module.md): what differs there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rewardgrid.study.errors import UserError

TRIGGERS = ("mtime", "params")
"""What may make Snakemake run a job again; profiles/default says why, but a workflow's own profile takes its place."""


def configuration_of_module(config: Mapping[str, Any], workflow: Any) -> dict[str, Any]:
    """The configuration that a module block gives, with ``results`` where the block's ``prefix`` puts them.

    Programs read and write beside the paths that Snakemake knows. So the prefix is put before ``results`` here, once
    for both, and taken from the rules that follow.

    Args:
        workflow: Snakemake's, while it reads the Snakefile.

    Raises:
        UserError: the block gives no configuration.
    """
    from snakemake.path_modifier import PathModifier

    if not config:
        raise UserError(
            "there is no configuration; write a study beneath a key of your own configuration, and in the module block "
            '`config: config["rewardgrid"]`'
        )
    results = config.get("results", "results")
    if isinstance(results, str):
        results = str(Path(workflow.modifier.modify_path(str(Path(results) / "RESULTS.md"))).parent)
    workflow.modifier.path_modifier = PathModifier(None, None, workflow)
    return {**config, "results": results}


def check_triggers(triggers: Iterable[str]) -> None:
    """Make sure that nothing but a missing result trains a cell.

    Raises:
        UserError: Snakemake would run finished cells again.
    """
    if others := sorted(set(triggers) - set(TRIGGERS)):
        raise UserError(
            f"rerun-triggers: read {', '.join(others)} besides; write `rerun-triggers: [{', '.join(TRIGGERS)}]` in the "
            f"workflow's profile (profiles/default/config.yaml), or `--rerun-triggers {' '.join(TRIGGERS)}`: else "
            "finished cells would be made again, whose paths already say what they are"
        )
