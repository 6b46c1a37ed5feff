"""Findings about gradient routing: pure functions of curves by step and mode."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rewardgrid.report.columns import FINAL_STEPS, decimals
from rewardgrid.report.curves import (
    COLLAPSED,
    HAPPY_GONE,
    LAST_EVALUATIONS,
    OUTCOME_RULE,
    Separation,
    at_end,
    mode_curve,
    separation,
    stays_below,
    within,
)
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Finding, Scope, Spread, count, finding, in_words, not_enough, spread
from rewardgrid.report.tables import Row

ASYMMETRIC_FROM = 0.7
"""The asymmetric table looks at the steps from this share of a run on: 70 of the published 100."""


def baseline_climb(scope: Scope) -> Finding:
    """How fast the cells climb without routing, over the published windows of steps."""
    rule = "Reward and KL of training, means over each window of steps; ranges are over seeds."
    cells = [row for row in scope.finished if row["cell"] in scope.evidence.histories]
    if not cells:
        return not_enough(scope, "baseline_climb", "none has finished", rule=rule)
    published = [(claim.metric, *claim.steps) for claim in scope.claims if claim.steps and claim.mode is None]
    windows = [(str(metric), first, last) for metric, first, last in published]
    rows, sentences = [], []
    for metric, first, last in windows:
        values = [over_steps(scope.evidence, row, metric, first, last) for row in cells]
        found = spread(values)
        rows.append({"metric": metric, "steps": in_steps(first, last), "value": found})
        name = {"kl": "KL"}.get(metric, metric)
        where = in_steps(first, last)
        sentences.append(
            f"At {where}, {name} is {in_words(found)}." if found else f"No seed was trained as far as {where}."
        )
    final = spread([row["final_reward"] for row in cells])
    kl = spread([row["final_kl"] for row in cells])
    hacked = spread([row["hacked"] for row in cells])
    rows += [
        {"metric": "reward", "steps": f"last {FINAL_STEPS}", "value": final},
        {"metric": "kl", "steps": f"last {FINAL_STEPS}", "value": kl},
        {"metric": "share of hacked completions", "steps": "final samples", "value": hacked},
    ]
    sentences.append(
        f"Over the last {FINAL_STEPS} steps reward is {in_words(final)} and KL {in_words(kl)} nats per token; "
        f"the share of hacked completions is {in_words(hacked, 2)} ({count(len(cells), 'seed')})."
    )
    conclusion = f"reward {in_words(final)} at the end, share of hacked completions {in_words(hacked, 2)}"
    return finding(scope, "baseline_climb", conclusion, sentences, cells, rows, rule)


def in_steps(first: int, last: int) -> str:
    """``step 30``, ``steps 150–200``."""
    return f"step {first}" if first == last else f"steps {first}–{last}"


def over_steps(
    evidence: Evidence, row: Row, metric: str, first: int, last: int, mode: str | None = None
) -> float | None:
    """Mean of a metric of one cell over a window of steps; None if the cell did not get to the window's end.

    Without a mode the metric is of training's ``history``, with one of the evaluations by mode.
    """
    if mode is None:
        history = evidence.histories.get(row["cell"])
        steps, values = ([], []) if history is None else (history["step"].tolist(), history[metric].tolist())
    else:
        frame = evidence.routing.get(row["cell"])
        steps, values = ([], []) if frame is None else mode_curve(frame, mode, metric)
    inside = within(steps, values, first, last)
    return math.fsum(inside) / len(inside) if inside and max(steps) >= last else None


def separations(scope: Scope) -> list[tuple[Row, Separation]]:
    """How each finished routing cell ended, where its base and both modes were measured."""
    found = []
    for row in scope.finished:
        frame, base_sl10 = scope.evidence.routing.get(row["cell"]), scope.evidence.base_sl10(row)
        judged = None if frame is None or base_sl10 is None else separation(frame, base_sl10)
        if judged is not None:
            found.append((row, judged))
    return found


MAJORITY_RULE = "An outcome shared by more than half of the seeds is the conclusion; without one it is partly."


def conclude(outcomes: Sequence[str]) -> str:
    """The outcome of more than half of the seeds, or "partly"."""
    outcome, number = Counter(outcomes).most_common(1)[0]
    return outcome if 2 * number > len(outcomes) else "partly"


def sentence_case(text: str) -> str:
    """Text with a capital at its start; what follows is left as it is."""
    return text[:1].upper() + text[1:]


def _tally(outcomes: Sequence[str]) -> str:
    conclusion = conclude(outcomes)
    return f"{conclusion} ({outcomes.count(conclusion)} of {count(len(outcomes), 'seed')})"


def _by_configuration(scope: Scope, cells: Iterable[str]) -> list[tuple[str, set[str]]]:
    """(prefix for a sentence, names of its cells) of each configuration that has some of these cells."""
    wanted = set(cells)
    split = [(found.label, {str(row["cell"]) for row in found.cells} & wanted) for found in scope.configurations]
    kept = [(label, names) for label, names in split if names]
    return [("", names) for _, names in kept] if len(kept) == 1 else [(f"{label}: ", names) for label, names in kept]


def hack_removed(scope: Scope) -> Finding:
    """Whether cutting the forget adapter away removes the hack and keeps the task."""
    rule = f"{OUTCOME_RULE} {MAJORITY_RULE}"
    judged = separations(scope)
    if not judged:
        return not_enough(scope, "hack_removed", "no cell was evaluated by mode", rule=rule)
    rows = [
        {name: row[name] for name in ("rank", "forget_rank", "seed")}
        | {
            '"happy" of retain_only 0 from step': found.happy_zero_from
            if found.happy_zero_from is not None
            else "never",
            "both happy": found.both_happy,
            "retain_only happy": found.retain_happy,
            "forget_only happy": found.forget_happy,
            "retain_only sl10": found.retain_sl10,
            "base sl10": scope.evidence.base_sl10(row),
            "outcome": found.outcome,
        }
        for row, found in judged
    ]
    sentences, parts = [], []
    for prefix, names in _by_configuration(scope, (row["cell"] for row, _ in judged)):
        mine = [found for row, found in judged if row["cell"] in names]
        gone = [found.happy_zero_from for found in mine if found.happy_zero_from is not None]
        steps = spread([float(step) for step in gone])
        tally = _tally([found.outcome for found in mine])
        when = f", from step {in_words(steps, 0)}" if steps else ""
        sentences.append(
            sentence_case(f"{prefix}{tally}. ")
            + f'With the forget adapter cut away "happy" stays at 0 in {len(gone)} of '
            f"{count(len(mine), 'seed')}{when}; at the end a completion holds "
            f'{in_words(spread(found.both_happy for found in mine), 2)} "happy" with both adapters and '
            f"{in_words(spread(found.retain_happy for found in mine), 2)} with retain alone, whose sl10 is "
            f"{in_words(spread(found.retain_sl10 for found in mine))}."
        )
        parts.append(f"{prefix}{tally}")
    return finding(scope, "hack_removed", "; ".join(parts), sentences, [row for row, _ in judged], rows, rule)


WINDOW_FIGURES = tuple((mode, metric) for mode in ("retain_only", "forget_only") for metric in ("sl10", "happy"))


def windows(scope: Scope) -> Finding:
    """Ranges of sl10 and "happy" of each adapter alone, over the published windows of steps."""
    rule = "Range (and mean) over seeds of each seed's mean over the window's evaluations."
    cells = [row for row in scope.finished if row["cell"] in scope.evidence.routing]
    if not cells:
        return not_enough(scope, "windows", "no cell was evaluated by mode", rule=rule)
    wanted = sorted({claim.steps for claim in scope.claims if claim.steps and claim.mode is not None})
    rows, sentences = [], []
    for prefix, names in _by_configuration(scope, (row["cell"] for row in cells)):
        mine = [row for row in cells if row["cell"] in names]
        for first, last in wanted:
            found = {
                f"{mode} {metric}": spread(over_steps(scope.evidence, row, metric, first, last, mode) for row in mine)
                for mode, metric in WINDOW_FIGURES
            }
            rows.append(_window(prefix, in_steps(first, last), found))
        end = {
            f"{mode} {metric}": spread(at_end(scope.evidence.routing[row["cell"]], mode, metric) for row in mine)
            for mode, metric in WINDOW_FIGURES
        }
        rows.append(_window(prefix, f"the last {LAST_EVALUATIONS} evaluations", end))
        described = "; ".join(
            f"{what} {in_words(value, 2 if what.endswith('happy') else 3)}" for what, value in end.items() if value
        )
        sentences.append(sentence_case(f"{prefix}at the end {described} ({count(len(mine), 'seed')})."))
    retain = spread(at_end(scope.evidence.routing[row["cell"]], "retain_only", "sl10") for row in cells)
    conclusion = f"retain_only sl10 ends at {in_words(retain)}"
    return finding(scope, "windows", conclusion, sentences, cells, rows, rule)


def _window(prefix: str, steps: str, found: Mapping[str, Spread | None]) -> dict[str, Any]:
    configuration = {"configuration": prefix.removesuffix(": ")} if prefix else {}
    return {**configuration, "steps": steps, **found}


def collapse(scope: Scope) -> Finding:
    """Whether the retain adapter loses the task, and from when."""
    rule = f"A seed collapses if retain_only's sl10 falls below {COLLAPSED} for good."
    judged = separations(scope)
    if not judged:
        return not_enough(scope, "collapse", "no cell was evaluated by mode", rule=rule)
    rows = [
        {name: row[name] for name in ("rank", "forget_rank", "seed")}
        | {
            f"retain_only sl10 below {COLLAPSED} from step": found.collapsed_from
            if found.collapsed_from is not None
            else "never",
            "retain_only sl10 at the end": found.retain_sl10,
        }
        for row, found in judged
    ]
    parts, sentences = [], []
    for prefix, names in _by_configuration(scope, (row["cell"] for row, _ in judged)):
        mine = [found for row, found in judged if row["cell"] in names]
        steps = [found.collapsed_from for found in mine if found.collapsed_from is not None]
        since = spread([float(step) for step in steps])
        parts.append(f"{prefix}{len(steps)} of {count(len(mine), 'seed')}")
        when = f", from step {in_words(since, 0)}" if since else ""
        sentences.append(
            sentence_case(
                f"{prefix}retain_only's sl10 falls below {COLLAPSED} for good in {len(steps)} of "
                f"{count(len(mine), 'seed')}{when}; at the end it is "
                f"{in_words(spread(found.retain_sl10 for found in mine))}."
            )
        )
    conclusion = f"collapses in {'; '.join(parts)}"
    return finding(scope, "collapse", conclusion, sentences, [row for row, _ in judged], rows, rule)


def asymmetric_figures(evidence: Evidence, row: Row) -> dict[str, Any] | None:
    """One routing cell as a row of the published asymmetric table; None if it was not evaluated by mode.

    Ranges are over the evaluations from 70 % of the steps on; ``retain_happy`` is ``0 from step N``, or its
    mean at the last evaluation.
    """
    frame = evidence.routing.get(row["cell"])
    if frame is None:
        return None
    last = int(row["max_steps"])
    first = math.ceil(ASYMMETRIC_FROM * last)
    retain, forget = (
        spread(within(*mode_curve(frame, mode, metric), first, last))
        for mode, metric in (("retain_only", "sl10"), ("forget_only", "happy"))
    )
    steps, happy = mode_curve(frame, "retain_only", "happy")
    if retain is None or forget is None or not steps:
        return None
    zero = stays_below(steps, happy, HAPPY_GONE)
    return {
        "retain_rank": row["rank"],
        "forget_rank": row["forget_rank"],
        "seed": row["seed"],
        "retain_sl10_low": retain["low"],
        "retain_sl10_high": retain["high"],
        "retain_happy": f"0 from step {zero}" if zero is not None else f"{decimals(happy[-1], 1)} at step {steps[-1]}",
        "forget_happy_low": forget["low"],
        "forget_happy_high": forget["high"],
        "retain_happy_end": happy[-1],
        "retain_happy_zero_from": zero,
    }


def asymmetric_table(scope: Scope) -> Finding:
    """The published table of asymmetric ranks, row by row."""
    rule = (
        f"Ranges over the evaluations from {100 * ASYMMETRIC_FROM:.0f} % of the steps on; "
        f'"happy" below {HAPPY_GONE} counts as 0.'
    )
    found = [(row, asymmetric_figures(scope.evidence, row)) for row in scope.finished]
    rows = [
        {name: value for name, value in figures.items() if not name.startswith("retain_happy_")}
        for _, figures in found
        if figures
    ]
    cells = [row for row, figures in found if figures]
    if not rows:
        return not_enough(scope, "asymmetric_table", "no cell was evaluated by mode", rule=rule)
    clean = sum(str(row["retain_happy"]).startswith("0 from") for row in rows)
    ranks = ", ".join(str(rank) for rank in sorted({row["forget_rank"] for row in rows}, reverse=True))
    low, high = min(row["retain_sl10_low"] for row in rows), max(row["retain_sl10_high"] for row in rows)
    sentence = (
        f'With forget ranks {ranks}, "happy" of retain_only stays at 0 in {clean} of '
        f"{count(len(rows), 'run')}; "
        f"its sl10 lies between {decimals(low)} and {decimals(high)}."
    )
    conclusion = f"clean in {clean} of {count(len(rows), 'run')}"
    return finding(scope, "asymmetric_table", conclusion, [sentence], cells, rows, rule)
