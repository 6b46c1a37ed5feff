"""``python -m rewardgrid cells``: which cells there are, where they lie and how far they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml
from pydantic import TypeAdapter, ValidationError

from rewardgrid.study.cell import Cell, format_number
from rewardgrid.study.errors import UserError, did_you_mean
from rewardgrid.study.layout import Layout, done
from rewardgrid.study.study import OTHERS_SAY, WRITABLE, Study


def select(study: Study, words: Iterable[str]) -> list[Cell]:
    """The unique cells of the experiments named (default: all) that have every ``key=value`` asked for.

    Raises:
        UserError: an unknown experiment or key, a value that the key cannot have, or no cell is left.
    """
    words = list(words)
    names = [word for word in words if "=" not in word]
    wanted = dict(_filter(word) for word in words if "=" in word)
    for name in names:
        if name not in study.active:
            hint = did_you_mean(name, study.active) or f" known: {', '.join(study.active)}"
            raise UserError(f"{name}: no such experiment;{hint}")
    cells = {cell.name: cell for name in names or study.active for cell in study.grid[name]}
    found = [cell for cell in cells.values() if _matches(cell, wanted)]
    if not found:
        raise UserError(f"no cell has {' '.join(words)}; the study has {len(study.cells)} cells in all")
    return found


def _filter(word: str) -> tuple[str, tuple[object, ...]]:
    """``rank=1,2`` as ("rank", (1, 2)), read as the configuration would read it."""
    key, _, text = word.partition("=")
    if key not in WRITABLE:
        hint = did_you_mean(key, WRITABLE, OTHERS_SAY) or f" known: {', '.join(WRITABLE)}"
        raise UserError(f"{word}: no such key of a cell;{hint}")
    adapter: TypeAdapter[object] = TypeAdapter(Cell.model_fields[key].rebuild_annotation())
    try:
        return key, tuple(adapter.validate_python(yaml.safe_load(part)) for part in text.split(","))
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise UserError(f"{word}: cannot be a value of {key}; write {message}") from None


def _matches(cell: Cell, wanted: Mapping[str, Sequence[object]]) -> bool:
    return all(getattr(cell, key) in values for key, values in wanted.items())


def print_paths(layout: Layout, cells: Iterable[Cell]) -> None:
    """One line for each cell: the path to ask snakemake for."""
    print("\n".join(str(layout.metrics(cell.name)) for cell in cells))


def print_table(layout: Layout, cells: Sequence[Cell]) -> None:
    """The state of each cell, the fields in which the cells differ, and the cell's name."""
    from rich.console import Console
    from rich.table import Table

    differing = [key for key in Cell.model_fields if len({getattr(cell, key) for cell in cells}) > 1]
    table = Table("state", *differing, "cell")
    table.columns[-1].overflow = "fold"
    for cell in cells:
        table.add_row(done(layout, cell), *(_shown(getattr(cell, key)) for key in differing), cell.name)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{len(cells)} cells; the path of one is {layout.metrics('<cell>')}", markup=False)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return format_number(value) if type(value) in (int, float) else str(value)  # type: ignore[arg-type]
