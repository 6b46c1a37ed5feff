"""``python -m rewardgrid show`` and ``compare``: one cell, or two side by side, from whatever there is of them by now.

Everything is text of others: specs of names, completions, reasons. None of it is read as markup, and none steers the
terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rewardgrid.cli.cells import shown
from rewardgrid.cli.status import CellStatus, details, look
from rewardgrid.report.sparkline import sparkline
from rewardgrid.study.cell import Cell, read_cell
from rewardgrid.study.contracts import ROLLOUTS, SAMPLES, read_table
from rewardgrid.study.errors import UserError, did_you_mean
from rewardgrid.study.files import object_in, read_bounded, text_of
from rewardgrid.study.forecast import STATUS_BYTES
from rewardgrid.study.history import read_history
from rewardgrid.study.layout import Layout, measured
from rewardgrid.study.study import Study
from rewardgrid.study.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CURVES = ("reward", "sl10", "happy", "hacked", "kl", "entropy", "completion_length")
"""Of the history, those that tell of gaming first."""
CURVE_WIDTHS = {1: 40, 2: 14}
"""By how many cells stand side by side: a terminal of 80 columns has room for them."""
LEAST_CURVE = 6
NARROW = 64
"""Columns of a terminal below which the figures that say least are left out."""
TEXT_LENGTH = 2000
GAP = 2
FIGURE_WIDTH = 6
"""Of a figure with three digits, mostly."""


@dataclass(frozen=True)
class Seen:
    """What there is of a cell by now."""

    cell: Cell
    status: CellStatus
    history: pd.DataFrame
    """Schema HISTORY."""
    metrics: Mapping[str, Any]
    """Of the evaluation; empty before it."""
    samples: pd.DataFrame
    """prompt, completion, reward, sl10, happy."""
    source: str
    """What the samples are, in words; empty if there are none."""


# --- finding -------------------------------------------------------------------------------------------


def find(study: Study, word: str) -> tuple[Layout, Cell]:
    """The one cell that a word means: a path to or below its directory, its name, or the beginning of its name or hash.

    Raises:
        UserError: it means none, or several.
    """
    layout = study.layout
    if word in study.cells:
        return layout, study.cells[word]
    path = Path(word)
    for directory in (path, *path.parents):
        if directory.parent.name == "cells" and (directory.name in study.cells or (directory / "spec.json").exists()):
            return Layout(directory.parent.parent), _cell_at(study, Layout(directory.parent.parent), directory.name)
    if "/" in word:
        raise UserError(
            f"{word}: no cell's directory; give one as results/cells/NAME, or the beginning of a cell's name"
        )
    there = [path.parent.name for path in (layout.root / "cells").glob("*/spec.json")]
    names = sorted({*study.cells, *there})
    begun = [name for name in names if name.startswith(word) or name.rpartition("-")[2].startswith(word)]
    if not begun:
        raise UserError(
            f"{word}: no cell's name or hash begins so;{did_you_mean(word, names)} `python -m rewardgrid cells` lists "
            "them (give it the same --configfile; what is a default is left out of a name)"
        )
    if len(begun) > 1:
        more = "" if len(begun) <= 6 else f"\n  and {len(begun) - 6} more"
        listed = "".join(f"\n  {name}" for name in begun[:6])
        raise UserError(f"{word}: {len(begun)} cells begin so; write more of the name, or of its hash:{listed}{more}")
    return layout, _cell_at(study, layout, begun[0])


def _cell_at(study: Study, layout: Layout, name: str) -> Cell:
    if name in study.cells:
        return study.cells[name]
    spec = layout.spec(name)
    cell = read_cell(text_of(spec), str(spec))
    if cell.name != name:
        raise UserError(f"{spec}: is of cell {cell.name}, and its directory has another name; move it where it belongs")
    return cell


def see(layout: Layout, cell: Cell) -> Seen:
    """Read what there is of a cell.

    Raises:
        UserError: a finished cell's table is damaged.
    """
    metrics: Mapping[str, Any] = {}
    if measured(layout.metrics(cell.name)):
        metrics = object_in(read_bounded(layout.metrics(cell.name), STATUS_BYTES)) or {}
    samples, source = _samples(layout, cell.name)
    return Seen(cell, look(layout, cell), read_history(layout, cell.name), metrics, samples, source)


def _samples(layout: Layout, name: str) -> tuple[pd.DataFrame, str]:
    """Texts of a cell, the newest that there are, and what they are."""
    if measured(layout.metrics(name)) and layout.samples(name).exists():
        found = read_table(layout.samples(name), SAMPLES)
        found = found[(found["protocol"] == "full") & (found["mode"] == "both")]
        if len(found):
            return found.reset_index(drop=True), "samples of the finished cell"
    checkpoints = sorted(layout.checkpoints(name).glob("step-*"), reverse=True)
    for directory in (layout.train(name), layout.kept(name), *checkpoints):
        try:
            found = read_table(directory / "rollouts.parquet", ROLLOUTS)
        except UserError:  # not there, or a checkpoint that is being removed
            continue
        if len(found):
            step = found["step"].max()
            return found[found["step"] == step].reset_index(drop=True), f"rollouts of step {step}"
    return pd.DataFrame(columns=["prompt", "completion", "reward", "sl10", "happy"]), ""


# --- showing -------------------------------------------------------------------------------------------


def show(study: Study, word: str, samples: int) -> None:
    """Print a cell: spec, state, curves, onset, verdict with evidence, a few samples with their rewards."""
    layout, cell = find(study, word)
    one = see(layout, cell)
    console = _console()
    console.print(_heading(one), soft_wrap=True)
    console.print(clean(layout.cell(cell.name)), style="dim", soft_wrap=True)  # to be copied
    _section(console, "Spec", "what differs from the defaults, then the rest")
    own, rest = _spec(cell)
    console.print("  ".join(own) or "nothing differs")
    console.print("  ".join(rest), style="dim")
    _section(console, "Curves", _steps(one))
    console.print(_curves([one], console.width) if len(one.history) else "not a step yet")
    _section(console, "Onset", "")
    console.print(onset(one))
    if one.metrics.get("evidence"):
        _section(console, "Verdict", judged(one))
        console.print(_evidence(one, console.width))
    if one.metrics.get("modes"):
        _section(console, "Adapters", "what each set of them writes")
        console.print(_adapters(one))
    _section(console, "Samples", one.source or "none yet")
    for row in one.samples.head(samples).to_dict("records"):
        console.print(_scores(row), style="bold")
        console.print(_text(row))


def compare(study: Study, words: Sequence[str], samples: int) -> None:
    """Print two cells side by side: what differs in their specs, their curves, samples on the same prompts."""
    from rich.table import Table

    pair = [see(*find(study, word)) for word in words]
    console = _console()
    for letter, one in zip("AB", pair, strict=True):
        console.print(f"{letter}  ", _heading(one), sep="", soft_wrap=True)
    _section(console, "Spec", "where they differ")
    differing = differences(pair[0].cell, pair[1].cell)
    if differing:
        table = _table("", "A", "B")
        for key, *values in differing:
            table.add_row(*(clean(text) for text in (key, *values)))
        console.print(table)
    else:
        console.print("they are the same cell")
    _section(console, "Curves", f"A: {_steps(pair[0])}; B: {_steps(pair[1])}; one scale for both")
    console.print(_curves(pair, console.width))
    _section(console, "Onset and verdict", "")
    for letter, one in zip("AB", pair, strict=True):
        console.print(f"{letter}  {onset(one)}; {judged(one)}")
    common = on_same_prompts(*pair)
    _section(console, "Samples", _same_prompts_in_words(pair, len(common)))
    for a, b in common[:samples]:
        table = Table(box=None, expand=True, padding=(0, 2, 0, 0))
        for letter, row in zip("AB", (a, b), strict=True):
            table.add_column(f"{letter}  {_scores(row)}", ratio=1, overflow="fold")
        table.add_row(_text(a), _text(b))
        console.print(table)
        console.print()


def differences(a: Cell, b: Cell) -> list[tuple[str, str, str]]:
    """The fields in which two cells differ, with both values in words."""
    return [
        (key, shown(getattr(a, key)), shown(getattr(b, key)))
        for key in Cell.model_fields
        if getattr(a, key) != getattr(b, key)
    ]


def on_same_prompts(a: Seen, b: Seen) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Samples of both cells for the same prompt, the first that each has for it, in A's order."""
    first = {row["prompt"]: row for row in reversed(b.samples.to_dict("records"))}
    own = {row["prompt"]: row for row in reversed(a.samples.to_dict("records"))}
    rows = [own[prompt] for prompt in dict.fromkeys(a.samples["prompt"]) if prompt in first]
    return [(_named(row), _named(first[row["prompt"]])) for row in rows]


