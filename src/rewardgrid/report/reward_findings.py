"""Findings about rewards, KL, ranks, learning rates and batch sizes: pure functions of the tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rewardgrid.report.columns import PASSING, SPEC_COLUMNS, THRESHOLDS, decimals, setting, show
from rewardgrid.report.finding import (
    NOT_ENOUGH,
    Finding,
    Scope,
    count,
    finding,
    in_words,
    not_enough,
    spread,
)
from rewardgrid.report.statistics import mean_of
from rewardgrid.report.tables import Configuration, Row, configurations, varying
from rewardgrid.study import study

NEGLIGIBLE = 0.02
"""A difference of mean rewards up to this is called negligible, as in the published study."""


def best_tradeoff(scope: Scope) -> Finding:
    """The highest reward among the configurations that are not degenerate, for each kind of reward."""
    rule = (
        "A configuration is non-degenerate if no seed is degenerate or diverged; of those, the highest mean "
        "reward. Rewards of different kinds are not compared."
    )
    ran = [found for found in scope.configurations if found.finished or found.verdicts]
    if not ran:
        return not_enough(scope, "best_tradeoff", "none has finished", rule=rule)
    cells = [row for found in ran for row in found.cells if row["state"] != "missing"]
    kinds = dict.fromkeys(str(found.cells[0]["reward"]) for found in ran)
    parts, sentences = [], []
    for kind in kinds:
        conclusion, said = _best([found for found in ran if found.cells[0]["reward"] == kind])
        parts.append(conclusion)
        sentences += [" ".join([f"Paid for {kind}:", *said])] if len(kinds) > 1 else said
    diverged = sum(found.verdicts["diverged"] for found in ran)
    if diverged:
        verb = "is" if diverged == 1 else "are"
        sentences.append(f"{count(diverged, 'cell')} diverged and {verb} in no mean.")
    rows = [found.figures() for found in ran]
    return finding(scope, "best_tradeoff", "; ".join(parts), sentences, cells, rows, rule)


def _best(ran: Sequence[Configuration]) -> tuple[str, list[str]]:
    """Conclusion and sentences about configurations that are paid for the same thing."""
    clean = [found for found in ran if found.non_degenerate]
    if not clean:
        labels = "; ".join(found.label for found in ran)
        text = f"Every configuration ({count(len(ran), 'configuration')}: {labels}) has a degenerate or diverged seed."
        return f"all degenerate: {labels}", [text]
    best = _highest(clean)
    verb = "is" if len(clean) == 1 else "are"
    sentences = [
        f"{len(clean)} of {count(len(ran), 'configuration')} {verb} non-degenerate; the highest reward among "
        f"them is {_achieves(best)}."
    ]
    sound = [found for found in clean if found.all_ok]
    if not sound:
        sentences.append("None of them is judged ok in every seed.")
    elif (safe := _highest(sound)) is not best:
        sentences.append(f"Where every seed is judged ok, the best is {_achieves(safe)}.")
    return _in_short(best), sentences


def _in_short(found: Configuration) -> str:
    return f"{decimals(found.reward.mean)} at {found.label}"


def _highest(found: Sequence[Configuration]) -> Configuration:
    return max(found, key=lambda configuration: configuration.reward.mean or 0.0)


def _achieves(found: Configuration) -> str:
    verdicts = ", ".join(f"{number} {label}" for label, number in sorted(found.verdicts.items()))
    return (
        f"{decimals(found.reward.mean)} at {found.label}, with a KL of "
        f"{decimals(found.mean('final_kl').mean)} "
        f"nats per token ({count(found.reward.n, 'seed')}: {verdicts})"
    )


def matched(rows: Sequence[Row], key: str) -> dict[Any, list[Row]]:
    """Finished cells by their value of ``key``, only those that exist at every value and are otherwise equal.

    The lists are aligned: the i-th cells of all values share every other setting and the seed. Comparing
    anything else would mistake a missing or diverged cell for an effect of ``key``.
    """
    finished = [row for row in rows if row["state"] == "done"]
    levels = sorted({row[key] for row in finished})
    others = [name for name in SPEC_COLUMNS if name != key]
    alike: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in finished:
        alike.setdefault(tuple(row[name] for name in others), {})[row[key]] = row
    whole = [group for group in alike.values() if len(group) == len(levels)]
    return {level: [group[level] for group in whole] for level in levels} if whole else {}


def effect(rows: Sequence[Row], key: str, column: str) -> tuple[float, list[dict[str, Any]], list[Row]] | None:
    """The largest difference that ``key`` makes to a column's mean over seeds, all else equal.

    Returns:
        (largest difference, one row per setting of everything else, the cells compared); None without pairs.
    """
    by_level = matched(rows, key)
    if len(by_level) < 2:
        return None
    pairs = list(zip(*by_level.values(), strict=True))
    others = [name for name in SPEC_COLUMNS if name not in (key, "seed")]
    shown = [name for name in varying([row for pair in pairs for row in pair]) if name != key]
    alike: dict[tuple[Any, ...], list[tuple[Row, ...]]] = {}
    for pair in pairs:
        alike.setdefault(tuple(pair[0][name] for name in others), []).append(pair)
    figures = []
    for group in alike.values():
        means = {level: mean_of([pair[i][column] for pair in group]).mean or 0.0 for i, level in enumerate(by_level)}
        figures.append(
            {name: group[0][0][name] for name in shown}
            | {setting(key, level): mean for level, mean in means.items()}
            | {"difference": round(max(means.values()) - min(means.values()), 9), "seeds": len(group)}
        )
    cells = [row for pair in pairs for row in pair]
    return max(figure["difference"] for figure in figures), figures, cells


def penalty_effect(scope: Scope) -> Finding:
    """How much the repetition penalty changes the reward."""
    rule = (
        "Cells are compared with those that differ in the penalty alone; the effect is the largest difference of "
        f"mean rewards over seeds, negligible up to {NEGLIGIBLE}."
    )
    found = effect(scope.rows, "repetition_penalty", "final_reward")
    if found is None:
        needed = "no two finished cells differ in the repetition penalty alone"
        return not_enough(scope, "penalty_effect", needed, rule=rule)
    largest, figures, cells = found
    verdict = "negligible" if largest <= NEGLIGIBLE else "not negligible"
    conclusion = f"{verdict}, at most {decimals(largest)}"
    sentence = (
        f"The repetition penalty changes the mean reward by at most {decimals(largest)}, which is {verdict} "
        f"(limit {NEGLIGIBLE}), over {count(len(figures), 'setting')} of everything else."
    )
    return finding(scope, "penalty_effect", conclusion, [sentence], cells, figures, rule)


def ordered(values: Sequence[float], direction: str) -> bool:
    """Whether values strictly fall (``decreasing``) or rise (``increasing``)."""
    pairs = itertools.pairwise(values)
    return all(b < a if direction == "decreasing" else b > a for a, b in pairs)


def beta_order(scope: Scope) -> Finding:
    """Whether KL and reward fall as beta rises."""
    rule = "Means over cells that exist at every beta, otherwise equal; to fall is to fall at each step up."
    by_beta = matched(scope.rows, "beta")
    if len(by_beta) < 2:
        needed = "no finished cells differ in beta alone"
        return not_enough(scope, "beta_order", needed, rule=rule)
    rows = [
        {
            "beta": beta,
            "final_kl": mean_of([row["final_kl"] for row in cells]).mean,
            "kl_exact": mean_of([row["kl_exact"] for row in cells]).mean,
            "final_reward": mean_of([row["final_reward"] for row in cells]).mean,
            "n": len(cells),
        }
        for beta, cells in by_beta.items()
    ]
    falls = {name: ordered([row[name] for row in rows], "decreasing") for name in ("final_kl", "final_reward")}
    conclusion = {
        (True, True): "KL and reward fall as beta rises",
        (True, False): "KL falls as beta rises, reward does not",
        (False, True): "reward falls as beta rises, KL does not",
        (False, False): "neither KL nor reward falls as beta rises",
    }[falls["final_kl"], falls["final_reward"]]
    path = " → ".join(show("beta", row["beta"]) for row in rows)
    sentence = (
        f"From beta {path}, KL goes {_path(rows, 'final_kl')} nats per token and reward "
        f"{_path(rows, 'final_reward')} ({count(rows[0]['n'], 'cell')} at each beta)."
    )
    cells = [row for level in by_beta.values() for row in level]
    shown = f"{conclusion} (KL {_path(rows, 'final_kl')})"
    return finding(scope, "beta_order", shown, [sentence], cells, rows, rule)


def _path(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return " → ".join(decimals(row[name]) for row in rows)


def smallest_configuration(scope: Scope, threshold: float = PASSING) -> Configuration | None:
    """Of the passing LoRA configurations of the smallest rank, the one with most reward."""
    passing = [
        found for found in scope.configurations if found.cells[0]["method"] == "lora" and found.passes(threshold)
    ]
    rank = min((found.cells[0]["rank"] for found in passing), default=None)
    return _highest([found for found in passing if found.cells[0]["rank"] == rank]) if passing else None


def smallest_passing(scope: Scope) -> Finding:
    """The smallest LoRA rank that learns the reward without degenerating."""
    rule = (
        f"A configuration passes if its mean reward is at least {PASSING} and no seed is degenerate or "
        "diverged; at the smallest such rank, the learning rate with the highest reward."
    )
    ran = [found for found in scope.configurations if found.finished and found.cells[0]["method"] == "lora"]
    if not ran:
        return not_enough(scope, "smallest_passing", "no LoRA cell has finished", rule=rule)
    cells = [row for found in ran for row in found.finished]
    rows = [found.figures() | {"passes": found.passes()} for found in ran]
    tried = ", ".join(show("rank", rank) for rank in sorted({found.cells[0]["rank"] for found in ran}))
    best = smallest_configuration(scope)
    if best is None:
        conclusion = "no rank passes"
        sentence = f"No configuration reaches {PASSING} without degenerating; ranks tried: {tried}."
    else:
        conclusion = f"{best.label} ({decimals(best.reward.mean)})"
        sentence = (
            f"The smallest rank that reaches {PASSING} without degenerating is {best.cells[0]['rank']}: "
            f"{_achieves(best)}. Ranks tried: {tried}."
        )
    return finding(scope, "smallest_passing", conclusion, [sentence], cells, rows, rule)


class LrRatio(NamedTuple):
    """LoRA's best learning rate at one rank, by that of full fine-tuning."""

    lora: Configuration
    full: Configuration

    @property
    def rank(self) -> int:
        """Rank of the adapter."""
        return int(self.lora.cells[0]["rank"])

    @property
    def ratio(self) -> float:
        """LoRA's learning rate by full fine-tuning's, to 6 digits."""
        return float(f"{self.lora.cells[0]['lr'] / self.full.cells[0]['lr']:.6g}")


