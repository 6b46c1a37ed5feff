from __future__ import annotations

import math
import typing
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from tests.trees import history, routing, row

from rewardgrid.report.evidence import Evidence
from rewardgrid.report.figures import (
    CAPTIONS,
    FIGURES,
    VERDICT_COLOURS,
    draw,
    learning_curves,
    reward_kl,
    routing_curves,
    spaced,
    verdict_map,
)
from rewardgrid.report.finding import Reference, Scope
from rewardgrid.report.tables import Row
from rewardgrid.study import study

HAPPY = "sentence_length_10_smooth_with_happy"


def scope(rows: list[Row], **curves: Any) -> Scope:
    return Scope(Evidence({"reward_sweep": rows}, **curves), "reward_sweep")


def sweep() -> Scope:
    rows = [
        row("reward_sweep", beta=beta, seed=seed, final_reward=0.9, final_kl=1.0 + beta * 50, verdict=verdict)
        for beta, verdict in ((0.003, "degenerate"), (0.02, "ok"))
        for seed in (42, 123)
    ]
    return scope(rows, histories={r["cell"]: history([0.4 + 0.001 * i for i in range(300)]) for r in rows})


def routed(*ranks: int) -> Scope:
    rows = [
        row("reward_sweep", method="routing", reward=HAPPY, rank=rank, seed=seed) for rank in ranks for seed in (1, 2)
    ]
    curves = {("both", "sl10"): [0.5, 0.6], ("retain_only", "sl10"): [0.5, 0.4], ("forget_only", "sl10"): [0.5, 0.3]}
    return scope(rows, routing={r["cell"]: routing(curves) for r in rows})


def ranks() -> Scope:
    """Ranks by rates: one of two seeds degenerate at 8 and 3e-4, nothing yet at 8 and 1e-4."""
    cells = [(1, 3e-4, 42, "ok"), (8, 3e-4, 42, "ok"), (8, 3e-4, 8, "degenerate"), (1, 1e-4, 42, "borderline")]
    rows = [
        row("reward_sweep", method="lora", rank=rank, lr=lr, seed=seed, final_reward=0.01 * seed, verdict=verdict)
        for rank, lr, seed, verdict in cells
    ]
    rows.append(row("reward_sweep", method="lora", rank=8, lr=1e-4, seed=42, state="missing"))
    return replace(scope(rows), by=("rank", "lr"))


DRAWN: dict[str, Callable[[], Scope]] = {
    "learning_curves": sweep,
    "reward_kl": sweep,
    "verdict_map": lambda: ranks(),
    "routing_curves": lambda: routed(4),
}


def test_every_figure_that_a_configuration_can_ask_for_exists_and_has_a_caption() -> None:
    assert set(FIGURES) == set(CAPTIONS) == set(DRAWN) == set(typing.get_args(study.FigureName))


def test_runs_that_are_not_finished_are_dashed_and_in_no_mean() -> None:
    rows = [row("reward_sweep", beta=beta, seed=seed) for beta in (0.003, 0.02) for seed in (1, 2)]
    rows[1:] = [each | {"state": "missing"} for each in rows[1:]]
    finished, begun, other, waiting = (each["cell"] for each in rows)
    live = {begun: history([0.9] * 20), other: history([0.3, math.nan, math.inf, -math.inf] + [0.3] * 30)}
    figure = learning_curves(scope(rows, histories={finished: history([0.5] * 60)}, unfinished=live))
    (axes,) = figure.axes
    lines = {len(line.get_xdata()): line for line in axes.lines}
    assert sorted(lines) == [20, 34, 60]
    assert [lines[number].get_linestyle() for number in (20, 34, 60)] == ["--", "--", "-"]
    assert lines[20].get_color() == lines[60].get_color() != lines[34].get_color()
    assert set(lines[60].get_ydata()) == {0.5}  # not the mean with the one that runs
    assert axes.get_ylim()[1] == pytest.approx(1.02)
    assert [text.get_text() for text in axes.texts] == ["beta 0.003", "beta 0.02 (running)"]
    assert figure.get_suptitle() == "dashed: 2 runs not finished"
    assert waiting not in live


