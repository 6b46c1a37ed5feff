"""``python -m rewardgrid track``: histories, measurements and samples of cells as runs of an experiment tracker.

Everything stays in one directory of this machine: TensorBoard's files, wandb's offline runs, trackio's database. A cell
that is written again replaces what was written of it before.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from rewardgrid.cli.run import say
from rewardgrid.cli.show import Seen, see
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import ROLLOUTS, read_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.layout import Layout
from rewardgrid.study.text import count

SAMPLES = 20
"""Of the evaluation, in a run."""
ROLLOUTS_EACH = 4
"""Completions of every recorded step, in a run."""
SHOWN = ["prompt", "completion", "reward", "sl10", "happy"]


@dataclass(frozen=True)
class Run:
    """A cell as a tracker has it."""

    name: str
    config: Mapping[str, Any]
    """Its spec."""
    history: Sequence[tuple[int, Mapping[str, float]]]
    """(step, what was finite then)."""
    summary: Mapping[str, Any]
    """What was measured, by ``protocol/metric``, and the verdict."""
    rollouts: pd.DataFrame
    """step and ``SHOWN``: what it wrote while it trained."""
    samples: pd.DataFrame
    """``SHOWN``: what it writes now that it is trained."""


def track(layout: Layout, cells: Sequence[Cell], to: str, project: str, out: Path) -> None:
    """Write the cells that have a history, finished or running, as runs.

    Raises:
        UserError: the tracker is not installed, the project's name is no name for a directory, or no cell has begun.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", project, re.ASCII):
        raise UserError(f"track: --project {project!r}: use a name of letters, digits, dashes, dots and underscores")
    if find_spec(to) is None:
        raise UserError(
            f"track: --to {to}: its package is not installed; "
            f"`.venv/bin/pip install --constraint constraints.txt --editable '.[track-{to}]'` does that"
        )
    runs = [run for cell in cells if (run := run_of(layout, see(layout, cell))).history]
    if not runs:
        raise UserError(
            f"track: none of {count(len(cells), 'cell')} below {layout.root} has begun to train; nothing is written"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # they have much to say of every run
        try:
            (out / to).mkdir(parents=True, exist_ok=True)
            where = WRITERS[to](runs, project, out)
        except OSError as error:
            raise UserError(
                f"track: --out {out}: cannot be written below ({error.strerror or error}); name another directory"
            ) from None
    say(f"{len(runs)} of {count(len(cells), 'cell')} written for {to}; look at them with: {where}")


def run_of(layout: Layout, one: Seen) -> Run:
    """What there is of a cell by now."""
    name = one.cell.name
    rows = one.history.drop(columns="step").to_dict("records")
    history = [
        (int(step), {str(key): value for key, value in row.items() if math.isfinite(value)})
        for step, row in zip(one.history["step"], rows, strict=True)
    ]
    samples = one.samples[SHOWN].head(SAMPLES) if one.metrics else pd.DataFrame(columns=SHOWN)
    rollouts = pd.DataFrame(columns=["step", *SHOWN])
    for directory in (layout.train(name), *sorted(layout.checkpoints(name).glob("step-*"), reverse=True)):
        if (directory / "rollouts.parquet").is_file():
            found = read_table(directory / "rollouts.parquet", ROLLOUTS)
            rollouts = found.groupby("step").head(ROLLOUTS_EACH)[["step", *SHOWN]].reset_index(drop=True)
            break
    return Run(name, one.cell.model_dump(mode="json"), history, dict(_summary(one)), rollouts, samples)


def _summary(one: Seen) -> Iterator[tuple[str, Any]]:
    yield "state", one.status.state
    for group in ("full", "top_k", "published", "onset"):
        for key, value in (one.metrics.get(group) or {}).items():
            if isinstance(value, int | float):
                yield f"{group}/{key}", value
    if one.status.state == "stopped":
        yield "stopped_at", one.status.step
    if one.metrics.get("verdict"):
        yield "verdict", one.metrics["verdict"]
        yield "reasons", ", ".join(one.metrics["reasons"])


def _to_tensorboard(runs: Sequence[Run], project: str, out: Path) -> str:
    from torch.utils.tensorboard import SummaryWriter

    for run in runs:
        directory = out / "tensorboard" / project / run.name
        shutil.rmtree(directory, ignore_errors=True)
        writer = SummaryWriter(str(directory))
        last = run.history[-1][0]
        for step, row in run.history:
            for key, value in row.items():
                writer.add_scalar(f"history/{key}", value, step)
        for recorded in sorted(set(run.rollouts["step"])):
            writer.add_text("rollouts", _as_code(run.rollouts[run.rollouts["step"] == recorded]), recorded)
        if len(run.samples):
            writer.add_text("samples", _as_code(run.samples), last)
        said = {key: "-" if value is None else value for key, value in run.config.items()}
        spec = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in said.items()
        }
        numbers = {key: value for key, value in run.summary.items() if not isinstance(value, str)}
        words = {key: value for key, value in run.summary.items() if isinstance(value, str)}
        writer.add_hparams(spec | words, numbers, run_name=".", global_step=last)
        writer.close()
    return f"tensorboard --logdir {shlex.quote(str(out / 'tensorboard'))}"


