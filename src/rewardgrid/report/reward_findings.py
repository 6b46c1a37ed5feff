"""Findings about rewards, KL, ranks, learning rates and batch sizes: pure functions of the tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rewardgrid.report.columns import (
    COLUMNS,
    PASSING,
    SPEC_COLUMNS,
    THRESHOLDS,
    decimals,
    known,
    rounded,
    setting,
    show,
)
from rewardgrid.report.finding import NOT_ENOUGH, Finding, Scope, finding, not_enough
from rewardgrid.report.statistics import ALPHA, SIGNS_FROM, Difference, difference, equivalence, slope
from rewardgrid.report.tables import Configuration, Row, configurations
from rewardgrid.report.words import change_in_words, count, p_value, spread, times_in_words

NEGLIGIBLE = {"final_reward": 0.02, "jaccard": 0.02}
"""A change of these is negligible if it is surely smaller: about what seeds of one setting differ by."""


def best_tradeoff(scope: Scope) -> Finding:
    """The highest reward among the configurations that are ok in every seed, for each kind of reward."""
    rule = (
        "Only configurations that are ok in every seed are ranked, by their mean reward at two decimals; of equals the "
        "one with the smaller KL. Rewards of different kinds are not compared."
    )
    ran = [found for found in scope.configurations if found.finished or found.verdicts]
    if not ran:
        return not_enough("none has finished", rule=rule)
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
    return finding("; ".join(parts), sentences, cells, [found.figures() for found in ran], rule)


def _best(ran: Sequence[Configuration]) -> tuple[str, list[str]]:
    """Conclusion and sentences about configurations that are paid for the same thing."""
    sound = [found for found in ran if found.all_ok]
    borderline = [found for found in ran if found.non_degenerate and not found.all_ok]
    number = count(len(ran), "configuration")
    if sound:
        best = highest(sound)
        verb = "is" if len(sound) == 1 else "are"
        conclusion = in_short(best)
        sentences = [
            f"{len(sound)} of {number} {verb} ok in every seed; the highest reward of them is {_achieves(best)}."
        ]
    else:
        conclusion = "none is ok in every seed" if borderline else "all degenerate"
        sentences = [f"None of {number} is ok in every seed."]
    if borderline:
        sentences.append(f"The best whose texts are borderline in some seed has {_achieves(highest(borderline))}.")
    return conclusion, sentences


def _two(found: Configuration) -> float:
    return rounded(found.reward.mean or 0.0)


def in_short(found: Configuration) -> str:
    """``0.91 at beta 0.02``: a configuration and its reward."""
    return f"{decimals(_two(found), 2)} at {found.label}"


def highest(found: Sequence[Configuration]) -> Configuration:
    """The configuration with the most reward at two decimals; of equals the one with the smaller KL."""
    return max(found, key=lambda each: (_two(each), -(each.mean("final_kl").mean or 0.0)))


def _achieves(found: Configuration) -> str:
    verdicts = ", ".join(f"{number} {label}" for label, number in sorted(found.verdicts.items()))
    reward = found.reward
    sure = f" (95 % {decimals(reward.low, 2)} to {decimals(reward.high, 2)})" if reward.low is not None else ""
    kl = decimals(found.mean("final_kl").mean, 2)
    return (
        f"{decimals(_two(found), 2)}{sure} at {found.label}, with a KL of {kl} nats per token "
        f"({count(reward.n, 'seed')}: {verdicts})"
    )


# --- the effect of one setting -------------------------------------------------------------------------


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


class Effect(NamedTuple):
    """What a figure does as one setting rises, all else and the seed being equal."""

    means: dict[Any, float]
    """By value of the setting, over the sets of otherwise equal cells."""
    changes: list[float]
    """Of each set: from the lowest to the highest value, along the line of best fit."""
    cells: list[Row]

    @property
    def difference(self) -> Difference:
        """What the changes say of their mean."""
        return difference(self.changes)

    def moves(self, direction: str) -> bool:
        """Whether the means strictly fall (``decreasing``) or rise (``increasing``) at each step up."""
        pairs = itertools.pairwise(self.means.values())
        return all(after < before if direction == "decreasing" else after > before for before, after in pairs)

    @property
    def path(self) -> str:
        """The means in order."""
        return " → ".join(decimals(mean) for mean in self.means.values())


def effect(rows: Sequence[Row], key: str, value: Callable[[Row], float | None]) -> Effect | None:
    """How a figure of the cells changes with a setting; None without cells that differ in it alone."""
    by_level = matched(rows, key)
    sets = [cells for cells in zip(*by_level.values(), strict=True) if all(known(value(cell)) for cell in cells)]
    if len(by_level) < 2 or not sets:
        return None
    figures = [[float(value(cell) or 0.0) for cell in cells] for cells in sets]
    means = {
        level: math.fsum(column) / len(sets) for level, column in zip(by_level, zip(*figures, strict=True), strict=True)
    }
    return Effect(means, [slope(line) for line in figures], [cell for cells in sets for cell in cells])


def column_effect(rows: Sequence[Row], key: str, column: str) -> Effect | None:
    """How a column of the table changes with a setting."""
    return effect(rows, key, lambda row: row[column])


EFFECT_RULE = (
    "Cells are compared with those that are equal but for this setting, the seed too; of each such set the change "
    "from the lowest to the highest value is taken (along the line of best fit, where there are more than two). "
    f"Intervals are Student's, and so is P with fewer than {SIGNS_FROM} sets; with more it comes from shuffling signs."
)


def penalty_effect(scope: Scope) -> Finding:
    """How much the repetition penalty changes the reward and the likeness of texts."""
    limits = " and ".join(f"{limit} of {COLUMNS[name].label}" for name, limit in NEGLIGIBLE.items())
    rule = (
        f"{EFFECT_RULE} A change is negligible if two one-sided t tests tell that it is smaller than {limits} "
        f"(P < {ALPHA})."
    )
    found = {name: column_effect(scope.rows, "repetition_penalty", name) for name in NEGLIGIBLE}
    measured = {name: each for name, each in found.items() if each is not None}
    if not measured:
        return not_enough("no two finished cells differ in the repetition penalty alone", rule=rule)
    parts, sentences, rows = [], [], []
    for name, each in measured.items():
        label, limit = COLUMNS[name].label, NEGLIGIBLE[name]
        word, sentence = _size(label, each, limit)
        parts.append(word)
        sentences.append(sentence)
        rows.append({"figure": label, **_changes("repetition_penalty", each), "limit": limit})
    cells = [row for each in measured.values() for row in each.cells]
    return finding("; ".join(parts), sentences, cells, rows, rule)


def _size(label: str, found: Effect, limit: float) -> tuple[str, str]:
    """How large an effect is: in a few words, and in a sentence."""
    gap = found.difference
    sets = count(gap.n, "pair") if len(found.means) == 2 else count(gap.n, "set")
    change = f"The penalty changes {label} by {change_in_words(gap)}"
    small = equivalence(found.changes, limit)
    if gap.p is None or small is None:
        return f"on {label} cannot be told with n = 1", f"{change}, and one set of cells cannot tell that from chance."
    same = sum(math.copysign(1, each) == math.copysign(1, gap.mean) and each != 0 for each in found.changes)
    verb = "falls" if gap.mean < 0 else "rises"
    if small < ALPHA:
        return f"negligible on {label}", f"{change}: surely less than {limit}, over {sets}."
    if gap.p < ALPHA:
        return f"{label} {verb} in {same} of {sets}", f"{change}; it {verb} in {same} of {sets}."
    return f"on {label} cannot be told", f"{change}: neither surely there nor surely less than {limit}, over {sets}."


def _changes(key: str, found: Effect) -> dict[str, Any]:
    """An effect as a row of figures."""
    gap = found.difference
    return {setting(key, level): mean for level, mean in found.means.items()} | {
        "change": gap.mean,
        "95 % interval": f"{gap.low:+.3f} to {gap.high:+.3f}" if gap.low is not None else None,
        "change by sd": gap.effect,
        "P": None if gap.p is None else p_value(gap.p),
        "n": gap.n,
    }


def beta_order(scope: Scope) -> Finding:
    """Whether KL and reward fall as beta rises."""
    rule = (
        f"{EFFECT_RULE} A figure falls if its mean does at each step up and the change is none of chance (P < {ALPHA})."
    )
    names = ("final_kl", "kl_exact", "final_reward")
    found = {name: each for name in names if (each := column_effect(scope.rows, "beta", name)) is not None}
    if not {"final_kl", "final_reward"} <= set(found):
        return not_enough("no finished cells differ in beta alone", rule=rule)
    kl, reward = found["final_kl"], found["final_reward"]
    betas = " → ".join(show("beta", beta) for beta in kl.means)
    sentences = [
        f"From beta {betas}, KL goes {kl.path} nats per token, a change of {change_in_words(kl.difference)}.",
        f"Reward goes {reward.path}, a change of {change_in_words(reward.difference)}.",
        f"These are means over {count(kl.difference.n, 'set')} of cells that differ in beta alone.",
    ]
    rows = [{"figure": COLUMNS[name].label, **_changes("beta", each)} for name, each in found.items()]
    cells = [row for each in found.values() for row in each.cells]
    return finding(_falls(kl, reward), sentences, cells, rows, rule)


def _falls(kl: Effect, reward: Effect) -> str:
    """Which of the two fall as beta rises, and which it cannot be told of."""
    told = {"KL": falls(kl), "reward": falls(reward)}
    groups = {
        verb: [name for name, state in told.items() if state is wanted]
        for wanted, verb in ((True, "fall"), (False, "do not fall"), (None, "cannot be told"))
    }
    parts = []
    for verb, names in groups.items():
        if not names:
            continue
        subject = " and ".join(names)
        if verb == "cannot be told":
            why = " with n = 1" if kl.difference.n == 1 else ""
            parts.append(f"whether {subject} {'fall' if len(names) > 1 else 'falls'} cannot be told{why}")
        else:
            singular = {"fall": "falls", "do not fall": "does not fall"}[verb]
            parts.append(f"{subject} {verb if len(names) > 1 else singular} as beta rises")
    return f"{'; '.join(parts)} (KL {kl.path})"


def falls(found: Effect) -> bool | None:
    """Whether a figure falls as the setting rises; None if it cannot be told."""
    gap = found.difference
    if gap.p is None or gap.p >= ALPHA:
        return None
    return found.moves("decreasing")


# --- ranks and learning rates --------------------------------------------------------------------------


def smallest_configuration(scope: Scope, threshold: float = PASSING) -> Configuration | None:
    """Of the passing LoRA configurations of the smallest rank, the one with most reward."""
    passing = [
        found for found in scope.configurations if found.cells[0]["method"] == "lora" and found.passes(threshold)
    ]
    rank = min((found.cells[0]["rank"] for found in passing), default=None)
    return highest([found for found in passing if found.cells[0]["rank"] == rank]) if passing else None


def smallest_passing(scope: Scope) -> Finding:
    """The smallest LoRA rank that learns the reward while every seed stays ok."""
    rule = (
        f"A configuration passes if every seed is ok and its mean reward, at two decimals, is at least {PASSING}; at "
        "the smallest such rank, the learning rate with the highest reward."
    )
    ran = [found for found in scope.configurations if found.finished and found.cells[0]["method"] == "lora"]
    if not ran:
        return not_enough("no LoRA cell has finished", rule=rule)
    cells = [row for found in ran for row in found.finished]
    rows = [found.figures() | {"passes": found.passes()} for found in ran]
    tried = ", ".join(show("rank", rank) for rank in sorted({found.cells[0]["rank"] for found in ran}))
    best = smallest_configuration(scope)
    if best is None:
        conclusion = "no rank passes"
        sentence = f"No configuration reaches {PASSING} with every seed ok; ranks tried: {tried}."
    else:
        conclusion = f"{best.label} ({decimals(_two(best), 2)})"
        sentence = (
            f"The smallest rank that reaches {PASSING} with every seed ok is {best.cells[0]['rank']}: "
            f"{_achieves(best)}. Ranks tried: {tried}."
        )
    return finding(conclusion, [sentence], cells, rows, rule)


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
    sound = [found for found in lora if found.passes()]
    ratios = []
    for rank in sorted({found.cells[0]["rank"] for found in sound}):
        best = highest([found for found in sound if found.cells[0]["rank"] == rank])
        full = _best_full(scope, best.cells[0])
        if full is not None:
            ratios.append(LrRatio(best, full))
    return ratios


def _best_full(scope: Scope, lora: Row) -> Configuration | None:
    """The full fine-tuning of the same base and reward that is ok in every seed and has the highest reward."""
    same = ("base", "base_recipe", "reward")
    full = [
        row
        for row in scope.evidence.finished()
        if row["method"] == "full" and all(row[name] == lora[name] for name in same)
    ]
    sound = [found for found in configurations(full) if found.all_ok]
    return highest(sound) if sound else None


def lr_ratio_to_full(scope: Scope) -> Finding:
    """How much larger LoRA's best learning rate is than that of full fine-tuning."""
    rule = (
        "For each rank, the learning rate with the highest mean reward among configurations that reach "
        f"{PASSING} with every seed ok, by the learning rate of the best full fine-tuning configuration of the same "
        "base and reward that is ok in every seed."
    )
    ratios = lr_ratios(scope)
    span = spread([found.ratio for found in ratios])
    if span is None:
        needed = (
            f"it takes a LoRA configuration that reaches {PASSING} with every seed ok, and such a full "
            "fine-tuning of the same base and reward"
        )
        return not_enough(needed, scope.finished, rule)
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
    return finding(f"{times} times", [sentence], cells, rows, rule)


