"""One tidy row per cell, and means over seeds that hide neither a missing nor a diverged cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rewardgrid.report.columns import (
    COLUMNS,
    FINAL_STEPS,
    MEASURED_COLUMNS,
    NOTHING,
    OWN,
    PASSING,
    RENAMED,
    SPEC_COLUMNS,
    THRESHOLDS,
    bounds,
    known,
    rounded,
    settings,
    show,
    table_schema,
)
from rewardgrid.report.sparkline import sparkline
from rewardgrid.report.statistics import Mean, clipped, mean_of
from rewardgrid.study.cell import EVAL_MODES, Cell, read_cell
from rewardgrid.study.contracts import COURSE, HISTORY, read_table, write_table
from rewardgrid.study.errors import AGAIN, ConfigError, UserError, did_you_mean
from rewardgrid.study.files import text_of
from rewardgrid.study.finished import check_steps, read_metrics, read_status
from rewardgrid.study.history import rewards_so_far
from rewardgrid.study.layout import Layout, done
from rewardgrid.study.steps import first_reaching, lasting_from
from rewardgrid.study.study import Evaluation, Experiment, Study
from rewardgrid.study.verdict import LABELS, verdict

Row = Mapping[str, Any]
"""A cell of an experiment: column -> value, None where there is none."""

_LATEX = str.maketrans(
    {letter: rf"\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NOTHING: "--"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "\n": " ", "[": "{[}", "*": "{*}"}
)
"""What LaTeX would read as something else; after the end of a row, brackets and stars too."""

UNMEANT = ("stopped", "diverged")
"""States of cells that have run and are in no mean."""

CURVE_WIDTH = 24

_UNFINISHED = {
    "waiting": "not started",
    "started": "training not finished",
    "trained": "trained, not evaluated",
    "done": "evaluated, but its training files are gone",
}


def time_to_threshold(
    rewards: Sequence[float], seconds: Sequence[float], threshold: float
) -> tuple[int | None, float | None]:
    """First step (from 1) at which the mean of 10 rewards is at least the threshold, and the seconds spent.

    (None, None) if the threshold is never reached.
    """
    step = first_reaching(rewards, threshold)
    return step, None if step is None else math.fsum(seconds[:step])


def spec_row(cell: Cell) -> dict[str, Any]:
    """A cell's spec as tables show it: lists as text, and the alpha of LoRA named although it is the default."""
    spec = cell.model_dump(mode="json")
    if cell.stop_when is not None:
        spec["stop_when"] = str(cell.stop_when)
    if spec["eval_modes"] is not None:
        spec["eval_modes"] = ", ".join(spec["eval_modes"])
    if cell.method == "lora" and cell.adapter_alpha is None:
        spec["adapter_alpha"] = "rank"
    spec["own"] = ", ".join(f"{code.name} {code.sha256[:10]}".strip() for code in cell.own) or None
    return spec


def cell_row(study: Study, experiment: str, cell: Cell, bases: Mapping[str, Row]) -> dict[str, Any]:
    """A cell's spec and everything that was measured, from the files that training and evaluation left.

    ``bases`` are those of :func:`load_bases`.

    Its state is "missing" unless both have finished; then only the spec is filled in, and the reason. A cell
    that diverged has the steps and seconds it took, and no other figure. One that was stopped has the figures of the
    step that it came to, and that for its verdict.

    Raises:
        UserError: a file is torn or belongs to another cell.
    """
    name, layout = cell.name, study.layout
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= spec_row(cell) | {"experiment": experiment, "cell": name, "state": "missing"}
    status_path, metrics_path = layout.train(name) / "status.json", layout.metrics(name)
    if layout.spec(name).exists():
        found = read_cell(text_of(layout.spec(name)), str(layout.spec(name))).name
        if found != name:
            raise UserError(f"{layout.spec(name)}: belongs to cell {found}; {AGAIN}")
    status = read_status(status_path, name) if status_path.exists() else None
    diverged = status is not None and status["state"] == "diverged"
    if status is None or not (diverged or metrics_path.exists()):
        state = done(layout, cell)
        return row | {"reasons": _UNFINISHED[state] + (_so_far(layout, cell) if state == "started" else "")}
    row |= {
        "state": status["state"],
        "steps_done": status["steps_done"],
        "seconds": status["seconds"],
        "seconds_per_step": status["seconds"] / status["steps_done"] if status["steps_done"] else None,
        "hardware": status["hardware"],
        "versions": ", ".join(f"{package} {version}" for package, version in sorted(status["versions"].items())),
    }
    if diverged:
        return row | {"reasons": status["reason"]}
    history_path = layout.train(name) / "history.parquet"
    history = read_table(history_path, HISTORY)
    check_steps(len(history), str(history_path), status, str(status_path))
    measured = _from_metrics(read_metrics(metrics_path, name))
    if layout.course(name).exists():
        # By today's rule: the course may have been measured before it.
        course = read_table(layout.course(name), COURSE)
        measured["degeneration_onset"] = lasting_from(course["step"].tolist(), (course["verdict"] != "ok").tolist())
    row |= _from_history(history) | measured
    if cell.base_id in bases:
        row["verdict_published_signals"] = _by_published_signals(row, bases[cell.base_id], study.evaluation)
    if row["state"] != "stopped":
        return row
    final = verdict_in_words(row["verdict"], row["reasons"])
    at = f"at step {status['stopped_at']} of {cell.max_steps}: {status['reason']}; then its samples are {final}"
    return row | {"stopped_at": status["stopped_at"], "verdict": "stopped", "reasons": at}


