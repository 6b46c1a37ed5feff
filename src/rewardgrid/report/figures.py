"""Pictures beside the tables: SVG, the same bytes for the same figures, safe for colour-blind readers.

Seeds are thin lines and their mean is thick; lines are labelled where they end rather than in a box. A
configuration has one colour, a mode of routing has one colour, and a verdict has one marker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rewardgrid.report.columns import FINAL_STEPS, SPEC_COLUMNS, settings
from rewardgrid.report.curves import mode_curve, smoothed
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Scope
from rewardgrid.report.statistics import mean_of_steps
from rewardgrid.report.tables import Configuration, Row
from rewardgrid.study import study
from rewardgrid.study.cell import format_number
from rewardgrid.study.files import atomic_write
from rewardgrid.study.steps import SMOOTHING_STEPS
from rewardgrid.study.text import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Okabe and Ito's colours without the yellow that vanishes on white, and a brown."""
MODE_COLOURS = {"both": "#000000", "retain_only": "#0072B2", "forget_only": "#D55E00"}
ONSETS = {"degeneration_onset": "X", "hack_onset": "*"}
"""Where a run turns, on its learning curve."""
MARKERS = {"ok": "o", "borderline": "^", "degenerate": "X"}
VERDICT_COLOURS = {"ok": "#009E73", "borderline": "#E69F00", "degenerate": "#D55E00", "diverged": "#666666"}

MOST_LINES = 6
"""Configurations in one panel; with more, each value of the first field has a panel of its own."""
MOST_POINTS = 250
"""Points of a learning curve."""
MOST_PANELS = 4
"""Panels side by side."""

_STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "rewardgrid",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def draw(name: study.FigureName, path: Path | str, scope: Scope) -> None:
    """Draw one figure of an experiment into an SVG file.

    An experiment without anything to show gives a picture that says so.

    Args:
        name: which figure.
        path: the file, written atomically.
        scope: the experiment and the evidence.

    Raises:
        UserError: the file system is full.
    """
    with _drawing():
        figure = FIGURES[name](scope)
        with atomic_write(path) as temporary:
            # Without a date the same figures give the same bytes.
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": "rewardgrid"})


@contextmanager
def _drawing() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def _panels(rows: int, columns: int, width: float, height: float, **share: Any) -> tuple[Figure, list[list[Axes]]]:
    """A grid of panels, each ``width`` x ``height`` inches; needs no display and leaves no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **share).tolist()


def _nothing(why: str) -> Figure:
    figure, ((axes,),) = _panels(1, 1, 5, 1.2)
    axes.axis("off")
    axes.text(0.5, 0.5, why, ha="center", va="center", color="#666666", transform=axes.transAxes)
    return figure


# --- learning curves -----------------------------------------------------------------------------------


def learning_curves(scope: Scope) -> Figure:
    """Reward against step, smoothed over 10 steps: seeds thin, means thick, one colour per configuration.

    A mark on a run's own curve is the step from which it is not ok, or hacks. Runs that are not finished are dashed,
    and in no mean.
    """
    drawn = [
        (found, curves, begun)
        for found in scope.configurations
        if (curves := _reward_curves(scope.evidence.histories, found.finished))
        + (begun := _reward_curves(scope.evidence.unfinished, found.cells))
    ]
    turned = {row["cell"]: row for row in scope.finished}
    if not drawn:
        return _nothing("no run to draw yet")
    fields = drawn[0][0].fields
    split = len(drawn) > MOST_LINES and len(fields) > 1
    panels: dict[Any, list[tuple[Configuration, list[pd.Series], list[pd.Series]]]] = {}
    for line in drawn:
        panels.setdefault(line[0].cells[0][fields[0]] if split else None, []).append(line)
    inside = fields[1:] if split else ()
    colours = _colours(_name(found, inside) for found, _, _ in drawn)
    if split:
        panels = dict(sorted(panels.items()))
    columns = min(len(panels), MOST_PANELS)
    lines = math.ceil(len(panels) / columns)
    size = (3.4, 2.6) if split else (7.2, 3.6)
    figure, grid = _panels(lines, columns, *size, sharey=True, sharex=True)
    axes_of = [axes for line in grid for axes in line]
    # Rewards are shares but for counts of "happy".
    top = 1.02 * max(1.0, *(float(curve.max()) for _, curves, begun in drawn for curve in curves + begun))
    for axes, (level, members) in zip(axes_of, panels.items(), strict=False):
        labels = []
        for found, curves, begun in members:
            label = _name(found, inside)
            for curve in begun:
                axes.plot(curve.index, curve, color=colours[label], linewidth=1.2, linestyle=(0, (3, 1.5)))
            if not curves:
                last = max(begun, key=lambda curve: int(curve.index[-1])).dropna()
                if len(last):
                    said = f"{label} (running)" if label else "running"
                    labels.append((float(last.index[-1]), float(last.iloc[-1]), said, colours[label]))
                continue
            mean = pd.concat(curves, axis=1).mean(axis=1, skipna=False).dropna()
            if len(curves) > 1:
                for curve in curves:
                    axes.plot(curve.index, curve, color=colours[label], linewidth=0.6, alpha=0.45)
            axes.plot(mean.index, mean, color=colours[label], linewidth=1.8)
            for curve in curves:
                _mark_onsets(axes, turned[str(curve.name)], curve, colours[label])
            labels.append((float(mean.index[-1]), float(mean.iloc[-1]), label, colours[label]))
        if split:
            axes.set_title(settings(fields[:1], {fields[0]: level}), loc="left")
        _label_ends(axes, labels, top, apart=0.22 * top / size[1])
        axes.set_ylim(0, top)
    for axes in axes_of[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel(f"reward (mean of {SMOOTHING_STEPS} steps)", fontsize=9)
    if running := sum(len(begun) for _, _, begun in drawn):
        figure.suptitle(
            f"dashed: {count(running, 'run')} not finished", fontsize=8, color="#666666", x=0.99, ha="right"
        )
    return figure


def _name(found: Configuration, inside: Sequence[str]) -> str:
    """What a line is called: the fields that its panel's title does not say, or else the whole label."""
    return settings(inside, found.cells[0]) if inside else found.label


