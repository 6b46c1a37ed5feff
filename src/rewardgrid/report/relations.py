"""Relations that should hold on any base: each checked on whatever cells the experiment has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rewardgrid.report.columns import PASSING, decimals, setting, show
from rewardgrid.report.curves import TASK_DESTROYED
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Scope, count, in_words, spread
from rewardgrid.report.published import Check, Relation
from rewardgrid.report.reward_findings import batch_comparisons, effect, matched, ordered
from rewardgrid.report.routing_findings import conclude, separations
from rewardgrid.report.statistics import mean_of
from rewardgrid.report.tables import Configuration, Row

Judged = tuple[bool | None, str, Sequence[Row]]
"""Whether it holds (None: not run), ours in words, the cells behind it."""

MUCH_HARDER = 0.5
"""A reward is much harder to optimise if it ends below this share of what the smooth reward reaches."""
FORGET_RANK_EFFECT = 0.1
"""retain_only's sl10 does not depend on the forget rank if its means differ by at most this."""

_NOT_RUN: Judged = (None, "", [])
_COLUMNS = {"reward": "final_reward", "kl": "final_kl"}


def check_relation(relation: Relation, evidence: Evidence) -> Judged:
    """Check one relation on the cells of its experiment; not run if they are not there.

    Cells that are only the beginning of a longer run are left out: what it would come to is not known.
    """
    tables = {name: [row for row in table if row["decay_steps"] is None] for name, table in evidence.tables.items()}
    if not tables.get(relation.experiment):
        return _NOT_RUN
    scope = Scope(dataclasses.replace(evidence, tables=tables), relation.experiment)
    if relation.check is not None:
        return _generic(relation.check, scope)
    return RELATIONS[relation.id](scope)


def _generic(check: Check, scope: Scope) -> Judged:
    column = _COLUMNS[check.metric]
    if check.max_abs_effect is not None:
        found = effect(scope.rows, check.by, column)
        if found is None:
            return _NOT_RUN
        largest, _, cells = found
        return largest <= check.max_abs_effect, f"largest difference {decimals(largest)}", cells
    by_level = matched(scope.rows, check.by)
    if len(by_level) < 2:
        return _NOT_RUN
    means = [mean_of([row[column] for row in cells]).mean or 0.0 for cells in by_level.values()]
    path = ", ".join(
        f"{decimals(mean)} at {setting(check.by, level)}" for level, mean in zip(by_level, means, strict=True)
    )
    cells = [row for level in by_level.values() for row in level]
    return ordered(means, str(check.direction)), path, cells


def low_beta_degenerates(scope: Scope) -> Judged:
    """Every cell at the lowest beta is degenerate (or diverged), none at the highest."""
    ran = [row for row in scope.rows if row["state"] != "missing"]
    betas = sorted({row["beta"] for row in ran})
    if len(betas) < 2:
        return _NOT_RUN
    lowest, highest = ([row for row in ran if row["beta"] == beta] for beta in (betas[0], betas[-1]))
    bad_low, bad_high = (sum(_gone(row) for row in cells) for cells in (lowest, highest))
    text = (
        f"degenerate: {bad_low} of {len(lowest)} at beta {show('beta', betas[0])}, "
        f"{bad_high} of {len(highest)} at {show('beta', betas[-1])}"
    )
    return bad_low == len(lowest) and not bad_high, text, [*lowest, *highest]


def _gone(row: Row) -> bool:
    return row["state"] == "diverged" or row["verdict"] == "degenerate"


def exact_is_harder(scope: Scope) -> Judged:
    """Exact length 10 ends below half of the smooth reward's end (full fine-tuning, same base and beta)."""
    exact = [row for row in scope.finished if row["reward"] == "sentence_length_10"]
    same = {(row["base"], row["base_recipe"], row["beta"], row["max_steps"]) for row in exact}
    smooth = [
        row
        for row in scope.evidence.finished()
        if row["method"] == "full"
        and row["reward"] == "sentence_length_10_smooth"
        and (row["base"], row["base_recipe"], row["beta"], row["max_steps"]) in same
    ]
    ours, reference = (mean_of([row["final_reward"] for row in cells]).mean for cells in (exact, smooth))
    if ours is None or reference is None:
        return _NOT_RUN
    text = f"exact {decimals(ours)}, smooth {decimals(reference)} at the same beta"
    return ours < MUCH_HARDER * reference, text, [*exact, *smooth]


def smallest_rank_works(scope: Scope) -> Judged:
    """Some configuration of rank 1 reaches 0.85 without degenerating."""
    ones = [found for found in scope.configurations if found.cells[0]["rank"] == 1 and found.finished]
    if not ones:
        return _NOT_RUN
    best = max(ones, key=lambda found: (found.passes(), found.reward.mean or 0.0))
    text = f"{best.label}: {decimals(best.reward.mean)}, {_verdicts(best)}"
    return best.passes(), text, [row for found in ones for row in found.finished]


def _verdicts(found: Configuration) -> str:
    return ", ".join(f"{number} {label}" for label, number in sorted(found.verdicts.items()))


