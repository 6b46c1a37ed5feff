"""Grids of small reinforcement-learning runs: configuration in, RESULTS.md out. Run it here, or in another workflow."""

import os
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import min_version


include: "rules/place.smk"


from rewardgrid.cli.check import check_study
from rewardgrid.cli.module import configuration_of_module
from rewardgrid.study.errors import UserError
from rewardgrid.study.forecast import forecast, rule_of_thumb
from rewardgrid.study.study import load_study
from rewardgrid.study.targets import check_request, ready

min_version("9.20")


try:
    over = {"over": workflow.config_settings.config} if ALONE else {"config": configuration_of_module(config, workflow)}
    study = load_study(config_files, **over)
    if workflow.is_main_process:
        check_study(study, os.environ)
        check_request(study, targets, write=not workflow.dryrun)
        found = forecast(study)
        logger.info(found.text, extra={"ready": ready(study, targets) if ALONE else [], "rests": found.rests})
except UserError as error:
    raise WorkflowError(str(error) if ALONE else f"module {__name__}: {error}") from None


pathvars:
    results=study.results,
    logs="logs" if ALONE else "<results>/logs",
    benchmarks="<logs>/benchmarks",


rule all:
    """The whole study: RESULTS.md with every table and figure, the page of runs, and the index of cells."""
    input:
        "<results>/RESULTS.md",
        "<results>/report.html",
        "<results>/cells.tsv",
        [study.layout.metrics(cell) for cell in study.cells],


rule bases:
    """The language models that cells start from, and what their own stories measure."""
    input:
        [study.layout.base_metrics(base) for base in study.base_recipes],


for experiment in study.active:

    rule:
        """One experiment: its cells, its table and its figures."""
        name:
            experiment
        input:
            f"<results>/tables/{experiment}.parquet",
            f"<results>/figures/{experiment}",
            [study.layout.metrics(cell.name) for cell in study.grid[experiment]],


include: "rules/common.smk"
include: "rules/base.smk"
include: "rules/storyteller.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/asked.smk"