def test_a_study_of_which_nothing_is_finished_shows_what_runs(tmp_path: Path) -> None:
    rows = [row("reward_sweep", seed=seed) | {"state": "missing"} for seed in (1, 2)]
    assert "no run to draw yet" in learning_curves(scope(rows)).axes[0].texts[0].get_text()
    for values in ([math.nan], [0.1] * 3):
        draw("learning_curves", tmp_path / "a.svg", scope(rows, unfinished={rows[0]["cell"]: history(values)}))


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_the_same_figures_give_the_same_bytes(name: study.FigureName, tmp_path: Path) -> None:
    for number in (1, 2):
        draw(name, tmp_path / f"{number}.svg", DRAWN[name]())
    first, second = ((tmp_path / f"{number}.svg").read_bytes() for number in (1, 2))
    assert first == second
    assert b"<dc:date>" not in first
    assert ET.fromstring(first).tag.endswith("svg")


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_without_a_finished_cell_a_figure_says_so(name: study.FigureName, tmp_path: Path) -> None:
    draw(name, tmp_path / "empty.svg", scope([row("reward_sweep", state="missing")]))
    assert (tmp_path / "empty.svg").exists()
    (axes,) = FIGURES[name](scope([row("reward_sweep", state="diverged")])).axes
    assert "yet" in axes.texts[0].get_text()


def test_a_learning_curve_has_a_thin_line_per_seed_and_a_thick_one_for_their_mean() -> None:
    (axes,) = learning_curves(sweep()).axes
    widths = [line.get_linewidth() for line in axes.lines]
    assert (widths.count(0.6), widths.count(1.8)) == (4, 2)
    assert [text.get_text() for text in axes.texts] == ["beta 0.003", "beta 0.02"]
    assert len({line.get_color() for line in axes.lines}) == 2
    # Smoothed: the last of the rising rewards 0.690 to 0.699 is their mean.
    assert axes.lines[2].get_ydata()[-1] == pytest.approx(0.6945)
    assert axes.lines[2].get_xdata()[-1] == 300


def test_a_mark_on_a_runs_own_curve_is_where_it_turned() -> None:
    turned = row("reward_sweep", seed=1, degeneration_onset=40, hack_onset=20)
    rows = [turned, row("reward_sweep", seed=2)]
    rewards = {rows[0]["cell"]: [0.01 * i for i in range(60)], rows[1]["cell"]: [0.0] * 60}
    (axes,) = learning_curves(scope(rows, histories={cell: history(values) for cell, values in rewards.items()})).axes
    marks = {line.get_marker(): line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() != "None"}
    # Step 40 is the mean of 0.30 to 0.39.
    assert marks == {"X": [40, pytest.approx(0.345)], "*": [20, pytest.approx(0.145)]}


def test_bars_are_intervals_of_the_last_steps() -> None:
    cells = [row("reward_sweep", seed=seed, final_reward=0.5, final_kl=1.0) for seed in (1, 2)]
    # Means of ten steps: 0.4, 0.6, 0.4, 0.6, 0.5; the second run is too short for two of them.
    waves = [value for value in (0.4, 0.6, 0.4, 0.6, 0.5) for _ in range(10)]
    curves = {cells[0]["cell"]: history([0.0] * 100 + waves), cells[1]["cell"]: history([0.5] * 19)}
    (axes,) = reward_kl(scope(cells, histories=curves)).axes
    along_kl, along_reward = (line.get_xydata().tolist() for line in axes.lines)
    assert along_kl == [[1.0, 0.5], [1.0, 0.5]]
    half = 2.776 * 0.1 / 5**0.5
    assert along_reward == [[1.0, pytest.approx(0.5 - half, abs=1e-4)], [1.0, pytest.approx(0.5 + half, abs=1e-4)]]


def test_a_bar_ends_where_kl_does() -> None:
    cell = row("reward_sweep", final_reward=0.5, final_kl=1.0)
    waves = pd.DataFrame({"step": range(1, 51), "reward": 0.5, "kl": [v for v in (0, 0, 0, 0, 5) for _ in range(10)]})
    (axes,) = reward_kl(scope([cell], histories={cell["cell"]: waves})).axes
    low, high = axes.lines[0].get_xdata()
    assert low == 0.0
    assert high == pytest.approx(1.0 + 2.776 * 5**0.5 / 5**0.5, abs=1e-3)


def test_many_configurations_are_spread_over_panels_in_the_order_of_the_first_field() -> None:
    rows = [row("reward_sweep", method="lora", rank=rank, lr=lr) for rank in (8, 1, 2) for lr in (1e-5, 1e-4, 3e-4)]
    figure = learning_curves(scope(rows, histories={r["cell"]: history([0.5] * 20) for r in rows}))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["rank 1", "rank 2", "rank 8"]
    assert {text.get_text() for text in shown[0].texts} == {"lr 1e-5", "lr 1e-4", "lr 3e-4"}


