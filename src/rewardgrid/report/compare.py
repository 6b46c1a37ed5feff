"""The published study beside ours: every figure, claim and relation agrees, differs, or was not run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict

import pandas as pd

from rewardgrid.report.columns import NOTHING, SPEC_COLUMNS, decimals, setting, show
from rewardgrid.report.curves import (
    COLLAPSED,
    HAPPY_GONE,
    at_end,
    mode_curve,
    stays_below,
)
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Scope, Spread, count, in_words, spread
from rewardgrid.report.published import (
    SETTINGS,
    Claim,
    Published,
    claim_kind,
    happy_at_end,
    is_published,
)
from rewardgrid.report.relations import Judged, check_relation
from rewardgrid.report.reward_findings import batch_comparisons, lr_ratios, smallest_configuration
from rewardgrid.report.routing_findings import asymmetric_figures, in_steps, over_steps
from rewardgrid.report.statistics import mean_of
from rewardgrid.report.tables import Row

Outcome = Literal["agrees", "differs", "not run"]


@dataclass(frozen=True)
class Tolerance:
    """How far a figure of ours may be from the published one and still agree."""

    amount: float
    kind: Literal["absolute", "relative", "factor"]
    reason: str

    def agrees(self, published: float, ours: float) -> bool:
        """Whether two figures agree; the limit itself does."""
        if self.kind == "factor":
            low, high = sorted((published, ours))
            return high <= self.amount * low * (1 + 1e-9)
        limit = self.amount * (abs(published) if self.kind == "relative" else 1)
        return abs(ours - published) <= limit + 1e-9

    def __str__(self) -> str:
        return {
            "absolute": f"±{self.amount:g}",
            "relative": f"±{100 * self.amount:g} %",
            "factor": f"within a factor of {self.amount:g}",
        }[self.kind]


TOLERANCES: dict[str, Tolerance] = {
    "reward": Tolerance(0.03, "absolute", "published seeds of one setting differ by up to 0.02"),
    "KL": Tolerance(0.25, "relative", "published seeds differ by up to a third of the smaller"),
    "Jaccard": Tolerance(0.03, "absolute", "20 samples; published seeds mostly differ by up to 0.03"),
    "unique/20": Tolerance(4, "absolute", "two standard deviations of a count of about 15 among 20"),
    "sl10": Tolerance(0.1, "absolute", 'the published text says "about"'),
    "happy": Tolerance(0.2, "absolute", "a mean over the samples of one evaluation"),
    "step": Tolerance(20, "absolute", "two evaluations"),
    "seconds": Tolerance(1.5, "factor", "wall clock belongs to a machine"),
}
"""By kind of figure. Verdicts must be equal, a mean must lie in a published range, ranges must overlap."""


class Item(TypedDict):
    """One published figure beside ours."""

    metric: str
    published: str
    ours: str
    outcome: Outcome


class ComparedRow(TypedDict):
    """A row of a published table; ``number`` counts from 1."""

    table: str
    number: int
    settings: str
    items: list[Item]
    outcome: Outcome
    note: str


class ComparedStatement(TypedDict):
    """A claim or a relation; ``cells`` of ours stand behind it."""

    id: str
    experiment: str
    published: str
    ours: str
    outcome: Outcome
    cells: int


class Comparison(TypedDict):
    """Everything published, beside ours on one base."""

    base: str
    rows: list[ComparedRow]
    claims: list[ComparedStatement]
    relations: list[ComparedStatement]


def compare(published: Published, evidence: Evidence, base: str) -> Comparison:
    """Set the published study beside ours.

    Figures and claims are compared with cells whose spec is the published one (``SETTINGS``), wherever they
    stand; relations with whatever the experiment of that name holds.

    Args:
        published: figures, claims, relations.
        evidence: ours.
        base: name of the base whose cells are compared.
    """
    replica = restricted(evidence, base)
    rows = [
        compare_row(table, number, row, replica)
        for table, lines in published.tables.items()
        for number, row in enumerate(lines, start=1)
    ]
    return Comparison(
        base=base,
        rows=rows,
        claims=[compare_claim(claim, replica, rows) for claim in published.claims],
        relations=[
            _statement(relation.id, relation.experiment, relation.says, *check_relation(relation, evidence))
            for relation in published.relations
        ],
    )


def restricted(evidence: Evidence, base: str) -> Evidence:
    """The evidence of a replica of the published study: each experiment's cells, by their settings."""
    ran = {
        row["cell"]: row
        for table in evidence.tables.values()
        for row in table
        if row["state"] != "missing" and row["base"] == base
    }
    tables = {name: [row for row in ran.values() if is_published(row, name)] for name in SETTINGS}
    return replace(evidence, tables=tables)


