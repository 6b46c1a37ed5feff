"""Shared by all stages: the environment of jobs, and functions of wildcards."""

import hashlib
import shlex
from functools import cache

from rewardgrid.cli import mps
from rewardgrid.cli.module import check_triggers
from rewardgrid.cli.signals import handle_beside
from rewardgrid.storyteller.shards import kept, needed
from rewardgrid.study.cell import METRICS_VERSION
from rewardgrid.study.files import write_text
from rewardgrid.study.history import rewards_so_far
from rewardgrid.study.layout import measured
from rewardgrid.study.shipped import shipped


# Only with `--sdm apptainer`; container/rewardgrid.def says how it is built.
container: "container/rewardgrid.sif"


# The checked configuration, of which `study` makes a result. A command line has no room for a large one.
IDENTITY = hashlib.sha256(study.model_dump_json().encode()).hexdigest()
CHECKED = f".snakemake/study-{IDENTITY[:16]}.json"
if workflow.is_main_process and not workflow.dryrun:
    write_text(CHECKED, study.model_dump_json())

# Named here because training, the one rule that must never run twice, cannot always have it as its input.
STUDY = shlex.quote(str(study.layout.study))

# What a target is called: a module's names are changed.
PARTIAL = workflow.modifier.modify_rulename("results_partial")

# `python` in a shell command is the interpreter that runs Snakemake, whether its environment is activated or not, on
# this machine or on a cluster's node; a conda environment puts its own before it. Either one finds the library.
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
    PYTHONPATH=os.pathsep.join([*LIBRARY, *filter(None, [os.environ.get("PYTHONPATH")])]),
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_DISABLE_TELEMETRY="1",
)
# Arrays in pages of 2 MiB, where Linux gives them on request: a step on a CPU takes a twentieth less. The C library reads
# this as a process starts, which is why it is not in lm/memory.py.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


# The signal that comes before a job's time limit (see profiles/slurm) is for the training program, which handles it;
# it reaches the Snakemake around it too.
if not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


wildcard_constraints:
    cell="[^/]+",
    base="|".join(study.base_recipes),
    experiment="|".join(study.active),


def recipe_of(wildcards):
    """The (name, recipe) of the base that a path names."""
    return study.base_recipes[wildcards.base]


def cell_of(wildcards):
    """The cell that a path names."""
    try:
        return study.cells[wildcards.cell]
    except KeyError:
        raise WorkflowError(
            f"{wildcards.cell}: the configuration has no such cell; `python -m rewardgrid cells` lists those "
            "that it has (give it the same --configfile)"
        ) from None


@cache
def is_measured(metrics):
    """`measured`, read once for the several inputs that depend on it."""
    return measured(metrics)


def run_of(settled):
    """What training has left of a cell, if it is one that is measured (or if it is none).

    Nothing measures a measured cell again because its run looks newer, as it may after the results were copied.
    """

    def paths(wildcards):
        there = [str(study.layout.spec(wildcards.cell)), str(study.layout.train(wildcards.cell))]
        known = is_measured(study.layout.metrics(wildcards.cell)) and all(map(os.path.exists, there))
        return there if known == settled else []

    return paths


def reference_of(settled):
    """The measurements of a cell's base, if it is a measured cell without weights (or if it is none).

    One that was put back from an archive has none, and cannot be measured again.
    """

    def path(wildcards):
        train = study.layout.train(wildcards.cell)
        known = (
            is_measured(study.layout.metrics(wildcards.cell)) and train.exists() and not (train / "weights").exists()
        )
        return str(study.layout.base_metrics(cell_of(wildcards).base_id)) if known == settled else []

    return path


def base_of_unmeasured(name):
    """Path of a file of the base that a base or a cell is measured with; nothing once it is measured."""

    def path(wildcards):
        if "base" in wildcards.keys():
            base, metrics = wildcards.base, study.layout.base_metrics(wildcards.base)
        else:
            base, metrics = cell_of(wildcards).base_id, study.layout.metrics(wildcards.cell)
        return [] if is_measured(metrics) else str(study.layout.base(base) / name)

    return path


