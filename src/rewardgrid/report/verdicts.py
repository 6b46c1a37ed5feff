"""Why each cell has its verdict: the signals that decided, beside the base's and their limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewardgrid.report.columns import COLUMNS, NOTHING, RENAMED, settings, show
from rewardgrid.report.markdown import grid
from rewardgrid.report.tables import Row, varying
from rewardgrid.study.files import read_json
from rewardgrid.study.layout import Layout

if TYPE_CHECKING:
    from markupsafe import Markup

Judged = Mapping[str, Any]
"""A signal of ``metrics.json``: signal, value, base, borderline, degenerate, label."""

SIGNALS = (
    "unlikely_windows",
    "unlikely_windows_top_k",
    "unlikely_ends",
    "unlikely_ends_top_k",
    "fragment_share",
    "completion_length",
    "comma_rate",
    "skeleton_share",
    "compression_ratio",
    "unique_first_sentences",
    "unique_openings",
    "jaccard_256",
)
"""Columns that a verdict may look at."""

HEADINGS = ("cell", "verdict", "signal", "value", "base", "borderline from", "degenerate from", "says")


def evidence_table(layout: Layout, rows: Sequence[Row]) -> Markup | None:
    """A row for each signal that decided a finished cell's verdict; None without a finished cell.

    Of a cell that is ok, the signal that is nearest to its limit.
    """
    finished = [row for row in rows if row["state"] == "done"]
    told_apart = [*varying(rows), "seed"]
    lines = [
        [settings(told_apart, row), str(row["verdict"]), *_figures(judged)]
        for row in finished
        for judged in deciding(read_json(layout.metrics(str(row["cell"])))["evidence"])
    ]
    return grid(HEADINGS, lines, [False, False, False, True, True, True, True, False]) if lines else None


def deciding(evidence: Sequence[Judged]) -> Sequence[Judged]:
    """The signals that are not ok; if all are, the one that is nearest to its limit."""
    return [judged for judged in evidence if judged["label"] != "ok"] or sorted(evidence, key=nearness)[-1:]


def nearness(judged: Judged) -> float:
    """How far a signal has gone from the base (or from 0) to its limit: 1 at the limit."""
    start = judged["base"] or 0.0
    way = judged["borderline"] - start
    return float((judged["value"] - start) / way) if way else 0.0


def _figures(judged: Judged) -> Iterator[str]:
    signal = str(judged["signal"])
    name = RENAMED.get(signal, signal)
    yield COLUMNS[name].label
    for key in ("value", "base", "borderline", "degenerate"):
        yield NOTHING if judged[key] is None else show(name, judged[key])
    yield judged["label"]


def other_draws(metrics: Mapping[str, Any]) -> str:
    """What the verdict says of further draws of the base itself: ``20 of 20 ok``."""
    found = Counter(draw["verdict"] for draw in metrics["other_draws"])
    return f"{found['ok']} of {found.total()} ok" if found else "none was drawn"