# --- batch size ----------------------------------------------------------------------------------------


class BatchPair(NamedTuple):
    """A finished cell and the otherwise equal one of the smallest batch."""

    larger: Row
    smaller: Row

    @property
    def comparable(self) -> bool:
        """Whether their seconds are of the same hardware."""
        return bool(self.larger["hardware"] == self.smaller["hardware"])

    def sooner(self, suffix: str) -> str:
        """Whether the larger batch reaches a threshold sooner; never is later than any time."""
        later, earlier = self.larger[f"seconds_to_{suffix}"], self.smaller[f"seconds_to_{suffix}"]
        if not self.comparable:
            return "other hardware"
        if later is None:
            return "neither reaches it" if earlier is None else "slower"
        return "sooner" if earlier is None or later < earlier else "slower"

    def times(self, *columns: str) -> float | None:
        """The larger's figure by the smaller's, the geometric mean over those columns that both have."""
        logs = [
            math.log(self.larger[column] / self.smaller[column])
            for column in columns
            if self.larger[column] and self.smaller[column]
        ]
        return math.exp(math.fsum(logs) / len(logs)) if logs else None


def batch_pairs(scope: Scope, scaled: bool = False) -> list[BatchPair]:
    """The cells of larger batches with their smaller ones, which may stand in any experiment.

    Equal means the same learning rate or, ``scaled``, the same learning rate for each completion of the batch.
    """
    others = [name for name in SPEC_COLUMNS if name not in ("batch_size", "lr")]
    pairs = []
    for row in scope.finished:
        alike = [
            other
            for other in scope.evidence.finished()
            if all(other[name] == row[name] for name in others)
            and math.isclose(other["lr"], row["lr"] * (other["batch_size"] / row["batch_size"] if scaled else 1))
        ]
        smallest = min(alike, key=lambda other: other["batch_size"], default=row)
        if smallest["batch_size"] < row["batch_size"]:
            pairs.append(BatchPair(row, smallest))
    return pairs


