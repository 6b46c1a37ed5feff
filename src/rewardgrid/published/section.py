"""The report's section on the published study: what stands where, and in which words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgrid.published.comparison import ComparedClaim, Comparison
from rewardgrid.published.data import BASE
from rewardgrid.published.judging import ANSWERS, Answer
from rewardgrid.published.rows import PUBLISHED_SAMPLES, SAME_SECONDS, ComparedRow
from rewardgrid.report.columns import COLUMNS, NOTHING
from rewardgrid.report.markdown import code, grid
from rewardgrid.report.render import Section, environment
from rewardgrid.report.separation import HACK_GONE
from rewardgrid.report.statistics import largest_share
from rewardgrid.report.words import p_value
from rewardgrid.study.text import count

if TYPE_CHECKING:
    from markupsafe import Markup

MARKS: dict[Answer, str] = {
    "agrees": "✓",
    "differs": "✗",
    "cannot be told": "?",
    "not run": NOTHING,
    "no test": NOTHING,
}


def section(comparison: Comparison, templates: Path) -> Section:
    """The section and its lines in the summary, as safe Markdown."""
    from markupsafe import Markup

    overview = _overview(comparison)
    tables: dict[str, list[ComparedRow]] = {}
    for row in comparison["rows"]:
        tables.setdefault(row["table"], []).append(row)
    ran = {name: rows for name, rows in tables.items() if any(row["answer"] != "not run" for row in rows)}
    text = (
        environment(templates)
        .get_template("published.md.j2")
        .render(
            base=comparison["base"],
            published_base=BASE,
            other_base=comparison["base"] != "simplestories",
            published_signals=COLUMNS["verdict_published_signals"].label.capitalize(),
            overview=overview,
            differing=_differing(comparison["rows"]),
            relations=_parted(comparison["relations"], "relation", numbered=False),
            claims=_parted(comparison["claims"], "published claim", numbered=True),
            tables=[{"name": name, "answers": _answers(rows), "table": _table(rows)} for name, rows in ran.items()],
            left=[{"name": name, "table": _table(rows)} for name, rows in tables.items() if name not in ran],
            left_rows=count(sum(len(rows) for name, rows in tables.items() if name not in ran), "configuration"),
            seconds=f"{SAME_SECONDS:g}",
            samples=PUBLISHED_SAMPLES,
            gone=f"{100 * HACK_GONE:.0f}",
            compatible=f"{100 * largest_share(0, PUBLISHED_SAMPLES):.0f}",
        )
    )
    summary = Markup(
        "base {} ([what differs, and why it may]({}))\n\n{}\n\nThe P of relations is adjusted for having asked all of "
        "them, that of claims is not: the same figures may not be told there and agree here.\n"
    ).format(code(comparison["base"]), "#what-differs-and-why-it-may", overview)
    return Section(
        anchor="published",
        title="Beside the published study",
        summary=summary,
        text=Markup(text),
        answers=comparison["answers"],
        answers_of=f"published, on {BASE}",
    )


def _overview(comparison: Comparison) -> Markup:
    kinds: tuple[tuple[str, Sequence[Any]], ...] = (
        ("configurations of the published tables", comparison["rows"]),
        ("figures of those configurations", [item for row in comparison["rows"] for item in row["items"]]),
        ("claims outside its tables", comparison["claims"]),
        ("relations that should hold on any base", comparison["relations"]),
    )
    lines = [
        [what, *(str(sum(entry["answer"] == answer for entry in entries)) for answer in ANSWERS)]
        for what, entries in kinds
    ]
    return grid(["", *ANSWERS], lines, [False, *[True] * len(ANSWERS)])


def _differing(rows: Sequence[ComparedRow]) -> str:
    """``verdict in 3 of 8, KL in 1 of 6``: where the figures that were compared differ, the most often first."""
    items = [item for row in rows for item in row["items"] if item["answer"] != "not run"]
    compared = Counter(item["metric"] for item in items)
    found = Counter(item["metric"] for item in items if item["answer"] == "differs")
    return ", ".join(f"{metric} in {number} of {compared[metric]}" for metric, number in found.most_common())


def _answers(rows: Sequence[ComparedRow]) -> str:
    found = Counter(row["answer"] for row in rows)
    words: dict[Answer, str] = {"agrees": "agree", "differs": "differ", "not run": "not run"}
    return ", ".join(f"{found[answer]} {word}" for answer, word in words.items() if found[answer])


def _table(rows: Sequence[ComparedRow]) -> Markup:
    """A line per published configuration: each figure as ``published → ours`` with its mark."""
    metrics = list(dict.fromkeys(item["metric"] for row in rows for item in row["items"]))
    lines = []
    for row in rows:
        items = {item["metric"]: item for item in row["items"]}
        figures = [
            f"{item['published']} → {item['ours']} {MARKS[item['answer']]}"
            if (item := items.get(metric)) and item["answer"] != "not run"
            else item["published"]
            if item
            else NOTHING
            for metric in metrics
        ]
        runs = f"{row['seeds']} → {row['cells']}"
        lines.append([row["settings"], runs, *figures, row["answer"], "; ".join(row["notes"])])
    headings = ["settings", "runs", *metrics, "answer", "published notes"]
    return grid(headings, lines, [False] * len(headings))


def _parted(entries: Sequence[ComparedClaim], heading: str, numbered: bool) -> dict[str, Any]:
    """Those that could be judged, and in short those that were not run: how many of which experiment."""
    counted = list(enumerate(entries, start=1))
    left = [pair for pair in counted if pair[1]["answer"] == "not run"]
    told = [pair for pair in counted if pair not in left]
    of = Counter(entry["experiment"] for _, entry in left)
    return {
        "told": _statements(told, heading, numbered) if told else None,
        "left": _statements(left, heading, numbered) if left else None,
        "left_of": f"{len(left)} not run: " + ", ".join(f"{number} of {name}" for name, number in of.items()),
    }


def _statements(entries: Sequence[tuple[int, ComparedClaim]], heading: str, numbered: bool) -> Markup:
    """A line per claim; of relations the P that is adjusted for having asked them all, of claims their number."""
    lines = []
    for number, entry in entries:
        p = NOTHING if entry["p"] is None else p_value(entry["p"])
        lines.append(
            [
                str(number) if numbered else code(entry["id"]),
                entry["experiment"],
                entry["published"],
                entry["ours"] or NOTHING,
                entry["answer"],
                code(entry["id"]) if numbered else p,
                str(entry["cells"]) if entry["cells"] else NOTHING,
            ]
        )
    headings = [
        "no." if numbered else "id",
        "experiment",
        heading,
        "ours",
        "answer",
        "id" if numbered else "P",
        "cells",
    ]
    return grid(headings, lines, [numbered, *[False] * 5, True])