def onset(one: Seen) -> str:
    """Since when a cell hacks and degenerates, in words."""
    if not one.metrics:
        return "hacking and degeneration: known when the cell is evaluated"
    found = one.metrics.get("onset") or {}
    said = []
    for key, what in (("hack_onset", "hacking"), ("degeneration_onset", "degeneration")):
        step = found.get(key)
        said.append(f"{what} from step {step}" if step is not None else f"no {what}")
    return ", ".join(said)


def judged(one: Seen) -> str:
    """The verdict with its reasons, in words."""
    if one.status.state == "diverged":
        return f"diverged: {one.status.note}"
    if one.metrics.get("verdict") is None:
        return "no verdict yet"
    said = _with_reasons(one.metrics)
    return clean(f"{said}, at step {one.status.step:.0f}, where it stopped" if one.status.state == "stopped" else said)


def _with_reasons(found: Mapping[str, Any]) -> str:
    """``degenerate: template``, of what has a verdict."""
    return ": ".join([str(found["verdict"]), *([", ".join(found["reasons"])] if found.get("reasons") else [])])


def clean(text: object) -> str:
    """Text of any origin on one line, with nothing in it that steers a terminal."""
    return printable(" ".join(str(text).split()), TEXT_LENGTH)


def _heading(one: Seen) -> Any:
    from rich.text import Text

    text = Text(clean(one.cell.name), style="bold")
    state = [one.status.state, *details(one.status)]
    return text.append("\n" + printable("  ".join(state), TEXT_LENGTH), style="not bold")