# --- rows of the published tables ----------------------------------------------------------------------


class _Table(NamedTuple):
    """How a published table is compared: with whose cells, and which of its columns is which of ours."""

    experiment: str
    keys: dict[str, str]
    figures: dict[str, tuple[str, str]]
    """Published column -> (our column, kind of figure)."""


_REWARD, _KL, _JACCARD = ("final_reward", "reward"), ("final_kl", "KL"), ("jaccard", "Jaccard")
_VERDICT = ("verdict", "verdict")

_TABLES: dict[str, _Table] = {
    "reward_sweep.csv": _Table(
        "reward_sweep",
        {"beta": "beta", "repetition_penalty": "repetition_penalty", "seed": "seed"},
        {"reward": _REWARD, "jaccard": _JACCARD, "kl": _KL, "verdict": _VERDICT},
    ),
    "lora_rank.csv": _Table(
        "lora_rank",
        {"rank": "rank", "lr": "lr", "seed": "seed"},
        {
            "reward": _REWARD,
            "unique_first_sentences": ("unique_first_sentences", "unique/20"),
            "jaccard": _JACCARD,
            "verdict": _VERDICT,
        },
    ),
    "lora_rank_summary.csv": _Table("lora_rank", {"rank": "rank", "lr": "lr"}, {"reward_mean": _REWARD, "kl": _KL}),
    "batch_size.csv": _Table(
        "batch_size",
        {"rank": "rank", "lr": "lr", "batch_size": "batch_size"},
        {
            "seconds_to_0.85": ("seconds_to_085", "seconds"),
            "seconds_to_0.95": ("seconds_to_095", "seconds"),
            "final_reward": _REWARD,
            "verdict": _VERDICT,
        },
    ),
    "routing_asymmetric.csv": _Table(
        "routing_asymmetric", {"retain_rank": "rank", "forget_rank": "forget_rank", "seed": "seed"}, {}
    ),
}


def compare_row(name: str, number: int, row: Mapping[str, Any], replica: Evidence) -> ComparedRow:
    """One row of a published table beside the cells of the same settings; a mean where it names no seed."""
    table = _TABLES[name]
    cells = [
        cell
        for cell in replica.tables[table.experiment]
        if all(cell[ours] == row[column] for column, ours in table.keys.items())
    ]
    items = (
        _asymmetric_items(row, cells, replica)
        if name == "routing_asymmetric.csv"
        else [
            _item(column, row[column], cells, *figure)
            for column, figure in table.figures.items()
            if row[column] is not None
        ]
    )
    return ComparedRow(
        table=name,
        number=number,
        settings=", ".join(setting(ours, row[column]) for column, ours in table.keys.items()),
        items=items,
        outcome=_overall([item["outcome"] for item in items]),
        note=row.get("note") or "",
    )


def _overall(outcomes: Sequence[Outcome]) -> Outcome:
    """A row agrees if all its figures do; it was run if one of them was."""
    if all(outcome == "not run" for outcome in outcomes):
        return "not run"
    return "agrees" if all(outcome == "agrees" for outcome in outcomes) else "differs"


def _item(column: str, published: Any, cells: Sequence[Row], ours: str, kind: str) -> Item:
    """One figure; ``ours`` and ``kind`` as in ``_Table.figures``."""
    label = {"verdict": "verdict", "seconds_to_0.85": "s to 0.85", "seconds_to_0.95": "s to 0.95"}.get(column, kind)
    shown = str(published) if kind == "verdict" else f"{published:g}"
    if not cells:
        return Item(metric=label, published=shown, ours=NOTHING, outcome="not run")
    finished = [cell for cell in cells if cell["state"] == "done"]
    if not finished:
        text = f"diverged at step {cells[0]['steps_done']}"
        return Item(metric=label, published=shown, ours=text, outcome="differs")
    if kind == "verdict":
        verdict = finished[0]["verdict"]
        return Item(
            metric=label,
            published=shown,
            ours=str(verdict),
            outcome="agrees" if verdict == published else "differs",
        )
    mean = mean_of([cell[ours] for cell in finished]).mean
    if mean is None:
        return Item(metric=label, published=shown, ours="never" if kind == "seconds" else NOTHING, outcome="differs")
    agrees = TOLERANCES[kind].agrees(published, mean)
    return Item(metric=label, published=shown, ours=show(ours, mean), outcome="agrees" if agrees else "differs")