def lr_ratios(scope: Scope) -> list[LrRatio]:
    """One ratio for each rank that reaches 0.85 with every seed ok; see ``lr_ratio_to_full``."""
    lora = [found for found in scope.configurations if found.cells[0]["method"] == "lora"]
    sound = [found for found in lora if found.all_ok and found.passes()]
    ratios = []
    for rank in sorted({found.cells[0]["rank"] for found in sound}):
        best = _highest([found for found in sound if found.cells[0]["rank"] == rank])
        full = _best_full(scope, best.cells[0])
        if full is not None:
            ratios.append(LrRatio(best, full))
    return ratios


def _best_full(scope: Scope, lora: Row) -> Configuration | None:
    """The non-degenerate full fine-tuning of the same base and reward with the highest reward."""
    same = ("base", "base_recipe", "reward")
    full = [
        row
        for row in scope.evidence.finished()
        if row["method"] == "full" and all(row[name] == lora[name] for name in same)
    ]
    clean = [found for found in configurations(full) if found.non_degenerate]
    return _highest(clean) if clean else None


def lr_ratio_to_full(scope: Scope) -> Finding:
    """How much larger LoRA's best learning rate is than that of full fine-tuning."""
    rule = (
        "For each rank, the learning rate with the highest mean reward among configurations that reach "
        f"{PASSING} with every seed ok, by the learning rate of the best non-degenerate full fine-tuning "
        "configuration of the same base and reward."
    )
    ratios = lr_ratios(scope)
    span = spread([found.ratio for found in ratios])
    if span is None:
        needed = (
            f"it takes a LoRA configuration that reaches {PASSING} with every seed ok, and a non-degenerate full "
            "fine-tuning of the same base and reward"
        )
        return not_enough(scope, "lr_ratio_to_full", needed, scope.finished, rule)
    rows = [
        {
            "rank": found.rank,
            "lr": found.lora.cells[0]["lr"],
            "lr of full fine-tuning": show("lr", found.full.cells[0]["lr"]),
            "ratio": found.ratio,
            "final_reward": found.lora.reward.mean,
            "n": found.lora.reward.n,
        }
        for found in ratios
    ]
    times = f"{span['low']:.3g}" + (f"–{span['high']:.3g}" if span["high"] > span["low"] else "")
    ranks = ", ".join(f"rank {row['rank']} at {show('lr', row['lr'])}" for row in rows)
    sentence = (
        f"LoRA's best learning rates are {times} times that of full fine-tuning "
        f"({rows[0]['lr of full fine-tuning']}): {ranks}."
    )
    cells = [row for found in ratios for side in (found.lora, found.full) for row in side.finished]
    return finding(scope, "lr_ratio_to_full", f"{times} times", [sentence], cells, rows, rule)