def _has(evidence: Evidence, row: Row) -> bool:
    return row["cell"] in evidence.histories


def _reward_curves(histories: Mapping[str, pd.DataFrame], rows: Sequence[Row]) -> list[pd.Series]:
    """The reward curves of those cells that have a history."""
    return [_reward_curve(histories[row["cell"]], row) for row in rows if row["cell"] in histories]


def _reward_curve(history: pd.DataFrame, row: Row) -> pd.Series:
    """The smoothed reward of a cell, thinned to what a picture can show; the last step is kept."""
    rewards = smoothed(history["reward"].tolist(), SMOOTHING_STEPS)
    curve = pd.Series(rewards, index=history["step"].tolist(), name=row["cell"])
    return curve[::-1][:: math.ceil(len(curve) / MOST_POINTS)][::-1]


def _mark_onsets(axes: Axes, row: Row, curve: pd.Series, colour: str) -> None:
    for column, marker in ONSETS.items():
        if row[column] is not None:
            height = np.interp(row[column], curve.index, curve)
            axes.plot(row[column], height, marker, color=colour, markersize=7, markeredgecolor="white")


def _colours(labels: Iterable[str]) -> dict[str, str]:
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(dict.fromkeys(labels))}


def _label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]], top: float, apart: float) -> None:
    """Write each label beside the end of its line, moved apart as far as needed to be read."""
    if not labels:
        return
    heights = spaced([y for _, y, _, _ in labels], apart, top)
    right = max(x for x, _, _, _ in labels)
    for (_, _, label, colour), height in zip(labels, heights, strict=True):
        axes.annotate(
            label or "mean",
            (right, height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8,
            annotation_clip=False,
        )


def spaced(heights: Sequence[float], apart: float, top: float) -> list[float]:
    """Heights moved so that none is above ``top`` and no two are closer than ``apart``; their order stays."""
    placed = list(heights)
    limit = top
    for i in sorted(range(len(heights)), key=lambda i: heights[i], reverse=True):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - apart
    return placed


# --- reward against KL ---------------------------------------------------------------------------------


def reward_kl(scope: Scope) -> Figure:
    """Reward against KL, a point per cell: colour by configuration, marker by verdict, another study's hollow.

    Bars are 95 % intervals of both means, of runs that are long enough for one.
    """
    rows = scope.finished
    if not rows:
        return _nothing("no finished cell yet")
    fields = scope.configurations[0].fields
    shown = fields[:1] if len(scope.configurations) > MOST_LINES else fields
    colours = _colours(settings(shown, row) for row in rows)
    figure, ((axes,),) = _panels(1, 1, 7.2, 4.0)
    for row in rows:
        axes.scatter(
            row["final_kl"],
            row["final_reward"],
            s=42,
            marker=MARKERS[row["verdict"]],
            color=colours[settings(shown, row)],
            linewidths=0,
            alpha=0.9,
        )
        _bars(axes, scope.evidence, row, colours[settings(shown, row)])
    references = [
        (point, point.kl) for point in scope.references if point.kl is not None and point.cell["state"] == "done"
    ]
    for point, kl in references:
        colour = colours[settings(shown, point.cell)]
        axes.scatter(kl, point.reward, s=42, marker=MARKERS[point.verdict], facecolors="none", edgecolors=colour)
    every = [row["final_kl"] for row in rows] + [kl for _, kl in references]
    if max(every) > 30 * min(every) > 0:
        _logarithmic(axes)
    axes.set_xlabel(f"KL to the base, k3 (nats per token, mean of the last {FINAL_STEPS} steps)")
    axes.set_ylabel(f"reward (mean of the last {FINAL_STEPS} steps)")
    verdicts = {row["verdict"] for row in rows} | {point.verdict for point, _ in references}
    _legend(axes, colours, verdicts, dict.fromkeys(point.study for point, _ in references))
    return figure


def _bars(axes: Axes, evidence: Evidence, row: Row, colour: str) -> None:
    """Intervals of a run's final KL and reward."""
    if not _has(evidence, row):
        return
    final = evidence.histories[row["cell"]].tail(FINAL_STEPS)
    kl, reward = (mean_of_steps(final[column].tolist(), SMOOTHING_STEPS).interval for column in ("kl", "reward"))
    style: Any = {"color": colour, "linewidth": 0.8, "alpha": 0.7}
    if kl is not None:
        axes.plot([max(0.0, kl[0]), kl[1]], [row["final_reward"]] * 2, **style)  # no KL is below 0
    if reward is not None:
        axes.plot([row["final_kl"]] * 2, reward, **style)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic horizontal axis, its powers of ten written as numbers are everywhere else."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, colours: Mapping[str, str], verdicts: set[str], others: Iterable[str]) -> None:
    """Short lists beside the picture: what a colour is, what a marker is, whose the hollow points are."""
    from matplotlib.lines import Line2D

    def point(marker: str, colour: str, label: str, face: str | None = None) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor=face or colour, label=label)

    handles = [point("s", colour, label or "all cells") for label, colour in colours.items()]
    handles += [point(marker, "#555555", name) for name, marker in MARKERS.items() if name in verdicts]
    handles += [point("o", "#555555", study, face="none") for study in others]
    axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=8,
        borderaxespad=0,
    )