def too_low_lr(scope: Scope) -> Judged:
    """At the lowest learning rate no rank reaches 0.85, at a higher one some does."""
    lora = [found for found in scope.configurations if found.cells[0]["method"] == "lora" and found.finished]
    rates = sorted({found.cells[0]["lr"] for found in lora})
    if len(rates) < 2:
        return _NOT_RUN
    lowest = [found for found in lora if found.cells[0]["lr"] == rates[0]]
    higher = [found for found in lora if found.cells[0]["lr"] > rates[0]]
    low, high = (spread([found.reward.mean for found in group]) for group in (lowest, higher))
    assert low is not None
    assert high is not None
    ranks = ", ".join(str(rank) for rank in sorted({found.cells[0]["rank"] for found in lowest}))
    text = (
        f"lr {show('lr', rates[0])} (ranks {ranks}) reaches {in_words(low)}, higher ones up to {decimals(high['high'])}"
    )
    cells = [row for found in lora for row in found.finished]
    return low["high"] < PASSING <= high["high"], text, cells


def capacity_times_lr(scope: Scope) -> Judged:
    """The rank correlation of rank x lr with the verdict (ok, borderline, degenerate) is positive."""
    ran = [row for row in scope.rows if row["state"] != "missing" and row["rank"] is not None]
    sizes = [row["rank"] * row["lr"] for row in ran]
    if len(set(sizes)) < 2:
        return _NOT_RUN
    scores = [2.0 if _gone(row) else float(row["verdict"] == "borderline") for row in ran]
    correlation = rank_correlation(sizes, scores)
    if correlation is None:
        return False, f"every verdict is the same: {ran[0]['verdict']}", ran
    return correlation > 0, f"rank correlation {decimals(correlation, 2)}", ran


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None if either side is constant."""
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    middle = (len(a) + 1) / 2
    covariance = sum((x - middle) * (y - middle) for x, y in zip(ranks_a, ranks_b, strict=True))
    spreads = [sum((x - middle) ** 2 for x in ranks) for ranks in (ranks_a, ranks_b)]
    return covariance / (spreads[0] * spreads[1]) ** 0.5 if all(spreads) else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(value) + (order.count(value) + 1) / 2 for value in values]


def batch_slower(scope: Scope) -> Judged:
    """No larger batch reaches a threshold sooner than the smaller one that is otherwise equal."""
    rows, cells = batch_comparisons(scope)
    decided = [row for row in rows if row["outcome"] in ("sooner", "slower")]
    if not decided:
        return _NOT_RUN
    sooner = sum(row["outcome"] == "sooner" for row in decided)
    return not sooner, f"sooner in {sooner} of {count(len(decided), 'comparison')}", cells


def routing_works(scope: Scope) -> Judged:
    """The experiment's conclusion is "works" (more than half of the seeds)."""
    judged = separations(scope)
    if not judged:
        return _NOT_RUN
    outcomes = [found.outcome for _, found in judged]
    text = ", ".join(f"{outcome} in {outcomes.count(outcome)}" for outcome in sorted(set(outcomes)))
    return (
        conclude(outcomes) == "works",
        f"{text} of {count(len(outcomes), 'seed')}",
        [row for row, _ in judged],
    )


def task_destroyed(scope: Scope) -> Judged:
    """At every pair of ranks, most seeds end with a retain_only sl10 below half of the base's."""
    judged = separations(scope)
    if not judged:
        return _NOT_RUN
    lost: dict[tuple[int, int], list[bool]] = {}
    for row, found in judged:
        base = scope.evidence.base_sl10(row) or 0.0
        lost.setdefault((row["rank"], row["forget_rank"]), []).append(found.retain_sl10 < TASK_DESTROYED * base)
    text = "; ".join(
        f"ranks {rank}+{forget}: lost by {sum(seeds)} of {count(len(seeds), 'seed')}"
        for (rank, forget), seeds in sorted(lost.items())
    )
    return all(2 * sum(seeds) > len(seeds) for seeds in lost.values()), text, [row for row, _ in judged]


def forget_rank_free(scope: Scope) -> Judged:
    """Means of retain_only's sl10 at the end differ by at most 0.1 between forget ranks."""
    judged = separations(scope)
    by_rank: dict[int, list[float]] = {}
    for row, found in judged:
        by_rank.setdefault(row["forget_rank"], []).append(found.retain_sl10)
    if len(by_rank) < 2:
        return _NOT_RUN
    means = {rank: sum(values) / len(values) for rank, values in sorted(by_rank.items())}
    text = ", ".join(f"{decimals(mean)} at forget rank {rank}" for rank, mean in means.items())
    return max(means.values()) - min(means.values()) <= FORGET_RANK_EFFECT, text, [row for row, _ in judged]


RELATIONS: dict[str, Callable[[Scope], Judged]] = {
    "low-beta-degenerates": low_beta_degenerates,
    "exact-is-harder": exact_is_harder,
    "smallest-rank-works": smallest_rank_works,
    "too-low-lr": too_low_lr,
    "capacity-times-lr": capacity_times_lr,
    "batch-slower": batch_slower,
    "routing-removes-hack": routing_works,
    "routing-imperfect-ok": routing_works,
    "routing-low-rank-collapses": task_destroyed,
    "routing-forget-rank-free": forget_rank_free,
    "routing-noise-sensitive": task_destroyed,
}
"""How the relations without a ``check`` are checked; the docstrings state the rule."""