def check_module():
    """What Snakemake knows only after it has read a module."""
    try:
        check_triggers(str(trigger) for trigger in workflow.rerun_triggers)
    except UserError as error:
        raise WorkflowError(f"module {__name__}: {error}") from None


def needs_of_untrained(wildcards):
    """What a cell is trained from; nothing once it is trained."""
    if not ALONE:
        check_module()
    cell = cell_of(wildcards)
    if (study.layout.train(cell.name) / "status.json").exists():
        return []
    base = study.layout.base(cell.base_id)
    names = (
        "model",
        "train_prompts.parquet",
        "eval_prompts.parquet",
        "provenance.json",
    )
    return [*(str(base / name) for name in names), str(study.layout.study)]


def needs_of_untold(wildcards):
    """What a shard of stories is told by; nothing once it is told."""
    path = study.layout.told(wildcards.teacher, wildcards.stories) / f"{wildcards.seed}-{wildcards.shard}.parquet"
    return [] if path.exists() or kept(path).exists() else [str(study.layout.teacher(wildcards.teacher))]


def shards_of_stories(wildcards):
    """Every shard that the storyteller is made of: those told before, and those that its teacher tells."""
    try:
        return [str(path) for path in needed(study.storyteller, study.layout)]
    except UserError as error:
        raise WorkflowError(str(error)) from None


def metrics_of(wildcards):
    """The measurements of every cell of an experiment."""
    return [str(study.layout.metrics(cell.name)) for cell in study.grid[wildcards.experiment]]


def metrics_for_table(wildcards):
    """All of them, or those that there are if the target is `results_partial`."""
    partial = PARTIAL in workflow.dag_settings.targets
    return [path for path in metrics_of(wildcards) if not partial or os.path.exists(path)]


def all_metrics():
    """The measurements of every cell of the study."""
    return [str(study.layout.metrics(cell)) for cell in study.cells]


def metrics_of_stoppable(wildcards):
    """The measurements of the cells that may end early, which the index of cells says; alone, it trains none."""
    paths = [str(study.layout.metrics(name)) for name, cell in study.cells.items() if cell.stop_when]
    whole = not any(target.endswith("cells.tsv") for target in workflow.dag_settings.targets)
    return [path for path in paths if whole or os.path.exists(path)]


def metrics_for_page(wildcards):
    """Those that the page shows, likewise."""
    partial = PARTIAL in workflow.dag_settings.targets
    return [path for path in all_metrics() if not partial or os.path.exists(path)]


def left_out_of_table(wildcards):
    """The measurements that a partial table is made without."""
    return left_out(metrics_of(wildcards), metrics_for_table(wildcards))


def left_out_of_page(wildcards):
    """Likewise for the page."""
    return left_out(all_metrics(), metrics_for_page(wildcards))


def left_out(asked, given):
    """Paths that are asked for and not given, each with the steps that its cell has trained by now."""
    paths = sorted(set(asked) - set(given))
    steps = [len(rewards_so_far(study.layout, Path(path).parts[-3])) for path in paths]
    return [f"{path} {number}" for path, number in zip(paths, steps)]


def published_files(wildcards):
    """What the published study reports; nothing where there is none to compare with."""
    return sorted(str(path) for path in shipped(study.published).glob("*.*")) if study.published else []


def evaluation_settings(wildcards):
    """How cells are measured, as JSON: a change measures again, and trains nothing."""
    return study.evaluation.model_dump_json()


def base_settings(wildcards):
    """How a base is measured, likewise, and the code of one's own that it is measured by."""
    return study.base_evaluation(wildcards.base).model_dump_json()


def minutes(wildcards, attempt):
    """Time limit of a training job: three times the rule of thumb and some to start, more on every attempt."""
    cell = cell_of(wildcards)
    return attempt * (15 + round(3 * cell.max_steps * rule_of_thumb(study, cell) / 60))


onstart:
    handle_beside(signal.SIGTERM)
    if "gpu_slots" in workflow.global_resources:  # profiles/gpu
        logger.info(mps.start())


onsuccess:
    mps.stop()


onerror:
    mps.stop()
    partial = PARTIAL in workflow.dag_settings.targets
    logger.info(
        "Finished cells are kept: the same command goes on"
        + ("." if partial else ", `snakemake results_partial` shows what there is.")
    )
