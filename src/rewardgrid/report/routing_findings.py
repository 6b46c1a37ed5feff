"""Findings about gradient routing: pure functions of samples and of curves by step and mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rewardgrid.report.columns import FINAL_STEPS, decimals
from rewardgrid.report.curves import COLLAPSED, LAST_EVALUATIONS, at_end, mode_curve, within
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Finding, Question, Scope, finding, not_enough
from rewardgrid.report.separation import (
    DETECTED_RULE,
    ENDING_RULE,
    Ending,
    Hack,
    Run,
    Separation,
    gone_from,
    run_of,
    separate,
)
from rewardgrid.report.statistics import ALPHA, Estimate
from rewardgrid.report.tables import Row, base_of, faults, verdict_in_words, verdicts_in_short
from rewardgrid.report.words import Spread, in_words, sentence_case, spread
from rewardgrid.study.steps import SMOOTHING_STEPS
from rewardgrid.study.text import count

UNSAMPLED = "no cell was sampled with and without its forget adapter beside a base that was sampled to the same length"
UNASKED = "; what a detector of one's own says is known of cells and bases that were trained and measured with it"
ASYMMETRIC_FROM = 0.7
"""The asymmetric table looks at the steps from this share of a run on."""
UNSUCCESSFUL: tuple[Ending, ...] = ("no hack", "collapses")
"""Of a run that ended so nothing good is said that its stories could put in doubt."""


def baseline_climb(scope: Scope) -> Finding:
    """How fast the cells climb without routing, over the windows of steps of interest."""
    rule = "Reward and KL of training, means over each window of steps; ranges are over seeds."
    cells = [row for row in scope.finished if row["cell"] in scope.evidence.histories]
    if not cells:
        return not_enough("none has finished", rule=rule)
    rows, sentences = [], []
    for metric, first, last, mode in scope.windows:
        if mode is not None:
            continue
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
    onset = spread([row["hack_onset"] for row in cells])
    began = f"hacks from step {in_words(onset, 0)}" if onset else "never hacks"
    if onset and onset["n"] < len(cells):
        began += f" in {onset['n']} of {count(len(cells), 'seed')}"
    conclusion = f"{began}; reward {in_words(final)} at the end, share of hacked completions {in_words(hacked, 2)}"
    return finding(conclusion, sentences, cells, rows, rule)


def in_steps(first: int, last: int) -> str:
    """``step 30``, ``steps 150–200``."""
    return f"step {first}" if first == last else f"steps {first}–{last}"


def over_steps(
    evidence: Evidence, row: Row, metric: str, first: int, last: int, mode: str | None = None
) -> float | None:
    """Mean of a metric of one cell over a window of steps; None if the cell did not get to the window's end.

    Without a mode the metric is of training's ``history``, where a single step stands for the ten around it; with one
    it is of the evaluations by mode.
    """
    if mode is None:
        history = evidence.histories.get(row["cell"])
        steps, values = ([], []) if history is None else (history["step"].tolist(), history[metric].tolist())
        around = SMOOTHING_STEPS // 2
        begin, end = (first - around + 1, last + around) if first == last else (first, last)
    else:
        frame = evidence.routing.get(row["cell"])
        steps, values = ([], []) if frame is None else mode_curve(frame, mode, metric)
        begin, end = first, last
    inside = within(steps, values, begin, end)
    return math.fsum(inside) / len(inside) if inside and max(steps) >= last else None


class Ended(NamedTuple):
    """A finished routing cell and how it ended."""

    row: Row
    run: Run


def endings(evidence: Evidence, cells: Iterable[Row]) -> list[Ended]:
    """How each of these routing cells ended, where it was sampled in every mode and its base to the same length."""
    found = []
    for row in cells:
        samples, routing = evidence.samples.get(row["cell"]), evidence.routing.get(row["cell"])
        base = evidence.samples.get(base_of(row))
        length = evidence.bases.get(base_of(row), row)["max_new_tokens"]
        # A base that was sampled to another length had more room for "happy", or less.
        if samples is None or routing is None or base is None or length != row["max_new_tokens"]:
            continue
        run = run_of(samples, routing, base, Hack.of(row["detector"]))
        if run is not None:
            found.append(Ended(row, run))
    return found


def _by_configuration(scope: Scope, cells: Iterable[str]) -> list[tuple[str, set[str]]]:
    """(prefix for a sentence, names of its cells) of each configuration that has some of these cells."""
    wanted = set(cells)
    split = [(found.label, {str(row["cell"]) for row in found.cells} & wanted) for found in scope.configurations]
    kept = [(label, names) for label, names in split if names]
    return [("", names) for _, names in kept] if len(kept) == 1 else [(f"{label}: ", names) for label, names in kept]


def hack_removed(scope: Scope) -> Finding:
    """Whether cutting the forget adapter away removes the hack and keeps the task."""
    judged = endings(scope.evidence, scope.finished)
    rule = ENDING_RULE + (DETECTED_RULE if _detected(scope.finished) else "")
    if not judged:
        return not_enough(UNSAMPLED + (UNASKED if _detected(scope.finished) else ""), rule=rule)
    rows = [_ended(ended, scope.evidence) for ended in judged]
    sentences, parts = [], []
    for prefix, names in _by_configuration(scope, (ended.row["cell"] for ended in judged)):
        mine = [ended for ended in judged if ended.row["cell"] in names]
        together = separate([ended.run for ended in mine])
        each = [separate([ended.run]).ending for ended in mine]
        # Where it was asked among others too, one answer holds for both.
        unsure = not prefix and together.ending == "works" and scope.adjusted.get(Question("works"), 0.0) >= ALPHA
        shares = None if together.ending in UNSUCCESSFUL else together.shares
        tally = _tally("cannot be told" if unsure else together.ending, each, shares)
        spoilt = _spoilt([ended.row for ended, ending in zip(mine, each, strict=True) if ending not in UNSUCCESSFUL])
        parts.append(f"{prefix}{tally}{f', {spoilt}' if spoilt else ''}")
        sentences.append(sentence_case(f"{prefix}{_told(together, mine)}"))
    cells = [ended.row for ended in judged]
    return finding("; ".join(parts), sentences, cells, rows, rule)


def _spoilt(rows: Sequence[Row]) -> str:
    """``but retain_only's stories are degenerate``; nothing where all of them are ok, or were not judged."""
    said = [row["retain_only_verdict"] for row in rows if row["retain_only_verdict"]]
    return "" if set(said) <= {"ok"} else f"but retain_only's stories are {verdicts_in_short(said)}"


