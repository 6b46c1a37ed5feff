"""``python -m rewardgrid cells``: which cells there are, where they lie and how far they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import yaml
from pydantic import TypeAdapter, ValidationError

from rewardgrid.study.cell import Cell, format_number
from rewardgrid.study.errors import UserError, did_you_mean
from rewardgrid.study.forecast import STATES
from rewardgrid.study.layout import Layout, done, stopped_at
from rewardgrid.study.study import OTHERS_SAY, WRITABLE, Study
from rewardgrid.study.text import count

GAP = 2
SLUG_WIDTH = 46
"""Columns that a table leaves to the slugs, if they need them; longer ones are folded."""


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
        raise UserError(f"no cell has {' '.join(words)}; the study has {count(len(study.cells), 'cell')} in all")
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
    """The state of each cell, as many of the fields in which the cells differ as there is room for, and its slug."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, emoji=False, markup=False)
    names = short_names(cells)
    differing = [key for key in Cell.model_fields if len({shown(getattr(cell, key)) for cell in cells}) > 1]
    room = console.width - max(map(len, STATES)) - GAP - min(max(map(len, names.values())), SLUG_WIDTH)
    kept = []
    for key in differing:
        room -= GAP + max(len(key), *(len(shown(getattr(cell, key))) for cell in cells))
        if room < 0:
            break
        kept.append(key)
    table = Table("state", *kept, "cell", box=None, padding=(0, GAP, 0, 0), header_style="bold")
    for column in table.columns[:-1]:
        column.no_wrap = True
    table.columns[-1].overflow = "fold"
    for cell in cells:
        state = done(layout, cell) if stopped_at(layout, cell) is None else "stopped"
        table.add_row(state, *(shown(getattr(cell, key)) for key in kept), names[cell.name])
    console.print(table)
    if kept != differing:
        console.print(f"They differ too in {', '.join(differing[len(kept) :])}, where the name says so.", style="dim")
    console.print(
        f"{count(len(cells), 'cell')} below {layout.cell('')}. "
        "The beginning of a name is enough for `show`; --paths has paths.",
        style="dim",
    )


def short_names(cells: Iterable[Cell]) -> dict[str, str]:
    """What people call each cell, by its name: without the hash, unless others are called so too."""
    slugs = {cell.name: cell.name.rpartition("-")[0] for cell in cells}
    count = Counter(slugs.values())
    return {name: name if count[slug] > 1 else slug for name, slug in slugs.items()}


def shown(value: object) -> str:
    """A value of a spec as people write it."""
    if value is None or value == ():
        return "-"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return format_number(value) if type(value) in (int, float) else str(value)  # type: ignore[arg-type]