def slower_than_baseline(scope: Scope) -> Finding:
    """Whether a larger batch reaches the thresholds sooner in wall clock than the smallest one."""
    return _larger_batch(batch_pairs(scope), "is otherwise equal")


def slower_when_scaled(scope: Scope) -> Finding:
    """The same, where the learning rate grows with the batch."""
    equal = "is otherwise equal and has the same learning rate for each completion"
    return _larger_batch(batch_pairs(scope, scaled=True), equal)


def _larger_batch(pairs: Sequence[BatchPair], equal: str) -> Finding:
    rule = (
        f"Each cell is set against the finished cell of the smallest batch that {equal}, in any experiment. Seconds "
        "compare only on the same hardware; never is later than any time. How many times as long is a geometric mean, "
        "over both thresholds of a pair and then over pairs."
    )
    rows = [_timed(pair, suffix) for pair in pairs for suffix in THRESHOLDS]
    cells = [cell for pair in pairs for cell in pair]
    decided = [row for row in rows if row["larger batch"] in ("sooner", "slower")]
    if not decided:
        needed = (
            f"none of {count(len(rows), 'comparison')} reaches its threshold on the same hardware"
            if rows
            else "no finished cell has one of a smaller batch beside it that is otherwise equal"
        )
        return finding(NOT_ENOUGH, [f"Not enough cells: {needed}."], cells, rows, rule)
    slower = sum(row["larger batch"] == "slower" for row in decided)
    conclusion = (
        f"never sooner, in {count(len(decided), 'comparison')}"
        if slower == len(decided)
        else f"sooner in {len(decided) - slower} of {count(len(decided), 'comparison')}"
    )
    sentences = [
        f"In {slower} of {count(len(decided), 'comparison')} the larger batch reaches the threshold no sooner "
        "in wall clock."
    ]
    comparable = [pair for pair in pairs if pair.comparable]
    for columns, what in ((("seconds_to_085", "seconds_to_095"), "time"), (("steps_to_085", "steps_to_095"), "steps")):
        ratios = [ratio for pair in comparable if (ratio := pair.times(*columns)) is not None]
        if ratios:
            sentences.append(f"Where both reach it, the larger takes {times_in_words(ratios)} the {what}.")
    left = len(rows) - len(decided)
    if left:
        sentences.append(f"{count(left, 'comparison')} cannot be decided: no threshold reached, or other hardware.")
    return finding(conclusion, sentences, cells, rows, rule)


def _timed(pair: BatchPair, suffix: str) -> dict[str, Any]:
    """One threshold of a pair as a row of figures."""
    seconds = f"seconds_to_{suffix}"
    return {
        **{name: pair.larger[name] for name in ("rank", "lr", "batch_size")},
        "smaller batch": pair.smaller["batch_size"],
        "threshold": str(THRESHOLDS[suffix]),
        "steps": pair.larger[f"steps_to_{suffix}"],
        "steps of the smaller": pair.smaller[f"steps_to_{suffix}"],
        "seconds": pair.larger[seconds],
        "seconds of the smaller": pair.smaller[seconds],
        "ratio": pair.times(seconds),
        "larger batch": pair.sooner(suffix),
    }