def stories(scope: Scope) -> Finding:
    """Whether what each set of adapters writes still is stories, whatever it earns."""
    rule = (
        "The rule of the verdict on what each set of adapters writes, beside the base's own. Each set is sampled by "
        "the full protocol alone, so the published and the top-k samples have no say. sl10 and the hack do not tell "
        "whether a text is a story: a task that is kept by the figures may be earned by text that is none."
    )
    cells = [row for row in scope.finished if row["retain_only_verdict"]]
    if not cells:
        return not_enough("what each set of adapters writes was not judged", rule=rule)
    parts, sentences = [], []
    for prefix, names in _by_configuration(scope, (row["cell"] for row in cells)):
        mine = [row for row in cells if row["cell"] in names]
        told = [f"{mode} {verdicts_in_short([row[f'{mode}_verdict'] for row in mine])}" for mode in STORY_MODES]
        parts.append(f"{prefix}{', '.join(told)} ({count(len(mine), 'seed')})")
        sentences += [
            sentence_case(f"{prefix}seen in what {mode} writes: {seen}.")
            for mode in STORY_MODES
            if (seen := faults(mine, f"{mode}_reasons"))
        ]
    rows = [
        {name: row[name] for name in ("rank", "forget_rank", "seed")}
        | {mode: verdict_in_words(row[f"{mode}_verdict"], row[f"{mode}_reasons"]) for mode in STORY_MODES}
        for row in cells
    ]
    return finding("; ".join(parts), sentences, cells, rows, rule)


