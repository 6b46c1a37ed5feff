"""How far the verdict agrees with the published study and with a blind reader, and how much hangs on its limits.

    python -m tests.agreement

writes the tables of ``docs/verdict.md`` anew, between its marks.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rewardgrid.report.columns import COLUMNS, RENAMED, show
from rewardgrid.report.markdown import grid
from rewardgrid.study.files import read_json
from rewardgrid.study.steps import lasting_from
from rewardgrid.study.thresholds import Above, Thresholds
from rewardgrid.study.verdict import LABELS, Label, verdict
from tests.blind import CELLS, LABELLED, TEXTS, UNTOUCHED

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "config" / "published"
PAGE = ROOT / "docs" / "verdict.md"

PUBLISHED_BASE = {"unique_first_sentences": 20, "jaccard": 0.12, "reward": 0.5}
PROMPTS = 5
"""Of the published samples: inferred, because degenerate rows have 5 distinct first sentences and never fewer."""
FACTORS = (0.8, 1.2)
LIMITS = Thresholds()
UNLIKELY = ("unlikely_windows", "unlikely_ends")
AT_FIRST = LIMITS.model_copy(update=dict.fromkeys(UNLIKELY, Above(borderline=0.25, degenerate=0.5)))
"""The limits before development cells had been read."""

Confusion = Counter[tuple[Label, Label]]
"""By (what the published study or the reader says, what the verdict says)."""


def agreed(found: Confusion) -> int:
    """How many are called alike."""
    return sum(number for (theirs, ours), number in found.items() if theirs == ours)


def opposite(found: Confusion) -> int:
    """How many are ok to one side and degenerate to the other."""
    return found["ok", "degenerate"] + found["degenerate", "ok"]


def kappa(found: Confusion) -> float:
    """Cohen's kappa (1960): agreement beyond what the two margins would give by chance."""
    total = found.total()
    margins = [Counter[Label]() for _ in range(2)]
    for pair, number in found.items():
        for margin, label in zip(margins, pair, strict=True):
            margin[label] += number
    chance = sum(margins[0][label] * margins[1][label] for label in LABELS) / total**2
    return (agreed(found) / total - chance) / (1 - chance)


# --- the published rows --------------------------------------------------------------------------------


def published_lines(table: str) -> list[dict[str, str]]:
    """A published table, line by line."""
    with (PUBLISHED / table).open(newline="") as stream:
        return list(csv.DictReader(stream))


def published_rows() -> list[tuple[dict[str, float | None], Label]]:
    """Rows as (signals, verdict); a row without KL takes that of its configuration, if published."""
    kl = {(row["rank"], row["lr"]): row["kl"] for row in published_lines("lora_rank_summary.csv")}
    found = []
    for row in published_lines("reward_sweep.csv") + published_lines("lora_rank.csv"):
        texts = {
            "unique_first_sentences": row.get("unique_first_sentences"),
            "jaccard": row["jaccard"],
            "reward": row["reward"],
            "kl_k3": row.get("kl") or kl.get((row.get("rank", ""), row.get("lr", ""))),
        }
        signals = {name: float(text) if text else None for name, text in texts.items()}
        (label,) = (label for label in LABELS if label == row["verdict"])
        found.append((signals | {"prompts": PROMPTS}, label))
    return found


def published_confusion(limits: Thresholds = LIMITS) -> Confusion:
    """The published verdicts against the rule's."""
    return Counter((label, verdict(signals, PUBLISHED_BASE, limits).label) for signals, label in published_rows())


def moved(field: str, factor: float) -> Thresholds:
    """Limits of which one is moved: what is multiplied is its distance from where nothing has changed."""
    limits = getattr(LIMITS, field)
    if field == "saturated_reward":
        # A reward cannot exceed 1.
        return LIMITS.model_copy(update={field: 1 - (1 - limits) * factor})
    still = 1 if field == "jaccard" else 0
    return LIMITS.model_copy(update={field: limits.in_unit(factor, still * (1 - factor))})


# --- the blind reader ----------------------------------------------------------------------------------