def _asymmetric_items(row: Mapping[str, Any], cells: Sequence[Row], replica: Evidence) -> list[Item]:
    sl10 = (row["retain_sl10_low"], row["retain_sl10_high"])
    happy = (row["forget_happy_low"], row["forget_happy_high"])
    published = {
        "retain sl10": f"{sl10[0]:g}–{sl10[1]:g}",
        "retain happy": str(row["retain_happy"]),
        "forget happy": f"{happy[0]:g}–{happy[1]:g}",
    }
    ours = asymmetric_figures(replica, cells[0]) if cells else None
    if ours is None:
        text = f"diverged at step {cells[0]['steps_done']}" if cells else NOTHING
        outcome: Outcome = "differs" if cells else "not run"
        return [Item(metric=name, published=said, ours=text, outcome=outcome) for name, said in published.items()]
    found = {
        "retain sl10": (
            f"{decimals(ours['retain_sl10_low'], 2)}–{decimals(ours['retain_sl10_high'], 2)}",
            _overlap(sl10, (ours["retain_sl10_low"], ours["retain_sl10_high"])),
        ),
        "retain happy": (ours["retain_happy"], _same_happy(row["retain_happy"], ours)),
        "forget happy": (
            f"{decimals(ours['forget_happy_low'], 1)}–{decimals(ours['forget_happy_high'], 1)}",
            _overlap(happy, (ours["forget_happy_low"], ours["forget_happy_high"])),
        ),
    }
    return [
        Item(
            metric=name,
            published=said,
            ours=found[name][0],
            outcome="agrees" if found[name][1] else "differs",
        )
        for name, said in published.items()
    ]


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _same_happy(text: str, ours: Mapping[str, Any]) -> bool:
    """Whether retain_only's "happy" went to 0 at about the published step, or ended near that count."""
    published = happy_at_end(text)
    if published.zero:
        zero_from = ours["retain_happy_zero_from"]
        return zero_from is not None and TOLERANCES["step"].agrees(published.step, zero_from)
    near = TOLERANCES["happy"]
    return _overlap(
        (published.low - near.amount, published.high + near.amount),
        (ours["retain_happy_end"], ours["retain_happy_end"]),
    )


# --- claims --------------------------------------------------------------------------------------------


def _statement(
    identity: str, experiment: str, says: str, holds: bool | None, ours: str, cells: Sequence[Row]
) -> ComparedStatement:
    outcome: Outcome = "not run" if holds is None else "agrees" if holds else "differs"
    return ComparedStatement(
        id=identity,
        experiment=experiment,
        published=says,
        ours=ours,
        outcome=outcome,
        cells=len({cell["cell"] for cell in cells}),
    )


def compare_claim(claim: Claim, replica: Evidence, rows: Sequence[ComparedRow]) -> ComparedStatement:
    """A claim beside the cells of the published settings that it is about."""
    kind = claim_kind(claim)
    cells = [cell for cell in replica.tables[claim.experiment] if _selected(cell, claim.where)]
    judged: Judged
    if kind == "table":
        judged = _table_claim([row for row in rows if row["table"] == claim.table], cells)
    elif not cells:
        judged = (None, "", [])
    elif kind == "finding":
        judged = _FINDING_CLAIMS[str(claim.finding)](claim, Scope(replica, claim.experiment), cells)
    elif not any(cell["state"] == "done" for cell in cells):
        judged = (False, "every cell diverged", cells)
    else:
        judged = _CURVE_CLAIMS[str(kind)](claim, replica, [cell for cell in cells if cell["state"] == "done"])
    return _statement(claim.id, claim.experiment, in_plain_words(claim), *judged)


def _selected(cell: Row, where: Mapping[str, Any]) -> bool:
    return all(cell[name] in value if isinstance(value, list) else cell[name] == value for name, value in where.items())


def _table_claim(rows: Sequence[ComparedRow], cells: Sequence[Row]) -> Judged:
    ran = [row for row in rows if row["outcome"] != "not run"]
    if not ran:
        return None, "", []
    agree = sum(row["outcome"] == "agrees" for row in ran)
    return agree == len(rows), f"{agree} of {count(len(rows), 'row')} agree, {len(ran)} were run", cells


def _verdict_claim(claim: Claim, replica: Evidence, cells: Sequence[Row]) -> Judged:
    agree = sum(cell["verdict"] == claim.verdict for cell in cells)
    verdicts = statistics.multimode(str(cell["verdict"]) for cell in cells)
    return (
        2 * agree > len(cells),
        f"{agree} of {count(len(cells), 'cell')} {claim.verdict}; most often {' or '.join(verdicts)}",
        cells,
    )