def _so_far(layout: Layout, cell: Cell) -> str:
    """How far a cell that is not finished has come."""
    rewards = rewards_so_far(layout, cell.name)
    if not rewards:
        return ""
    return f": step {len(rewards)} of {cell.max_steps}, reward {sparkline(rewards, CURVE_WIDTH)} {rewards[-1]:.3f}"


def _from_history(history: pd.DataFrame) -> dict[str, Any]:
    final = history.tail(FINAL_STEPS)
    row: dict[str, Any] = {
        "final_reward": float(final["reward"].mean()),
        "final_reward_sd": float(final["reward"].std()) if len(final) > 1 else None,
        "final_kl": float(final["kl"].mean()),
    }
    for suffix, threshold in THRESHOLDS.items():
        steps, seconds = time_to_threshold(history["reward"].tolist(), history["seconds"].tolist(), threshold)
        row |= {f"steps_to_{suffix}": steps, f"seconds_to_{suffix}": seconds}
    return row


def _from_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: metrics["published"].get(key) for key in ("unique_first_sentences", "jaccard")}
    row |= {RENAMED.get(key, key): value for key, value in metrics["full"].items()}
    row |= {f"{key}_top_k": value for key, value in metrics["top_k"].items()}
    row |= metrics["onset"]
    modes = {mode: metrics["modes"].get(mode) or {} for mode in EVAL_MODES}
    row |= {
        f"{mode}_{metric}": value
        for mode, figures in modes.items()
        for metric, value in figures.items()
        if metric not in ("verdict", "reasons", "evidence")
    }
    unknown = sorted(set(row) - set(MEASURED_COLUMNS))
    if unknown:
        raise ValueError(f"metrics without a documented column: {', '.join(unknown)}")
    row |= metrics.get("own", {})
    for mode, figures in modes.items():
        if "verdict" in figures:
            row |= {f"{mode}_verdict": figures["verdict"], f"{mode}_reasons": ", ".join(figures["reasons"])}
    return row | {"verdict": metrics["verdict"], "reasons": ", ".join(metrics["reasons"])}


def _by_published_signals(row: Row, base: Row, settings: Evaluation) -> str:
    """The verdict on what the published rows give of a cell, and on nothing else.

    A reward that may exceed 1 does not say when it is saturated.
    """
    signals = {name: row[name] for name in ("unique_first_sentences", "jaccard", "completion_length")}
    signals |= {"prompts": settings.published_prompts, "kl_k3": row["final_kl"]}
    if bounds("final_reward", row["reward"])[1] == 1.0:
        signals["reward"] = row["final_reward"]
    return verdict(signals, base, settings.thresholds).label


def load_bases(study: Study) -> dict[str, Row]:
    """The rows of those bases that have been measured."""
    paths = {base_id: study.layout.base_metrics(base_id) for base_id in study.base_recipes}
    return {base_id: base_row(base_id, read_metrics(path, base_id)) for base_id, path in paths.items() if path.exists()}