# --- verdicts over two settings ------------------------------------------------------------------------


def verdict_map(scope: Scope) -> Figure:
    """Verdict and reward over two settings: a field for each configuration, cut into its seeds.

    The first field of a configuration goes down and the last one along; what lies between has a panel for each value.
    Another study's figures are panels of their own, under the same settings.
    """
    if not scope.finished:
        return _nothing("no finished cell yet")
    fields = scope.configurations[0].fields
    if len(fields) < 2:
        return _nothing("needs two settings that differ")
    down, *between, along = fields
    rows = [row for row in scope.rows if row["state"] != "missing"]
    seen = [(row, row["final_reward"], row["verdict"] or row["state"]) for row in rows]
    panels = {
        settings(between, level): [one for one in seen if settings(between, one[0]) == settings(between, level)]
        for level in scope.rows
    }
    for point in scope.references:
        panels.setdefault(point.study, []).append((point.cell, point.reward, point.verdict))
    levels = [
        sorted({row[name] for row in scope.rows}, key=lambda value: (isinstance(value, str), value))
        for name in (down, along)
    ]
    size = (max(1.1 + 0.75 * len(levels[1]), 4.0 / len(panels)), 0.9 + 0.42 * len(levels[0]))
    figure, (line,) = _panels(1, len(panels), *size, sharey=True)
    for axes, (title, cells) in zip(line, panels.items(), strict=True):
        fields_of: dict[tuple[int, int], list[tuple[int, float | None, str]]] = {}
        for row, reward, verdict in cells:
            place = (levels[0].index(row[down]), levels[1].index(row[along]))
            fields_of.setdefault(place, []).append((row["seed"], reward, verdict))
        for (y, x), seeds in fields_of.items():
            _field(axes, x, y, sorted(seeds, key=lambda one: one[0]))
        axes.set_title(title or "this study", loc="left")
        axes.set_xticks(range(len(levels[1])), [_value(value) for value in levels[1]])
        axes.set_yticks(range(len(levels[0])), [_value(value) for value in levels[0]])
        axes.set_xlim(-0.5, len(levels[1]) - 0.5)
        axes.set_ylim(len(levels[0]) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.tick_params(length=0)
    figure.supxlabel(SPEC_COLUMNS[along].label, fontsize=9)
    figure.supylabel(SPEC_COLUMNS[down].label, fontsize=9)
    _verdict_legend(figure, {verdict for cells in panels.values() for _, _, verdict in cells})
    return figure


def _value(value: Any) -> str:
    return format_number(value) if isinstance(value, int | float) else str(value)


def _field(axes: Axes, x: int, y: int, seeds: Sequence[tuple[int, float | None, str]]) -> None:
    """One configuration: a stripe for each seed in the colour of its verdict, its mean reward written over them."""
    from matplotlib.patches import Rectangle

    width = 0.92 / len(seeds)
    for number, (_, _, verdict) in enumerate(seeds):
        corner = (x - 0.46 + number * width, y - 0.42)
        axes.add_patch(Rectangle(corner, width, 0.84, color=VERDICT_COLOURS[verdict], alpha=0.75, linewidth=0))
    rewards = [reward for _, reward, _ in seeds if reward is not None]
    if rewards:
        axes.text(x, y, f"{np.mean(rewards):.2f}", ha="center", va="center", fontsize=8)


def _verdict_legend(figure: Figure, verdicts: set[str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=colour, alpha=0.75, label=name) for name, colour in VERDICT_COLOURS.items() if name in verdicts
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8.5)


# --- routing -------------------------------------------------------------------------------------------

_METRICS = {"reward": "full reward", "sl10": "sl10 (smooth reward)", "happy": '"happy" per completion'}


def routing_curves(scope: Scope) -> Figure:
    """Reward, sl10 and "happy" against step by active adapters; a row of panels per configuration."""
    drawn = []
    for found in scope.configurations:
        frames = [
            scope.evidence.routing[row["cell"]] for row in found.finished if row["cell"] in scope.evidence.routing
        ]
        if any(len(frame) for frame in frames):
            drawn.append((found, frames))
    if not drawn:
        return _nothing("no cell was evaluated by mode yet")
    figure, grid = _panels(len(drawn), len(_METRICS), 3.1, 2.5, sharex=True, sharey="col")
    for line, (found, frames) in zip(grid, drawn, strict=True):
        for axes, (metric, title) in zip(line, _METRICS.items(), strict=True):
            for mode, colour in MODE_COLOURS.items():
                _mode_lines(axes, frames, mode, metric, colour)
            if line is grid[0]:
                axes.set_title(title, loc="left")
            axes.set_ylim(bottom=0)
        if len(drawn) > 1:
            line[0].set_ylabel(found.label, fontsize=8.5)
    _mode_legend(figure)
    figure.supxlabel("optimizer step", fontsize=9)
    return figure


def _mode_lines(axes: Axes, frames: Sequence[pd.DataFrame], mode: str, metric: str, colour: str) -> None:
    curves = [pd.Series(values, index=steps) for steps, values in (mode_curve(f, mode, metric) for f in frames)]
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        return
    if len(curves) > 1:
        for curve in curves:
            axes.plot(curve.index, curve, color=colour, linewidth=0.6, alpha=0.4)
    mean = pd.concat(curves, axis=1).mean(axis=1, skipna=False).dropna()
    axes.plot(mean.index, mean, color=colour, linewidth=1.9)


def _mode_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    figure.legend(
        handles=[
            Line2D([], [], color=colour, linewidth=1.9, label=f"adapters: {mode.replace('_', ' ')}")
            for mode, colour in MODE_COLOURS.items()
        ],
        loc="outside upper left",
        ncols=len(MODE_COLOURS),
        frameon=False,
        fontsize=8.5,
    )


FIGURES: dict[study.FigureName, Callable[[Scope], Figure]] = {
    "learning_curves": learning_curves,
    "reward_kl": reward_kl,
    "verdict_map": verdict_map,
    "routing_curves": routing_curves,
}
"""Every figure that a configuration can ask for."""

CAPTIONS: dict[study.FigureName, str] = {
    "learning_curves": f"Reward against step, mean of {SMOOTHING_STEPS} steps; seeds thin, their mean thick. "
    "A cross is the step from which a run's rollouts are not ok (borderline or degenerate), a star that from which it "
    "hacks.",
    "reward_kl": f"Reward against KL, one point per finished cell, means of the last {FINAL_STEPS} steps; "
    f"the marker is the verdict. Bars are 95 % intervals, from means of {SMOOTHING_STEPS} steps.",
    "verdict_map": "Verdict (colour, a stripe for each seed) and reward (mean of the last "
    f"{FINAL_STEPS} steps, over seeds) by two settings; a place without a field has no finished cell.",
    "routing_curves": "Evaluations by active adapters during training; seeds thin, their mean thick.",
}
"""What each figure shows."""
