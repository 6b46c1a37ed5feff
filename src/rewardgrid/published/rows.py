"""The rows of the published tables beside our cells of the same settings, configuration by configuration.

Two runs that differ in their seed alone are one configuration. How far seeds lie apart is pooled over all
configurations of the tables, published and ours, for each kind of figure; so a single run has an interval too. A
figure agrees if the interval of the published mean and that of ours overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from rewardgrid.published.data import Line, Tables, happy_at_end
from rewardgrid.published.judging import Answer
from rewardgrid.report.columns import COLUMNS, NOTHING, decimals, known, setting
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.routing_findings import Ended, endings, near_end
from rewardgrid.report.statistics import clipped, largest_share, pooled_sd, t_quantile
from rewardgrid.report.tables import Row, verdicts_in_short
from rewardgrid.study.verdict import LABELS

PUBLISHED_SAMPLES = 10
"""Completions of a published evaluation by mode: what a "0" of them rests on."""
SAME_SECONDS = 1.5
"""Wall clock belongs to a machine, and none was published twice: seconds agree within this factor."""


class Kind(NamedTuple):
    """A kind of figure: its name, the decimals at which it is shown, whether seeds differ by a factor, its largest
    value; none is negative."""

    name: str
    digits: int
    factor: bool = False
    largest: float = math.inf


REWARD, JACCARD = Kind("reward", 3, largest=1.0), Kind("Jaccard", 3, largest=1.0)
KL, SECONDS = Kind("KL", 2, factor=True), Kind("seconds", 0, factor=True)
UNIQUE = Kind("unique/20", 1, largest=20.0)
VERDICT = Kind("verdict", 1, largest=2.0)
"""0 for ok, 1 for borderline, 2 for degenerate."""
VERDICT_COLUMNS = ("verdict", "verdict_published_signals")
"""A published verdict stands beside ours by all signals, and by those alone that the published rows give."""


class _Figure(NamedTuple):
    """One column of a published table: which of ours it is, of which kind, and its published decimals."""

    ours: str
    kind: Kind
    digits: int
    label: str = ""


class _Table(NamedTuple):
    """How a published table is compared: with whose cells, and which of its columns is which of ours."""

    experiment: str
    keys: dict[str, str]
    figures: dict[str, _Figure]
    seeds: int = 1
    """Published runs behind a row."""


_TABLES: dict[str, _Table] = {
    "reward_sweep.csv": _Table(
        "reward_sweep",
        {"beta": "beta", "repetition_penalty": "repetition_penalty"},
        {
            "reward": _Figure("final_reward", REWARD, 3),
            "jaccard": _Figure("jaccard", JACCARD, 3),
            "kl": _Figure("final_kl", KL, 2),
        },
    ),
    "lora_rank.csv": _Table(
        "lora_rank",
        {"rank": "rank", "lr": "lr"},
        {
            "reward": _Figure("final_reward", REWARD, 3),
            "unique_first_sentences": _Figure("unique_first_sentences", UNIQUE, 0),
            "jaccard": _Figure("jaccard", JACCARD, 3),
        },
    ),
    "lora_rank_summary.csv": _Table(
        "lora_rank",
        {"rank": "rank", "lr": "lr"},
        {"reward_mean": _Figure("final_reward", REWARD, 2), "kl": _Figure("final_kl", KL, 1)},
        seeds=2,
    ),
    "batch_size.csv": _Table(
        "batch_size",
        {"rank": "rank", "lr": "lr", "batch_size": "batch_size"},
        {
            "seconds_to_0.85": _Figure("seconds_to_085", SECONDS, 0, "s to 0.85"),
            "seconds_to_0.95": _Figure("seconds_to_095", SECONDS, 0, "s to 0.95"),
            "final_reward": _Figure("final_reward", REWARD, 2),
        },
    ),
    "routing_asymmetric.csv": _Table("routing_asymmetric", {"retain_rank": "rank", "forget_rank": "forget_rank"}, {}),
}


class Item(TypedDict):
    """One published figure beside ours."""

    metric: str
    published: str
    ours: str
    answer: Answer


class ComparedRow(TypedDict):
    """A configuration of a published table; ``seeds`` are the published runs behind it, ``cells`` ours."""

    table: str
    settings: str
    seeds: int
    cells: int
    items: list[Item]
    answer: Answer
    notes: list[str]


def compare_rows(tables: Tables, ours: Evidence, spreads: Mapping[str, SeedSpread]) -> list[ComparedRow]:
    """Every configuration of every published table beside ours.

    Args:
        tables: the published tables.
        ours: the cells of the published settings, by experiment.
        spreads: how far seeds lie apart, by kind of figure.
    """
    return [
        _compare(name, settings, lines, ours, spreads)
        for name in tables
        for settings, lines in _configurations(name, tables[name])
    ]


def _configurations(name: str, lines: Sequence[Line]) -> Iterator[tuple[dict[str, Any], list[Line]]]:
    """(our settings, published rows) of each configuration of a table, in order."""
    keys = _TABLES[name].keys
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[column] for column in keys), []).append(line)
    for values, members in found.items():
        yield dict(zip(keys.values(), values, strict=True)), members


def _cells(name: str, settings: Mapping[str, Any], ours: Evidence) -> list[Row]:
    return [
        cell
        for cell in ours.tables.get(_TABLES[name].experiment, ())
        if all(cell[key] == value for key, value in settings.items())
    ]


# --- how far seeds lie apart ---------------------------------------------------------------------------


class SeedSpread(NamedTuple):
    """Standard deviation between seeds (of the logarithm, where seeds differ by a factor), degrees of freedom."""

    sd: float
    freedom: int


def seed_spreads(tables: Tables, ours: Evidence) -> dict[str, SeedSpread]:
    """The spread between seeds by kind of figure, pooled over the configurations of all tables, published and ours."""
    groups: dict[Kind, list[list[float]]] = {}
    for name, table in _TABLES.items():
        if table.seeds > 1:
            continue  # its rows are means already
        for settings, lines in _configurations(name, tables[name]):
            finished = [cell for cell in _cells(name, settings, ours) if cell["state"] == "done"]
            for column, figure in table.figures.items():
                for values in (_known(lines, column), _known(finished, figure.ours)):
                    groups.setdefault(figure.kind, []).append(_scaled(figure.kind, values))
            for rows in (lines, finished):
                groups.setdefault(VERDICT, []).append(_scores(_verdicts(rows)))
    pooled = {kind.name: pooled_sd(members) for kind, members in groups.items()}
    return {name: SeedSpread(*found) for name, found in pooled.items() if found is not None}


def _known(rows: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    return [float(row[column]) for row in rows if known(row[column])]


def _scaled(kind: Kind, values: Sequence[float]) -> list[float]:
    # A KL of exactly 0 has no logarithm; at the decimals of the tables it is the smallest one there is.
    return [math.log(max(value, 0.5 * 10**-kind.digits)) for value in values] if kind.factor else list(values)


# --- a row ---------------------------------------------------------------------------------------------


def _compare(
    name: str, settings: Mapping[str, Any], lines: Sequence[Line], ours: Evidence, spreads: Mapping[str, SeedSpread]
) -> ComparedRow:
    table, cells = _TABLES[name], _cells(name, settings, ours)
    if name == "routing_asymmetric.csv":
        items = _asymmetric_items(lines, settings, ours)
    else:
        items = [
            _item(column, figure, lines, cells, table.seeds, spreads)
            for column, figure in table.figures.items()
            if _known(lines, column)
        ]
        if "verdict" in lines[0]:
            items += [
                _verdict_item(lines, cells, spreads, column)
                for column in VERDICT_COLUMNS
                if not cells or _verdicts(cells, column)
            ]
    return ComparedRow(
        table=name,
        settings=", ".join(setting(key, value) for key, value in settings.items()),
        seeds=table.seeds * len(lines),
        cells=len(cells),
        items=items,
        answer=overall([item["answer"] for item in items]),
        notes=list(dict.fromkeys(str(line["note"]) for line in lines if line.get("note"))),
    )


def overall(answers: Sequence[Answer]) -> Answer:
    """A row agrees if all its figures do; it was run if one of them was."""
    if all(answer == "not run" for answer in answers):
        return "not run"
    return "agrees" if all(answer == "agrees" for answer in answers) else "differs"


def _item(
    column: str,
    figure: _Figure,
    lines: Sequence[Line],
    cells: Sequence[Row],
    seeds: int,
    spreads: Mapping[str, SeedSpread],
) -> Item:
    kind, label = figure.kind, figure.label or figure.kind.name
    theirs = _interval(kind, _known(lines, column), seeds, spreads, 0.5 * 10**-figure.digits)
    finished = [cell for cell in cells if cell["state"] == "done"]
    mine = _interval(kind, _known(finished, figure.ours), 1, spreads, 0.0)
    answer: Answer
    if not cells:
        shown, answer = NOTHING, "not run"
    elif not finished:
        shown, answer = f"diverged at step {cells[0]['steps_done']}", "differs"
    elif mine is None:
        shown, answer = "never" if kind is SECONDS else NOTHING, "differs"
    else:
        shown, answer = _shown(mine, kind.digits), "agrees" if theirs and _overlap(theirs[1:], mine[1:]) else "differs"
    return Item(metric=label, published=_shown(theirs, kind.digits), ours=shown, answer=answer)


def _interval(
    kind: Kind, values: Sequence[float], seeds: int, spreads: Mapping[str, SeedSpread], rounding: float
) -> tuple[float, float, float] | None:
    """(mean, low, high) of figures that each are the mean of so many seeds; None without any."""
    if not values:
        return None
    scaled = _scaled(kind, values)
    mean = math.fsum(scaled) / len(scaled)
    if kind is SECONDS:
        half = math.log(SAME_SECONDS) / 2
    else:
        spread = spreads[kind.name]
        half = t_quantile(spread.freedom) * spread.sd / math.sqrt(seeds * len(values))
    ends = (mean, mean - half, mean + half)
    middle, low, high = (math.exp(end) for end in ends) if kind.factor else ends
    low, high = clipped((low - rounding, high + rounding), (0.0, kind.largest))
    return middle, low, high


def _shown(found: tuple[float, float, float] | None, digits: int) -> str:
    if found is None:
        return NOTHING
    middle, low, high = (decimals(end, digits) for end in found)
    return f"{middle} ({low} to {high})"


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _scores(verdicts: Sequence[str]) -> list[float]:
    return [float(LABELS.index(verdict)) for verdict in verdicts]


def _verdicts(rows: Sequence[Mapping[str, Any]], column: str = "verdict") -> list[str]:
    """The verdicts that there are; what diverged counts as degenerate."""
    found = ["degenerate" if row.get("state") == "diverged" else row.get(column) for row in rows]
    return [verdict for verdict in found if verdict]


def _verdict_item(lines: Sequence[Line], cells: Sequence[Row], spreads: Mapping[str, SeedSpread], column: str) -> Item:
    """Verdicts of both sides, compared like figures; ours are those of a column."""
    both = _verdicts(lines), _verdicts(cells, column)
    theirs, mine = (_interval(VERDICT, _scores(verdicts), 1, spreads, 0.0) for verdicts in both)
    answer: Answer = "agrees" if theirs and mine and _overlap(theirs[1:], mine[1:]) else "differs"
    return Item(
        metric=COLUMNS[column].label,
        published=verdicts_in_short(both[0]),
        ours=verdicts_in_short(both[1]) if cells else NOTHING,
        answer=answer if cells else "not run",
    )


# --- routing -------------------------------------------------------------------------------------------


def _asymmetric_items(lines: Sequence[Line], settings: Mapping[str, Any], ours: Evidence) -> list[Item]:
    """Ranges near the end, over seeds; "happy" of retain_only is what it writes beyond its base."""
    cells = _cells("routing_asymmetric.csv", settings, ours)
    found = [(ended, settled) for ended in endings(ours, cells) if (settled := near_end(ended, ours))]
    at_end = [happy_at_end(line["retain_happy"]) for line in lines]
    zero = largest_share(0, PUBLISHED_SAMPLES)
    published = {
        "retain sl10": _span([(line["retain_sl10_low"], line["retain_sl10_high"]) for line in lines]),
        "retain happy": _span([(0.0, zero) if end.zero else (end.low, end.high) for end in at_end]),
        "forget happy": _span([(line["forget_happy_low"], line["forget_happy_high"]) for line in lines]),
    }
    said = {name: _ranged(span) for name, span in published.items()}
    said["retain happy"] = "; ".join(dict.fromkeys(str(line["retain_happy"]) for line in lines))
    if not found:
        text = f"diverged at step {cells[0]['steps_done']}" if cells else NOTHING
        answer: Answer = "differs" if cells else "not run"
        return [Item(metric=name, published=text_, ours=text, answer=answer) for name, text_ in said.items()]
    spans = {
        "retain sl10": _span([(near.retain_sl10["low"], near.retain_sl10["high"]) for _, near in found]),
        "retain happy": _span([_beyond(ended, near.retain_happy) for ended, near in found]),
        "forget happy": _span([(near.forget_happy["low"], near.forget_happy["high"]) for _, near in found]),
    }
    return [
        Item(
            metric=name,
            published=said[name],
            ours=_ranged(spans[name]),
            answer="agrees" if _overlap(published[name], spans[name]) else "differs",
        )
        for name in published
    ]


def _beyond(ended: Ended, happy: Mapping[str, Any]) -> tuple[float, float]:
    base = float(ended.run.base.mean())
    return max(0.0, happy["low"] - base), max(0.0, happy["high"] - base)


def _span(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _ranged(span: tuple[float, float]) -> str:
    return f"{decimals(span[0], 2)}–{decimals(span[1], 2)}"