def reading(labels: Sequence[Label]) -> Label:
    """What a reader says of a cell: the median of the labels of its samples (of two middle ones the milder)."""
    return LABELS[sorted(LABELS.index(label) for label in labels)[(len(labels) - 1) // 2]]


def readings() -> dict[str, list[Label]]:
    """The labels of each cell's samples."""
    labels = pd.read_csv(LABELLED, dtype=str)
    samples = pd.read_parquet(TEXTS)[["sample", "cell"]].drop_duplicates()
    read = samples.merge(labels, on="sample", validate="one_to_one")
    return {str(cell): list(group["label"]) for cell, group in read.groupby("cell")}


def measured() -> Mapping[str, Any]:
    """What was measured: of the base, of its further draws and of the cells that were read."""
    found: Mapping[str, Any] = read_json(CELLS)
    return found


def says(signals: Mapping[str, Any], limits: Thresholds = LIMITS) -> Label:
    """The verdict on a cell of the blind check, computed anew."""
    return verdict(signals, measured()["base"], limits).label


def blind_confusion(purpose: str, limits: Thresholds = LIMITS, samples: bool = False) -> Confusion:
    """Reader against verdict: cells of a purpose or, with ``samples``, each sample against its cell's verdict."""
    read, found = readings(), Confusion()
    for name, cell in measured()["cells"].items():
        if cell["purpose"] == purpose:
            labels = read[name] if samples else [reading(read[name])]
            found.update((label, says(cell["signals"], limits)) for label in labels)
    return found


def false_alarms(limits: Thresholds = LIMITS) -> int:
    """Further draws of the base itself that are not ok."""
    return sum(says(draw, limits) != "ok" for draw in measured()["other_draws"])


def untouched(limits: Thresholds = LIMITS) -> list[Label]:
    """The verdicts on the rollouts of a run that never leaves its base, step by step."""
    rows: list[Any] = pd.read_parquet(UNTOUCHED).drop(columns="step").to_dict("records")
    reference, *steps = rows
    return [verdict(signals, reference, limits).label for signals in steps]


def false_onsets(labels: Sequence[Label], recorded: int, runs: int = 20_000) -> tuple[float, float]:
    """Share of runs with so many recorded steps that would have an onset although nothing happened.

    The recorded steps of a run are drawn at random from ``labels``: each shows other prompts with other draws.

    Returns:
        by the rule, and if two in a row that are not ok were enough for one.
    """
    holds = np.array([label != "ok" for label in labels])
    drawn = np.random.default_rng(0).choice(holds, (runs, recorded))
    lasting = sum(lasting_from(range(recorded), run.tolist()) is not None for run in drawn) / runs
    return lasting, float((drawn[:, 1:] & drawn[:, :-1]).any(axis=1).mean())


# --- tables of docs/verdict.md -------------------------------------------------------------------------


def distribution() -> str:
    """Each signal on the base: its own draw, the range of the others, and the limits that follow from it."""
    base, others = measured()["base"], measured()["other_draws"]
    lines = []
    for judged in verdict(base, base, LIMITS).evidence:
        column = RENAMED.get(judged.signal, judged.signal)
        drawn = sorted(draw[judged.signal] for draw in others)
        texts = [show(column, each) for each in (judged.value, drawn[0], drawn[-1], judged.borderline)]
        worst = show(column, judged.degenerate)
        lines.append([COLUMNS[column].label, texts[0], f"{texts[1]} to {texts[2]}", texts[3], worst])
    headings = ["signal", "the base", f"{len(others)} further draws", "borderline at", "degenerate at"]
    return str(grid(headings, sorted(lines), [False, *[True] * 4]))


def confusion_table(found: Confusion, who: str) -> str:
    """Three by three."""
    lines = [[label, *(str(found[label, ours]) for ours in LABELS)] for label in LABELS]
    return str(grid([f"{who} \\ verdict", *LABELS], lines, [False, True, True, True]))


def cells_table() -> str:
    """Every cell that was read: what the reader says of its samples, and what the verdict says, and why."""
    read, base = readings(), measured()["base"]

    def place(entry: tuple[str, Any]) -> tuple[str, int, str]:
        return entry[1]["purpose"], LABELS.index(reading(read[entry[0]])), entry[0]

    lines = []
    for name, cell in sorted(measured()["cells"].items(), key=place):
        signals, counts = cell["signals"], Counter(read[name])
        found = verdict(signals, base, LIMITS)
        lines.append(
            [
                name.rpartition("-")[0],
                cell["purpose"],
                ", ".join(f"{counts[label]} {label}" for label in LABELS if counts[label]),
                reading(read[name]),
                *(show(kind, min(signals[kind], signals[f"{kind}_top_k"])) for kind in UNLIKELY),
                found.label + (f" ({', '.join(found.reasons)})" if found.reasons else ""),
            ]
        )
    headings = ["cell", "for", "its samples", "reader", "windows", "ends", "verdict"]
    return str(grid(headings, lines, [False, False, False, False, True, True, False]))


def sensitivity_table() -> str:
    """What becomes of every agreement when a limit is moved by 20 %."""

    def line(name: str, by: str, limits: Thresholds) -> list[str]:
        published, blind = published_confusion(limits), blind_confusion("check", limits)
        return [
            name,
            by,
            f"{agreed(published)} of {published.total()}",
            f"{kappa(blind):.2f}",
            str(opposite(published) + opposite(blind)),
            f"{false_alarms(limits)} of {len(measured()['other_draws'])}",
        ]

    lines = [line("as they are", "", LIMITS)]
    for field in Thresholds.model_fields:
        lines += [line(field, f"{factor - 1:+.0%}".replace("%", " %"), moved(field, factor)) for factor in FACTORS]
    headings = ["limits", "moved by", "published rows alike", "blind kappa", "opposite", "false alarms"]
    return str(grid(headings, lines, [False, True, True, True, True, True]))


def sentences() -> str:
    """The figures in words."""
    check, limits = (blind_confusion(purpose) for purpose in ("check", "limits"))
    samples, first = blind_confusion("check", samples=True), blind_confusion("check", AT_FIRST)
    return (
        f"Of the {check.total()} cells of the check, reader and verdict call {agreed(check)} alike: kappa "
        f"{kappa(check):.2f}, {opposite(check)} of them ok to one and degenerate to the other. Sample by sample, each "
        f"against its cell's verdict: {agreed(samples)} of {samples.total()}, kappa {kappa(samples):.2f}. Of the "
        f"{limits.total()} cells on which limits could be chosen, {agreed(limits)} are called alike. With the limits "
        f"at first {agreed(first)} of the {check.total()} would be: kappa {kappa(first):.2f}."
    )


RECORDED = 41
"""Steps that a run of 2,000 steps records: the first, and every fiftieth."""


def onset_sentences() -> str:
    """False alarms of the course, in words."""
    labels = untouched()
    bad = Counter(labels)
    in_a_row = sum("ok" not in pair for pair in itertools.pairwise(labels))
    lasting, two = (100 * share for share in false_onsets(labels, RECORDED))
    return (
        f"Of {len(labels)} steps' rollouts of the untouched storyteller (32 each, for 2 prompts, penalty 1.1), "
        f"{bad['borderline']} are borderline by themselves and {bad['degenerate']} degenerate "
        f"({100 * (1 - bad['ok'] / len(labels)):.1f} % not ok); two in a row are not ok {in_a_row} times. So of runs "
        f"that record {RECORDED} steps, {lasting:.1f} % would have an onset by chance, and "
        f"{two:.1f} % if two in a row were enough."
    )


def tables() -> Iterator[tuple[str, str]]:
    """Everything that docs/verdict.md shows between marks, by the mark's name."""
    yield "distribution", distribution()
    yield "onset", onset_sentences()
    yield "published", confusion_table(published_confusion(), "published")
    yield "agreement", sentences()
    yield "blind", confusion_table(blind_confusion("check"), "reader")
    yield "cells", cells_table()
    yield "sensitivity", sensitivity_table()


def page(text: str) -> str:
    """The page with every table as it is now."""
    for name, table in tables():
        block = f"<!-- {name} -->\n{table.strip()}\n<!-- end -->"
        text, found = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)  # noqa: B023
        assert found == 1, f"{PAGE}: has no place for {name}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