def batch_comparisons(scope: Scope, scaled: bool = False) -> tuple[list[dict[str, Any]], list[Row]]:
    """Each finished cell against the otherwise equal one of the smallest batch: figures, and the cells.

    Equal means the same learning rate or, ``scaled``, the same learning rate for each completion of the batch.
    Both thresholds give a row; its ``outcome`` is as ``sooner_or_slower`` says, or ``other hardware``.
    """
    everywhere = scope.evidence.finished()
    others = [name for name in SPEC_COLUMNS if name not in ("batch_size", "lr")]
    rows: list[dict[str, Any]] = []
    cells: list[Row] = []
    for row in scope.finished:
        alike = [
            other
            for other in everywhere
            if all(other[name] == row[name] for name in others)
            and math.isclose(other["lr"], row["lr"] * (other["batch_size"] / row["batch_size"] if scaled else 1))
        ]
        baseline = min(alike, key=lambda other: other["batch_size"], default=row)
        if baseline["batch_size"] >= row["batch_size"]:
            continue
        cells += [row, baseline]
        for suffix, threshold in THRESHOLDS.items():
            larger, smaller = row[f"seconds_to_{suffix}"], baseline[f"seconds_to_{suffix}"]
            comparable = row["hardware"] == baseline["hardware"]
            rows.append(
                {
                    "rank": row["rank"],
                    "lr": row["lr"],
                    "batch_size": row["batch_size"],
                    "smaller batch": baseline["batch_size"],
                    "threshold": str(threshold),
                    "steps": row[f"steps_to_{suffix}"],
                    "steps of the smaller": baseline[f"steps_to_{suffix}"],
                    "seconds": larger,
                    "seconds of the smaller": smaller,
                    "ratio": larger / smaller if larger is not None and smaller else None,
                    "outcome": sooner_or_slower(larger, smaller) if comparable else "other hardware",
                }
            )
    return rows, cells