def _spec(cell: Cell) -> tuple[list[str], list[str]]:
    own: list[str] = []
    rest: list[str] = []
    for key, field in Cell.model_fields.items():
        value = getattr(cell, key)
        (rest if value == field.default else own).append(f"{key}={clean(shown(value))}")
    return own, rest


def _steps(one: Seen) -> str:
    return f"{len(one.history)} of {one.cell.max_steps} steps"


def _curves(cells: Sequence[Seen], width: int) -> Table:
    """A row for each curve; several cells have one scale."""
    ends = ("last",) if width < NARROW and len(cells) > 1 else ("first", "last")
    taken = max(map(len, CURVES)) + GAP + len(cells) * (GAP + len(ends) * (FIGURE_WIDTH + GAP))
    each = min(max((width - taken) // len(cells), LEAST_CURVE), CURVE_WIDTHS[len(cells)])
    table = _table(
        "", *(column for _ in cells for column in ("", *ends)), figures=[True] * len(cells) * (1 + len(ends))
    )
    for key in CURVES:
        curves = [one.history[key].tolist() for one in cells]
        known = [value for curve in curves for value in curve if math.isfinite(value)]
        if not known or (key in ("happy", "hacked") and not any(known)):
            continue
        scale = None if len(cells) == 1 else (min(known), max(known))
        row = [key]
        for curve in curves:
            row += [sparkline(curve, each, scale), *_ends(curve)[-len(ends) :]]
        table.add_row(*row)
    return table


def _ends(curve: Sequence[float]) -> tuple[str, str]:
    return (f"{curve[0]:.3g}", f"{curve[-1]:.3g}") if curve else ("", "")


def _evidence(one: Seen, width: int) -> Table:
    limits = () if width < NARROW else ("borderline", "degenerate")
    table = _table("signal", "this", "base", *limits, "says", figures=[True] * (2 + len(limits)))
    for signal in one.metrics["evidence"]:
        figures = (signal.get(key) for key in ("value", "base", *limits))
        table.add_row(
            clean(signal.get("signal")),
            *("-" if value is None else f"{value:.3g}" for value in figures),
            clean(signal.get("label")),
        )
    return table


def _adapters(one: Seen) -> Table:
    table = _table("active", "sl10", "happy", "stories", figures=[True] * 2)
    for mode, figures in one.metrics["modes"].items():
        scores = (f"{figures[name]:.3g}" for name in ("sl10", "happy"))
        table.add_row(clean(mode), *scores, clean(_with_reasons(figures)) if figures.get("verdict") else "not judged")
    return table


def _scores(row: Mapping[Any, Any]) -> str:
    happy = f"  happy {row['happy']:.0f}" if row["happy"] else ""
    return f"reward {row['reward']:.3f}  sl10 {row['sl10']:.3f}{happy}"


def _text(row: Mapping[Any, Any]) -> str:
    return f"{clean(row['prompt'])} | {clean(row['completion'])}"


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in row.items()}


def _same_prompts_in_words(pair: Sequence[Seen], common: int) -> str:
    if common:
        return f"on the same prompts: {' | '.join(one.source for one in pair)}"
    if all(one.source for one in pair):
        return "none on the same prompts (evaluated cells of one base have them)"
    return "none yet of " + " and ".join(letter for letter, one in zip("AB", pair, strict=True) if not one.source)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def _table(*columns: str, figures: Sequence[bool] = ()) -> Table:
    """A table without lines, in which no text is cut off; ``figures`` tells of the second column and so on."""
    from rich.table import Column, Table

    whole = [False, *figures, *[False] * (len(columns) - 1 - len(figures))]
    made = [Column(name, overflow="fold", no_wrap=own) for name, own in zip(columns, whole, strict=True)]
    return Table(*made, box=None, padding=(0, GAP, 0, 0), header_style="dim")


def _section(console: Console, title: str, text: str) -> None:
    from rich.text import Text

    console.print()
    console.print(Text(title, style="bold cyan").append(f"  {clean(text)}" if text else "", style="not bold dim"))