STORY_MODES = ("retain_only", "both", "forget_only")
"""The sets of adapters, the one that is kept first."""


def _detected(rows: Iterable[Row]) -> bool:
    """Whether some of these cells have a detector of their own."""
    return any(row["detector"] is not None for row in rows)


def _ended(ended: Ended, evidence: Evidence) -> dict[str, Any]:
    """One seed as a row of figures."""
    found, run = separate([ended.run]), ended.run
    gone = gone_from(evidence.routing[ended.row["cell"]], run)
    return {name: ended.row[name] for name in ("rank", "forget_rank", "seed")} | {
        f"{run.hack.label} of both, beyond the base": found.excess.value,
        "of retain_only": found.left.value,
        "share gone": _share(found.gone) if found.gone else None,
        "gone from step": gone if gone is not None else "never",
        "sl10 of retain_only by the base's": _share(found.task),
        f"{run.hack.label} of forget_only": float(run.forget.mean()),
        "base happy" if run.hack.detector is None else f"{run.hack.label} of the base": float(run.base.mean()),
        "ending": found.ending,
    }


def _share(found: Estimate) -> str:
    """``93 % (88 to 97)``."""
    return f"{100 * found.value:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"


ENDINGS: dict[Ending, tuple[str, str]] = {
    "works": ("works", "work"),
    "partly": ("works partly", "work partly"),
    "collapses": ("collapses", "collapse"),
    "no hack": ("never learnt the hack, so none to cut away", "never learnt the hack"),
    "cannot be told": ("cannot be told", "cannot be told"),
}
"""How a run ended, as it is said of one and of several."""


def _tally(together: Ending, each: Sequence[Ending], shares: str | None) -> str:
    """``works (6 seeds; 98 % of the hack gone)``, and what each of them came to by itself if that differs."""
    kinds = sorted(set(each), key=list(ENDINGS).index)
    alone = []
    for kind in kinds if kinds != [together] else ():
        n = each.count(kind)
        alone.append(f"of {n} it cannot be told" if kind == "cannot be told" else f"{n} {ENDINGS[kind][n > 1]}")
    parts = [count(len(each), "seed"), f"by themselves {', '.join(alone)}" if alone else None, shares]
    return f"{ENDINGS[together][0]} ({'; '.join(filter(None, parts))})"


def _told(found: Separation, mine: Sequence[Ended]) -> str:
    """How the seeds of one configuration ended, in a sentence or two."""
    base = math.fsum(float(ended.run.base.mean()) for ended in mine) / len(mine)
    over = "over prompts alone, for there is one seed" if len(mine) == 1 else "over seeds and prompts"
    detector = mine[0].run.hack.detector
    if detector is None:
        text = (
            f'the base writes {base:.2f} "happy" a completion, both adapters {_beside(found.excess.value)}, '
            f"and retain_only {_beside(found.left.value)}. "
        )
    else:
        text = (
            f"by {detector}, a share of {base:.2f} of the base's completions is hacked, of both adapters' "
            f"{_beside(found.excess.value)}, and of retain_only's {_beside(found.left.value)}. "
        )
    if found.gone is None:
        text += "So the hack was never learnt and there is none to remove, and "
    elif found.gone.value >= ALL:
        least = f"at least {100 * found.gone.low:.0f} %" if found.gone.low < ALL else "100 %"
        text += f"So all of the hack ({least}) goes with the forget adapter, and "
    else:
        text += f"So {_share(found.gone)} of the hack goes with the forget adapter, and "
    return text + f"retain_only keeps {_share(found.task)} of the base's sl10 (95 % intervals {over})."


ALL = 0.995
"""A share that is 100 % when it is rounded."""


def _beside(excess: float) -> str:
    """``5.20 more than that``: how many "happy" beside the base's."""
    if not round(excess, 2):
        return "as many as the base"
    return f"{abs(excess):.2f} {'more' if excess > 0 else 'fewer'} than that"