def test_points_of_another_study_are_hollow_and_have_the_colour_of_our_cell() -> None:
    ours = sweep()
    point = Reference(ours.rows[0], kl=2.94, reward=0.998, verdict="ok", study="published")
    (axes,) = reward_kl(replace(ours, references=(point,))).axes
    *_, hollow = axes.collections
    assert len(hollow.get_facecolor()) == 0
    assert hollow.get_edgecolor()[0][:3].tolist() == axes.collections[0].get_facecolor()[0][:3].tolist()
    assert hollow.get_offsets().tolist() == [[2.94, 0.998]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][-1] == "published"
    (axes,) = reward_kl(ours).axes
    assert len(axes.collections) == 4


def test_a_map_has_a_stripe_for_each_seed_and_the_mean_reward_of_a_configuration() -> None:
    (axes,) = verdict_map(ranks()).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "8"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1e-4", "3e-4"]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (1, 0): "0.42",
        (1, 1): "0.25",  # of 0.42 and 0.08
        (0, 0): "0.42",
    }
    stripes = {
        (round(box.get_x() + box.get_width() / 2, 2), round(box.get_y() + 0.42)): to_hex(box.get_facecolor())
        for box in axes.patches
    }
    assert stripes == {
        (1.0, 0): VERDICT_COLOURS["ok"].lower(),
        (0.0, 0): VERDICT_COLOURS["borderline"].lower(),
        (0.77, 1): VERDICT_COLOURS["degenerate"].lower(),  # seed 8 before seed 42
        (1.23, 1): VERDICT_COLOURS["ok"].lower(),
    }


def test_a_map_has_a_panel_of_the_published_verdicts_beside_ours_even_where_ours_are_missing() -> None:
    ours = ranks()
    points = tuple(Reference(cell, None, 0.97, "degenerate", "published") for cell in ours.rows[-1:])
    first, second = verdict_map(replace(ours, references=points)).axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["this study", "published"]
    assert [(text.get_position(), text.get_text()) for text in second.texts] == [((0, 1), "0.97")]
    (axes,) = reward_kl(replace(ours, references=points)).axes  # these have no KL, and a cell that is not there
    assert len(axes.collections) == 4


def test_a_map_of_three_settings_has_a_panel_for_each_value_of_the_one_between() -> None:
    rows = [
        row("reward_sweep", method="lora", rank=rank, adapter_alpha=alpha, lr=3e-4)
        for rank in (1, 8)
        for alpha in ("rank", "sqrt")
    ]
    rows.append(row("reward_sweep", method="lora", rank=1, adapter_alpha="rank", lr=1e-4))
    figure = verdict_map(replace(scope(rows), by=("rank", "adapter_alpha", "lr")))
    assert [(axes.get_title(loc="left"), len(axes.texts)) for axes in figure.axes] == [
        ("alpha = rank", 3),
        ("alpha = sqrt", 2),
    ]


def test_a_logarithmic_axis_is_labelled_with_plain_numbers(tmp_path: Path) -> None:
    rows = [row("reward_sweep", beta=beta, final_kl=kl) for beta, kl in ((0.003, 1.2), (0.01, 0.03), (0.02, 0.0008))]
    figure = reward_kl(scope(rows))
    (axes,) = figure.axes
    figure.canvas.draw()
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert {"0.001", "0.01", "0.1", "1"} <= set(labels)
    draw("reward_kl", tmp_path / "log.svg", scope(rows))
    assert "$" not in (tmp_path / "log.svg").read_text()


def test_no_committed_picture_shows_raw_mathtext(root: Path) -> None:
    pictures = sorted((root / "docs").rglob("*.svg"))
    assert pictures
    assert [path.name for path in pictures if "mathdefault" in path.read_text()] == []


def test_axes_say_what_they_show_in_which_unit() -> None:
    (axes,) = reward_kl(sweep()).axes
    assert "nats per token" in axes.get_xlabel()
    assert "last 50 steps" in axes.get_ylabel()


def test_routing_curves_have_a_row_per_configuration_and_a_panel_per_metric() -> None:
    figure = routing_curves(routed(4, 1))
    assert len(figure.axes) == 6
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [
        "full reward",
        "sl10 (smooth reward)",
        '"happy" per completion',
    ]
    # Three modes, each with two seeds and their mean.
    assert len(figure.axes[1].lines) == 9
    assert figure.axes[3].get_ylabel() == "rank 1, forget rank 1"


def test_labels_are_moved_apart_and_keep_their_order() -> None:
    assert spaced([0.9, 0.2, 0.89], 0.1, 1.0) == pytest.approx([0.9, 0.2, 0.8])
    assert spaced([1.3, 1.2], 0.1, 1.0) == pytest.approx([1.0, 0.9])
    assert spaced([], 0.1, 1.0) == []
