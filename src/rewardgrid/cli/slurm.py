"""What SLURM jobs ask for, as far as it is told before the first of them is submitted."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rewardgrid.study.errors import UserError

GRES = "REWARDGRID_GRES"

ONE_RESOURCE = re.compile(r"[A-Za-z0-9_]+(:[A-Za-z0-9_.]+)?(:[0-9]+[TGM]?)?")
"""What Snakemake's executor plugin takes (2.8): no comma, no dash, no space."""


def check_gres(environment: Mapping[str, str]) -> None:
    """Make sure that the plugin takes what ``profiles/slurm`` hands on.

    Raises:
        UserError: it would not, and would say so only when the first job is submitted.
    """
    asked = environment.get(GRES, "")
    if asked and not ONE_RESOURCE.fullmatch(asked):
        raise UserError(
            f"{GRES}: read {asked!r}; write one resource as NAME:NUMBER or NAME:MODEL:NUMBER, with letters, digits and "
            "_ (gpu:1, gpu:a100:1, shard:2). For several, or a model with a dash, unset it and set SBATCH_GRES, which "
            "SLURM itself reads: every job asks for it then"
        )