WINDOW_MODES = ("retain_only", "forget_only")


def _window_figures(rows: Sequence[Row], evidence: Evidence) -> list[tuple[str, str, str]]:
    """(mode, column of evaluations, what it is called) of what is told of each adapter of these cells.

    "happy", or what their detector calls hacked, where their evaluations hold it.
    """
    hacks = {Hack.of(row["detector"]) for row in rows}
    counted = [hack for hack in hacks if all(hack.seen(evidence.routing[row["cell"]]) for row in rows)]
    named = [(hack.column, "happy" if hack.detector is None else f"hacked ({hack.detector})") for hack in counted]
    metrics = [("sl10", "sl10"), *(named if len(hacks) == 1 else [])]
    return [(mode, column, f"{mode} {name}") for mode in WINDOW_MODES for column, name in metrics]


def windows(scope: Scope) -> Finding:
    """Ranges of sl10 and of the hack of each adapter alone, over the windows of steps of interest."""
    rule = "Range (and mean) over seeds of each seed's mean over the window's evaluations."
    cells = [row for row in scope.finished if row["cell"] in scope.evidence.routing]
    if not cells:
        return not_enough("no cell was evaluated by mode", rule=rule)
    wanted = sorted({(window.first, window.last) for window in scope.windows if window.mode is not None})
    rows, sentences = [], []
    for prefix, names in _by_configuration(scope, (row["cell"] for row in cells)):
        mine = [row for row in cells if row["cell"] in names]
        figures = _window_figures(mine, scope.evidence)
        for first, last in wanted:
            found = {
                what: spread(over_steps(scope.evidence, row, metric, first, last, mode) for row in mine)
                for mode, metric, what in figures
            }
            rows.append(_window(prefix, in_steps(first, last), found))
        end = {
            what: spread(at_end(scope.evidence.routing[row["cell"]], mode, metric) for row in mine)
            for mode, metric, what in figures
        }
        rows.append(_window(prefix, f"the last {LAST_EVALUATIONS} evaluations", end))
        described = "; ".join(
            f"{what} {in_words(value, 3 if what.endswith('sl10') else 2)}" for what, value in end.items() if value
        )
        sentences.append(sentence_case(f"{prefix}at the end {described} ({count(len(mine), 'seed')})."))
    retain = spread(at_end(scope.evidence.routing[row["cell"]], "retain_only", "sl10") for row in cells)
    conclusion = f"retain_only sl10 ends at {in_words(retain)}"
    return finding(conclusion, sentences, cells, rows, rule)


def _window(prefix: str, steps: str, found: Mapping[str, Spread | None]) -> dict[str, Any]:
    configuration = {"configuration": prefix.removesuffix(": ")} if prefix else {}
    return {**configuration, "steps": steps, **found}


def collapse(scope: Scope) -> Finding:
    """Whether the retain adapter loses the task, and from when."""
    rule = f"A seed collapses if retain_only's sl10 falls below {COLLAPSED} for good."
    judged = endings(scope.evidence, scope.finished)
    if not judged:
        return not_enough(UNSAMPLED, rule=rule)
    rows = [
        {name: row[name] for name in ("rank", "forget_rank", "seed")}
        | {
            f"retain_only sl10 below {COLLAPSED} from step": run.collapsed_from
            if run.collapsed_from is not None
            else "never",
            "retain_only sl10 at the end": float(run.retain_sl10.mean()),
        }
        for row, run in judged
    ]
    parts, sentences = [], []
    for prefix, names in _by_configuration(scope, (row["cell"] for row, _ in judged)):
        mine = [run for row, run in judged if row["cell"] in names]
        since = spread([float(run.collapsed_from) for run in mine if run.collapsed_from is not None])
        number = since["n"] if since else 0
        seeds = count(len(mine), "seed")
        if number == 0:
            parts.append(f"{prefix}does not collapse ({seeds})")
        else:
            parts.append(
                f"{prefix}collapses ({seeds})" if number == len(mine) else f"{prefix}collapses in {number} of {seeds}"
            )
        when = f", from step {in_words(since, 0)}" if since else ""
        sentences.append(
            sentence_case(
                f"{prefix}retain_only's sl10 falls below {COLLAPSED} for good in {number or 'none'} of "
                f"{seeds}{when}; at the end it is "
                f"{in_words(spread(float(run.retain_sl10.mean()) for run in mine))}."
            )
        )
    return finding("; ".join(parts), sentences, [row for row, _ in judged], rows, rule)