_KIND_OF_METRIC = {"reward": "reward", "kl": "KL", "sl10": "sl10", "happy": "happy"}
_FINAL_COLUMN = {"reward": "final_reward", "kl": "final_kl", "sl10": "sl10", "happy": "happy"}


def _measured(claim: Claim, replica: Evidence, cell: Row) -> float | None:
    """The claim's figure of one cell: over its window of steps, or at the end."""
    metric = str(claim.metric)
    if claim.steps is not None:
        return over_steps(replica, cell, metric, *claim.steps, claim.mode)
    if claim.mode is None:
        value: float | None = cell[_FINAL_COLUMN[metric]]
        return value
    frame = replica.routing.get(cell["cell"])
    return None if frame is None else at_end(frame, claim.mode, metric)


def _value_claim(claim: Claim, replica: Evidence, cells: Sequence[Row]) -> Judged:
    """A mean over cells against a mean, a range or an "about", and whatever else the claim says of them."""
    found = spread(_measured(claim, replica, cell) for cell in cells)
    if found is None:
        return None, "", []
    tolerance = TOLERANCES[_KIND_OF_METRIC[str(claim.metric)]]
    checks: list[bool] = []
    texts = [in_words(found)]
    if claim.range is not None:
        checks.append(claim.range[0] <= round(found["mean"], 3) <= claim.range[1])
    if claim.mean is not None:
        checks.append(tolerance.agrees(claim.mean, found["mean"]))
    if claim.about is not None:
        checks.append(tolerance.agrees(claim.about, found["mean"]))
    if claim.from_about is not None:
        start = spread(_first(replica, cell, claim) for cell in cells)
        checks.append(start is not None and tolerance.agrees(claim.from_about, start["mean"]))
        texts.append(f"from {in_words(start)}")
    for name, kind in (("unique_first_sentences", "unique/20"), ("jaccard", "Jaccard")):
        said = getattr(claim, name)
        if said is not None:
            mean = mean_of([cell[name] for cell in cells]).mean
            checks.append(mean is not None and TOLERANCES[kind].agrees(said, mean))
            texts.append(f"{kind} {decimals(mean, 3 if kind == 'Jaccard' else 1)}")
    return all(checks), ", ".join(texts), cells


def _first(replica: Evidence, cell: Row, claim: Claim) -> float | None:
    """The claim's metric at the first evaluation of its mode."""
    frame = replica.routing.get(cell["cell"])
    if frame is None or claim.mode is None:
        return None
    values = mode_curve(frame, claim.mode, str(claim.metric))[1]
    return values[0] if values else None


def _first_steps(
    claim: Claim, replica: Evidence, cells: Sequence[Row], limit: float
) -> tuple[list[float], str, list[Row]]:
    """From which step each cell's metric stays below a limit (infinite if it does not), and that in words."""
    evaluated: list[tuple[Row, pd.DataFrame]] = [
        (cell, replica.routing[cell["cell"]]) for cell in cells if cell["cell"] in replica.routing
    ]
    found = [stays_below(*mode_curve(frame, str(claim.mode), str(claim.metric)), limit) for _, frame in evaluated]
    steps = [float("inf") if step is None else float(step) for step in found]
    reached, never = sorted(step for step in found if step is not None), found.count(None)
    said = [f"from step {', '.join(map(str, reached))}"] if reached else []
    said += [f"never in {never}" if reached else "never"] if never else []
    return steps, f"{'; '.join(said)} ({count(len(found), 'seed')})", [cell for cell, _ in evaluated]


def _zero_from_claim(claim: Claim, replica: Evidence, cells: Sequence[Row]) -> Judged:
    """The median seed's step from which "happy" stays 0 must lie in the published range."""
    assert claim.zero_from_step is not None
    steps, text, evaluated = _first_steps(claim, replica, cells, HAPPY_GONE)
    if not steps:
        return None, "", []
    return claim.zero_from_step[0] <= statistics.median(steps) <= claim.zero_from_step[1], text, evaluated


def _collapse_claim(claim: Claim, replica: Evidence, cells: Sequence[Row]) -> Judged:
    """The median seed must have collapsed for good by the published step."""
    assert claim.by_step is not None
    assert claim.collapses_to is not None
    limit = claim.collapses_to + COLLAPSED
    steps, text, evaluated = _first_steps(claim, replica, cells, limit)
    if not steps:
        return None, "", []
    return statistics.median(steps) <= claim.by_step, f"below {limit:g} {text}", evaluated


