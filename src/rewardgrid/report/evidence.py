"""Everything that findings and comparisons are computed from, read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from rewardgrid.report.tables import Row, load_bases, read_experiment, rows_of
from rewardgrid.study.contracts import HISTORY, ROUTING, SAMPLES, read_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.history import read_history
from rewardgrid.study.problems import validated
from rewardgrid.study.study import Study
from rewardgrid.study.text import count


@dataclass(frozen=True)
class Evidence:
    """Tables by experiment, curves and samples (full protocol) by cell or base, and the bases' own rows."""

    tables: Mapping[str, Sequence[Row]]
    histories: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    routing: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    samples: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    bases: Mapping[str, Row] = field(default_factory=dict)
    unfinished: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Histories of cells that still train, as far as they go: for pictures alone."""

    def finished(self) -> list[Row]:
        """Every finished cell once, whichever experiments it belongs to."""
        rows = (row for table in self.tables.values() for row in table if row["state"] == "done")
        return list({row["cell"]: row for row in reversed(list(rows))}.values())[::-1]


def read_study(path: Path) -> Study:
    """Read the checked configuration that the study script wrote.

    Raises:
        UserError: the file is missing or holds no study.
    """
    try:
        return validated(Study, path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with workflow/scripts/study.py") from None


def load_evidence(study: Study, tables: Path, names: Iterable[str]) -> Evidence:
    """Read the tables of some experiments, and the curves of their finished cells.

    Raises:
        UserError: a table is missing, or a file is torn.
    """
    layout = study.layout
    evidence = Evidence({name: rows_of(read_experiment(tables / f"{name}.parquet")) for name in names})
    finished = [str(row["cell"]) for row in evidence.finished()]
    routing = [name for name in finished if study.cells[name].is_routing]
    return Evidence(
        tables=evidence.tables,
        histories={name: read_table(layout.train(name) / "history.parquet", HISTORY) for name in finished},
        routing={name: read_table(layout.routing(name), ROUTING) for name in routing},
        samples=load_samples(study, finished),
        bases=load_bases(study),
    )


def load_unfinished(study: Study, rows: Iterable[Row]) -> dict[str, pd.DataFrame]:
    """The histories so far of the cells that have begun and are not finished.

    Raises:
        UserError: a file is torn.
    """
    names = [str(row["cell"]) for row in rows if row["state"] == "missing"]
    found = {name: read_history(study.layout, name) for name in names}
    return {name: history for name, history in found.items() if len(history)}


def load_samples(study: Study, cells: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The samples of the full protocol of some measured cells, and of all bases that have been measured.

    Raises:
        UserError: a file is torn, or that of a cell is missing.
    """
    layout = study.layout
    paths = {name: layout.samples(name) for name in cells}
    lost = [path for path in paths.values() if not path.exists()]
    if lost:
        raise UserError(
            f"{lost[0]}: no such file, though its cell is measured ({count(len(lost), 'such cell')}); "
            f"delete {layout.metrics(lost[0].parents[1].name)} and run again, and it is measured anew"
        )
    bases = {base_id: layout.base_samples(base_id) for base_id in study.base_recipes}
    paths |= {base_id: path for base_id, path in bases.items() if path.exists()}
    read = {name: read_table(path, SAMPLES) for name, path in paths.items()}
    return {name: frame[frame["protocol"] == "full"] for name, frame in read.items()}