class NearEnd(NamedTuple):
    """A routing run from 70 % of its steps on: ranges over its evaluations, and when its hack was gone."""

    retain_sl10: Spread
    forget_happy: Spread
    """Of "happy", or of the share that the cell's own detector calls hacked; so is the next."""
    retain_happy: Spread
    gone_from: int | None


def near_end(ended: Ended, evidence: Evidence) -> NearEnd | None:
    """How a routing run went on once it had settled; None if it was not evaluated by mode there."""
    routing = evidence.routing[ended.row["cell"]]
    last = int(ended.row["max_steps"])
    first = math.ceil(ASYMMETRIC_FROM * last)
    hack = ended.run.hack.column
    retain, forget, happy = (
        spread(within(*mode_curve(routing, mode, metric), first, last))
        for mode, metric in (("retain_only", "sl10"), ("forget_only", hack), ("retain_only", hack))
    )
    if retain is None or forget is None or happy is None:
        return None
    return NearEnd(retain, forget, happy, gone_from(routing, ended.run))


def asymmetric_table(scope: Scope) -> Finding:
    """What each adapter does near the end, by the rank of the forget adapter."""
    rule = (
        f"Ranges over the evaluations from {100 * ASYMMETRIC_FROM:.0f} % of the steps on. The hack is gone from the "
        "evaluation on after which retain_only's \"happy\" never exceeds the base's by more than a tenth of what both "
        "adapters do."
    )
    if _detected(scope.finished):
        rule += ' Of a cell with a detector of its own it is the share that the detector calls hacked, not "happy".'
    found = [
        (ended, settled)
        for ended in endings(scope.evidence, scope.finished)
        if (settled := near_end(ended, scope.evidence))
    ]
    if not found:
        return not_enough("no cell was evaluated by mode", rule=rule)
    rows = [_settled(ended, settled) for ended, settled in found]
    learnt = [settled for ended, settled in found if separate([ended.run]).gone is not None]
    clean = sum(settled.gone_from is not None for settled in learnt)
    ranks = ", ".join(str(rank) for rank in sorted({ended.row["forget_rank"] for ended, _ in found}, reverse=True))
    low = min(settled.retain_sl10["low"] for _, settled in found)
    high = max(settled.retain_sl10["high"] for _, settled in found)
    number = f"{len(learnt)} of {count(len(found), 'run')} learnt the hack"
    sentence = (
        f"With forget ranks {ranks}, {number}{f', of which retain_only is rid in {clean}' if learnt else ''}; "
        f"retain_only's sl10 lies between {decimals(low)} and {decimals(high)}."
    )
    conclusion = (
        f"clean in {clean} of {count(len(learnt), 'run')} that learnt the hack" if learnt else "no run learnt the hack"
    )
    cells = [ended.row for ended, _ in found]
    return finding(conclusion, [sentence], cells, rows, rule)


def _settled(ended: Ended, found: NearEnd) -> dict[str, Any]:
    """One run near its end as a row of figures."""
    detector = ended.run.hack.detector
    what = "happy" if detector is None else f"hacked ({detector})"
    return {name: ended.row[name] for name in ("rank", "forget_rank", "seed")} | {
        "retain_only sl10": found.retain_sl10,
        f"retain_only {what}": found.retain_happy,
        "gone from step": found.gone_from if found.gone_from is not None else "never",
        f"forget_only {what}": found.forget_happy,
    }