def slower_than_baseline(scope: Scope) -> Finding:
    """Whether a larger batch reaches the thresholds sooner in wall clock than the smallest one."""
    return _larger_batch(scope, "slower_than_baseline", "is otherwise equal", scaled=False)


def slower_when_scaled(scope: Scope) -> Finding:
    """The same, where the learning rate grows with the batch."""
    equal = "is otherwise equal and has the same learning rate for each completion"
    return _larger_batch(scope, "slower_when_scaled", equal, scaled=True)


def _larger_batch(scope: Scope, name: study.FindingName, equal: str, scaled: bool) -> Finding:
    rule = (
        f"Each cell is set against the finished cell of the smallest batch that {equal}, in any "
        "experiment. Seconds compare only on the same hardware; never is later than any time."
    )
    rows, cells = batch_comparisons(scope, scaled)
    decided = [row for row in rows if row["outcome"] in ("sooner", "slower")]
    if not decided:
        needed = (
            f"none of {count(len(rows), 'comparison')} reaches its threshold on the same hardware"
            if rows
            else "no finished cell has one of a smaller batch beside it that is otherwise equal"
        )
        text = f"Not enough cells: {needed}."
        return finding(scope, name, NOT_ENOUGH, [text], cells, rows, rule)
    slower = sum(row["outcome"] == "slower" for row in decided)
    conclusion = (
        f"never sooner, in {count(len(decided), 'comparison')}"
        if slower == len(decided)
        else f"sooner in {len(decided) - slower} of {count(len(decided), 'comparison')}"
    )
    sentences = [
        f"In {slower} of {count(len(decided), 'comparison')} the larger batch reaches the threshold no sooner "
        "in wall clock."
    ]
    ratios = spread([row["ratio"] for row in decided])
    if ratios:
        sentences.append(f"Where both reach it, the larger takes {in_words(ratios, 2)} times as long.")
    left = len(rows) - len(decided)
    if left:
        sentences.append(f"{count(left, 'comparison')} cannot be decided: no threshold reached, or other hardware.")
    return finding(scope, name, conclusion, sentences, cells, rows, rule)


def sooner_or_slower(seconds: float | None, baseline: float | None) -> str:
    """``sooner``, ``slower`` (or equal), or ``neither reaches it``; never is later than any time."""
    if seconds is None:
        return "neither reaches it" if baseline is None else "slower"
    return "sooner" if baseline is None or seconds < baseline else "slower"