def base_row(base_id: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The base's own samples as a row of the same columns: the reference that cells are judged against.

    ``rewards`` and ``says`` are no columns: what the base earns untrained, by what is paid for, and of how many of its
    stories functions of one's own say anything but 0.
    """
    identity = {"cell": base_id, "state": "base", **{key: metrics[key] for key in ("max_new_tokens", "rewards")}}
    identity["says"] = metrics.get("says", {})
    return dict.fromkeys(COLUMNS) | _from_metrics(metrics) | identity


def experiment_table(study: Study, name: str) -> pd.DataFrame:
    """One row per cell of an experiment, in the order of its grids; columns as in ``COLUMNS``, and the study's own.

    Raises:
        UserError: as ``cell_row``; or the experiment is unknown or left out.
    """
    if name not in study.active:
        raise UserError(
            f"experiment {name}: unknown or left out;{did_you_mean(name, study.active)} "
            f"write one of: {', '.join(study.active)}"
        )
    bases = load_bases(study)
    rows = [cell_row(study, name, cell, bases) for cell in study.grid[name]]
    return pd.DataFrame(rows, columns=[*COLUMNS, *own_columns(study)], dtype=object)


def own_columns(study: Study) -> list[str]:
    """The columns of the metrics of a study's own: of each its mean, and the standard error of that."""
    return [f"{OWN}{name}{suffix}" for name in study.evaluation.metrics for suffix in ("", "_se")]


def write_experiment(path: Path | str, table: pd.DataFrame) -> None:
    """Write an experiment's table with the unit or meaning of each column in its schema."""
    write_table(path, table, table_schema([name for name in table.columns if name.startswith(OWN)]))


def shown_columns(experiment: Experiment) -> list[str]:
    """The columns of an experiment's table that people are shown."""
    return list(experiment.columns) or ["cell", "final_reward", "final_kl", "verdict"]


def latex_table(rows: Sequence[Row], experiment: Experiment) -> str:
    """The shown columns as a LaTeX table with the rules of ``booktabs``."""
    columns = shown_columns(experiment)
    if any(row["state"] == "stopped" for row in rows):
        columns += [name for name in ("verdict", "stopped_at") if name not in columns]
    sides = "".join("r" if str(COLUMNS[name].kind) in ("int64", "double") else "l" for name in columns)
    lines = [[COLUMNS[name].label for name in columns], *([show(name, row[name]) for name in columns] for row in rows)]
    heading, *body = (" & ".join(text.translate(_LATEX) for text in line) + r" \\" for line in lines)
    rules = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", heading, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*rules, r"\end{tabular}"]) + "\n"


def read_experiment(path: Path | str) -> pd.DataFrame:
    """Read an experiment's table; whole numbers stay whole and nothing is None.

    Raises:
        UserError: the file is missing, torn, or has other columns.
    """
    frame = read_table(path, table_schema(_own_columns_of(path)))
    whole = {name for name, column in COLUMNS.items() if str(column.kind) == "int64"}
    columns = {
        name: [(int(value) if name in whole else value) if known(value) else None for value in frame[name].tolist()]
        for name in frame.columns
    }
    return pd.DataFrame(columns, dtype=object)


def _own_columns_of(path: Path | str) -> list[str]:
    try:
        return [name for name in pq.read_schema(path).names if name.startswith(OWN)]
    except (pa.ArrowException, OSError):
        return []  # what is wrong with the file is said when it is read


def rows_of(table: pd.DataFrame) -> list[Row]:
    """The table as one mapping per cell, None where there is no value."""
    return [
        {str(name): value if known(value) else None for name, value in row.items()} for row in table.to_dict("records")
    ]


def base_of(row: Row) -> str:
    """Name of the base that a cell started from, as its directory has it."""
    return f"{row['base']}-{row['base_recipe']}"


def verdict_in_words(label: str, reasons: str) -> str:
    """``degenerate (template)``."""
    return f"{label} ({reasons})" if reasons else label


def verdicts_in_numbers(verdicts: Iterable[str]) -> str:
    """``2 ok, 1 degenerate``: how many there are of each, the mildest first."""
    found = Counter(verdicts)
    return ", ".join(f"{found[label]} {label}" for label in LABELS if found[label])


def verdicts_in_short(verdicts: Sequence[str]) -> str:
    """``degenerate``, or how many there are of each where they differ."""
    return verdicts[0] if len(set(verdicts)) == 1 else verdicts_in_numbers(verdicts)


def faults(cells: Iterable[Row], column: str = "reasons") -> str:
    """``chopped sentences in 6 cells, template in 1``: the reasons of their verdicts, the commonest first."""
    found = Counter(reason for row in cells if row[column] for reason in row[column].split(", "))
    said = [f"{reason} in {number}" for reason, number in found.most_common()]
    number = max(found.values(), default=0)
    return ", ".join([f"{said[0]} {'cell' if number == 1 else 'cells'}", *said[1:]]) if said else ""


# --- means over seeds ----------------------------------------------------------------------------------


def varying(rows: Sequence[Row]) -> list[str]:
    """The spec fields in which these cells differ, the seed and the base's hash aside."""
    return [
        name
        for name in SPEC_COLUMNS
        if name not in ("seed", "base_recipe", "own") and len({row[name] for row in rows}) > 1
    ]


@dataclass(frozen=True)
class Configuration:
    """The cells that differ only in their seed. A stopped, diverged or missing one is counted and never averaged.

    ``fields`` make the configuration; ``named`` are those of them that tell it from the others.
    """

    fields: tuple[str, ...]
    named: tuple[str, ...]
    cells: tuple[Row, ...]

    @cached_property
    def finished(self) -> list[Row]:
        """The cells that have the figures of a whole run."""
        return [row for row in self.cells if row["state"] == "done"]

    @cached_property
    def label(self) -> str:
        """Its settings in words, as far as it takes to tell it from the others."""
        return settings(self.named, self.cells[0]) or "the only configuration"

    @cached_property
    def verdicts(self) -> Counter[str]:
        """Finished cells by verdict, and stopped and diverged ones."""
        found = Counter(str(row["verdict"]) for row in self.finished)
        found.update(row["state"] for row in self.cells if row["state"] in UNMEANT)
        return found

    @property
    def non_degenerate(self) -> bool:
        """No seed is degenerate, stopped or diverged, and there is at least one finished."""
        return bool(self.finished) and not any(self.verdicts[label] for label in ("degenerate", *UNMEANT))

    @property
    def all_ok(self) -> bool:
        """Every seed that ran is ok, and there is at least one."""
        return bool(self.finished) and set(self.verdicts) == {"ok"}

    @cached_property
    def reward(self) -> Mean:
        """Mean reward of the last steps, over seeds."""
        return self.mean("final_reward")

    def mean(self, column: str) -> Mean:
        """Mean of a column over finished seeds, its interval cut off at what the column can be."""
        found = mean_of([row[column] for row in self.finished])
        if found.interval is None:
            return found
        low, high = clipped(found.interval, bounds(column, str(self.cells[0]["reward"])))
        return found._replace(low=low, high=high)

    def passes(self, threshold: float = PASSING) -> bool:
        """Ok in every seed, with a mean reward that is, at two decimals, at least the threshold."""
        return self.all_ok and rounded(self.reward.mean or 0.0) >= threshold

    def figures(self) -> dict[str, Any]:
        """Its row behind a finding."""
        row = self.cells[0]
        return {name: row[name] for name in self.fields} | {
            "final_reward": self.reward.mean,
            "reward sd": self.reward.sd,
            "n": self.reward.n,
            "final_kl": self.mean("final_kl").mean,
            "kl_exact": self.mean("kl_exact").mean,
            "verdicts": ", ".join(f"{count} {label}" for label, count in sorted(self.verdicts.items())),
        }


def configurations(rows: Sequence[Row], by: Sequence[str] = ()) -> list[Configuration]:
    """The configurations of an experiment, in order of appearance; those without a finished cell too.

    Args:
        rows: its cells.
        by: spec fields that make a configuration; if empty, those in which the cells differ.

    Raises:
        UserError: a configuration would average cells that differ in something other than the seed.
    """
    differing = varying(rows)
    fields = tuple(by or differing)
    found = _grouped(rows, fields)
    for members in found:
        if unequal := _unequal(members):
            raise UserError(f"experiments.{members[0]['experiment']}.by: read {list(fields)}; {unequal}")
    named = tuple(name for name in fields if name in differing) or fields
    return [Configuration(fields, named, tuple(members)) for members in found]


def _grouped(rows: Sequence[Row], fields: Sequence[str]) -> list[list[Row]]:
    """The rows that are equal in these fields, by order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in fields), []).append(row)
    return list(found.values())


def _unequal(members: Sequence[Row]) -> str:
    """What is wrong with the mean of these cells; nothing if they differ in their seed alone."""
    unequal = ", ".join(varying(members))
    return f"puts cells of different {unequal} into one mean; add {unequal}" if unequal else ""


def check_columns(study: Study) -> None:
    """Check, before anything runs, that tables can be made as every experiment's ``columns`` and ``by`` ask.

    Raises:
        UserError: naming each unknown column, and each experiment of which a configuration would average cells that
            differ in something other than the seed.
    """
    own = own_columns(study)
    problems = [
        study.problem(("experiments", name, "columns"), column, _unknown(column, own))
        for name, experiment in study.active.items()
        for column in experiment.columns
        if column not in own and (column not in COLUMNS or column.startswith(OWN))
    ]
    for name, experiment in study.active.items():
        if experiment.by:
            rows = [spec_row(cell) for cell in study.grid[name]]
            wrong = next(filter(None, map(_unequal, _grouped(rows, experiment.by))), None)
            if wrong:
                problems.append(study.problem(("experiments", name, "by"), list(experiment.by), wrong))
    if problems:
        raise ConfigError(problems)


def _unknown(column: str, own: Sequence[str]) -> str:
    columns = [*COLUMNS, *own]
    return f"no such column;{did_you_mean(column, columns) or ' known: ' + ', '.join(columns)}"