def _to_wandb(runs: Sequence[Run], project: str, out: Path) -> str:
    import wandb

    out.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, disable_job_creation=True, x_disable_stats=True
    )
    for run in runs:
        for old in (out / "wandb").glob(f"offline-run-*-{_wandb_id(run)}"):
            shutil.rmtree(old)
        live = wandb.init(
            project=project,
            name=run.name,
            id=_wandb_id(run),
            config=dict(run.config),
            dir=str(out),
            mode="offline",
            settings=settings,
        )
        for step, row in run.history:
            live.log(dict(row), step=step)
        for key, frame in (("rollouts", run.rollouts), ("samples", run.samples)):
            if len(frame):
                live.log({key: wandb.Table(dataframe=frame)}, step=run.history[-1][0])
        live.summary.update(dict(run.summary))
        live.finish()
    return f"wandb sync {shlex.quote(str(out / 'wandb'))}/offline-run-*"


def _to_trackio(runs: Sequence[Run], project: str, out: Path) -> str:
    # It reads these once, as it is imported: its place, and where else it would send runs.
    os.environ["TRACKIO_DIR"] = str((out / "trackio").resolve())
    for elsewhere in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID"):
        os.environ.pop(elsewhere, None)
    import trackio

    known: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # a project that is not there yet
        known = {old.name: old for old in trackio.Api().runs(project)}
    for run in runs:
        if run.name in known:
            known[run.name].delete()
        config = {key: "-" if value is None else value for key, value in run.config.items()}
        live = trackio.init(
            project=project,
            name=run.name,
            config=config | dict(run.summary),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for step, row in run.history:
            live.log(dict(row), step=step)
        for key, frame in (("rollouts", run.rollouts), ("samples", run.samples)):
            if len(frame):
                live.log({key: trackio.Table(dataframe=frame)}, step=run.history[-1][0])
        numbers = {key: value for key, value in run.summary.items() if not isinstance(value, str)}
        if numbers:
            live.log(numbers, step=run.history[-1][0])
        trackio.finish()
    return f"TRACKIO_DIR={shlex.quote(str(out / 'trackio'))} trackio show --project {project}"


WRITERS: dict[str, Callable[[Sequence[Run], str, Path], str]] = {
    "trackio": _to_trackio,
    "wandb": _to_wandb,
    "tensorboard": _to_tensorboard,
}


def _wandb_id(run: Run) -> str:
    """An id has no more than 128 letters; the hash alone tells cells apart."""
    return run.name.rpartition("-")[2]


def _as_code(frame: pd.DataFrame) -> str:
    """Samples as indented Markdown, in which nothing is markup."""
    rows = frame.to_dict("records")
    return "\n\n".join(
        f"    reward {row['reward']:.3f}  sl10 {row['sl10']:.3f}  happy {row['happy']:.0f}\n"
        + "\n".join(f"    {line}" for line in f"{row['prompt']} | {row['completion']}".splitlines())
        for row in rows
    )