_CURVE_CLAIMS: dict[str, Callable[[Claim, Evidence, Sequence[Row]], Judged]] = {
    "verdict": _verdict_claim,
    "value": _value_claim,
    "zero_from": _zero_from_claim,
    "collapse": _collapse_claim,
}


def _smallest_claim(claim: Claim, scope: Scope, cells: Sequence[Row]) -> Judged:
    best = smallest_configuration(scope, claim.threshold or 0.0)
    if best is None:
        return False, "no rank passes", cells
    wanted = claim.value or {}
    return _selected(best.cells[0], wanted), settings_of(wanted, best.cells[0]), cells


def settings_of(names: Iterable[str], row: Row) -> str:
    """Some of a cell's settings in words."""
    return ", ".join(setting(name, row[name]) for name in names if name in SPEC_COLUMNS)


def _ratio_claim(claim: Claim, scope: Scope, cells: Sequence[Row]) -> Judged:
    ratios = lr_ratios(scope)
    found: Spread | None = spread([ratio.ratio for ratio in ratios])
    if found is None or claim.range is None:
        return None, "not enough cells that pass", []
    each = ", ".join(f"rank {ratio.rank}: {ratio.ratio:g}" for ratio in ratios)
    used = [row for ratio in ratios for side in (ratio.lora, ratio.full) for row in side.finished]
    return claim.range[0] <= found["low"] and found["high"] <= claim.range[1], f"{each} times", used


def _slower_claim(claim: Claim, scope: Scope, cells: Sequence[Row]) -> Judged:
    rows, compared = batch_comparisons(scope)
    decided = [row for row in rows if row["outcome"] in ("sooner", "slower")]
    if not decided:
        return None, "no threshold reached on the same hardware", []
    sooner = sum(row["outcome"] == "sooner" for row in decided)
    by_batch = []
    for batch in sorted({row["batch_size"] for row in decided}):
        ratios = spread([row["ratio"] for row in decided if row["batch_size"] == batch])
        by_batch.append(f"batch {batch}: {in_words(ratios, 1)} times" if ratios else f"batch {batch}: never")
    return not sooner, f"{'; '.join(by_batch)}; sooner in {sooner} of {len(decided)}", compared


_FINDING_CLAIMS: dict[str, Callable[[Claim, Scope, Sequence[Row]], Judged]] = {
    "smallest_passing": _smallest_claim,
    "lr_ratio_to_full": _ratio_claim,
    "slower_than_baseline": _slower_claim,
}


def in_plain_words(claim: Claim) -> str:
    """A claim as a sentence fragment for the table."""
    where = ", ".join(
        f"{'paid for' if name == 'reward' else name} "
        + " or ".join(show(name, each) for each in (value if isinstance(value, list) else [value]))
        for name, value in claim.where.items()
    )
    subject = " ".join(part for part in (claim.mode, {"kl": "KL"}.get(str(claim.metric), claim.metric)) if part)
    said: list[str] = []
    if claim.steps is not None:
        said.append(f"at {in_steps(*claim.steps)}")
    if claim.mean is not None:
        said.append(f"{claim.mean:g} on average")
    if claim.range is not None:
        said.append(f"{claim.range[0]:g}–{claim.range[1]:g}")
    if claim.about is not None:
        said.append(f"about {claim.about:g}")
    if claim.from_about is not None:
        said.append(f"from about {claim.from_about:g}")
    if claim.zero_from_step is not None:
        said.append(f"0 from step {claim.zero_from_step[0]}–{claim.zero_from_step[1]}")
    if claim.collapses_to is not None:
        said.append(f"collapses to {claim.collapses_to:g} by step {claim.by_step}")
    if claim.verdict is not None:
        said.append(f"verdict {claim.verdict}")
    if claim.unique_first_sentences is not None:
        said.append(f"unique/20 {claim.unique_first_sentences:g}")
    if claim.jaccard is not None:
        said.append(f"Jaccard {claim.jaccard:g}")
    if claim.finding is not None:
        subject = _FINDING_WORDS[claim.finding]
        if claim.value is not None:
            said.append(", ".join(setting(name, value) for name, value in claim.value.items()))
    if claim.table is not None:
        said.append(f"the rows of {claim.table}")
    statement = " ".join(part for part in (subject, ", ".join(said)) if part)
    return "; ".join(part for part in (where, statement, claim.note) if part)


_FINDING_WORDS = {
    "smallest_passing": "smallest rank that passes 0.85:",
    "lr_ratio_to_full": "LoRA's learning rate by full fine-tuning's:",
    "slower_than_baseline": "a larger batch is slower to each threshold",
}
