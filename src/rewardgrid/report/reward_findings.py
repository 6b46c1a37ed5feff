"""Findings about rewards, KL, ranks and learning rates: pure functions of the tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rewardgrid.report.columns import (
    COLUMNS,
    PASSING,
    SPEC_COLUMNS,
    decimals,
    known,
    rounded,
    setting,
    settings,
    show,
)
from rewardgrid.report.finding import Finding, Question, Scope, finding, not_enough
from rewardgrid.report.statistics import (
    ALPHA,
    SIGNS_FROM,
    Difference,
    below,
    difference,
    equivalence,
    holm,
    slope,
    unpaired,
)
from rewardgrid.report.tables import (
    Configuration,
    Row,
    base_of,
    configurations,
    faults,
    verdicts_in_numbers,
    verdicts_in_short,
)
from rewardgrid.report.words import change_in_words, numbered, p_value, sentence_case
from rewardgrid.study.cell import SHARED_ALPHA
from rewardgrid.study.text import count

NEGLIGIBLE = {"final_reward": 0.02, "jaccard": 0.02}
"""A change of these is negligible if it is surely smaller: about what seeds of one setting differ by."""


def best_tradeoff(scope: Scope) -> Finding:
    """The highest reward among the configurations that are ok in every seed, for each kind of reward."""
    rule = (
        "Only configurations that are ok in every seed are ranked, by their mean reward at two decimals; of equals the "
        "one with the smaller KL. One with a KL of 0.00 has learnt nothing and is not ranked. Rewards of different "
        "kinds are not compared."
    )
    ran = [found for found in scope.configurations if found.finished or found.verdicts]
    if not ran:
        return not_enough("none has finished", rule=rule)
    cells = [row for found in ran for row in found.cells if row["state"] != "missing"]
    kinds = dict.fromkeys(str(found.cells[0]["reward"]) for found in ran)
    parts, sentences = [], []
    for kind in kinds:
        paid = [found for found in ran if found.cells[0]["reward"] == kind]
        conclusion, said = _best(paid, _untrained(scope, paid))
        # What is best names it already, where it differs.
        parts.append(conclusion if kind in conclusion or len(kinds) == 1 else f"{kind}: {conclusion}")
        sentences += [" ".join([f"Paid for {kind}:", *said])] if len(kinds) > 1 else said
    diverged = sum(found.verdicts["diverged"] for found in ran)
    if diverged:
        verb = "is" if diverged == 1 else "are"
        sentences.append(f"{count(diverged, 'cell')} diverged and {verb} in no mean.")
    return finding("; ".join(parts), sentences, cells, [found.figures() for found in ran], rule)


def _untrained(scope: Scope, ran: Sequence[Configuration]) -> float | None:
    """What the base that all of these started from is paid for its own samples; None where there is no such figure."""
    start, *others = {base_of(row) for found in ran for row in found.cells}
    if others:
        return None
    earned: float | None = scope.evidence.bases.get(start, {}).get("rewards", {}).get(ran[0].cells[0]["reward"])
    return earned


def _best(ran: Sequence[Configuration], untrained: float | None) -> tuple[str, list[str]]:
    """Conclusion and sentences about configurations that are paid for the same thing, and their base so much."""
    idle = [found for found in ran if (kl := found.mean("final_kl").mean) is not None and abs(kl) < 0.005]
    sound = [found for found in ran if found.all_ok and found not in idle]
    borderline = [found for found in ran if found.non_degenerate and not found.all_ok]
    number = f"Of {count(len(ran), 'configuration')}" if len(ran) > 1 else "The only configuration"
    if sound:
        best = highest(sound)
        conclusion = in_short(best)
        if untrained is not None:
            conclusion += f", the base itself {decimals(untrained, 2)}"
        if len(ran) == 1:
            sentences = [f"{number} is ok in every seed; its reward is {_achieves(best)}."]
        elif len(sound) == 1:
            sentences = [f"{number} one is ok in every seed; its reward is {_achieves(best)}."]
        else:
            sentences = [
                f"{number} {len(sound)} are ok in every seed; the highest reward of them is {_achieves(best)}."
            ]
    elif len(ran) == 1:
        conclusion = "learnt nothing" if idle else "not ok in every seed" if borderline else "degenerate"
        sentences = [f"{number} {'' if idle else 'is '}{conclusion}."]
    else:
        some = "none that learnt anything is ok" if idle else "none is ok"
        conclusion = f"{some} in every seed" if borderline or idle else "all degenerate"
        sentences = [f"{number} {some} in every seed."]
    if not sound:
        conclusion += _despite([found for found in ran if found not in idle])
    if borderline:
        if len(ran) > 1:
            sentences.append(f"The best whose texts are borderline in some seed has {_achieves(highest(borderline))}.")
        else:
            sentences.append(f"Its texts are borderline in some seed; its reward is {_achieves(borderline[0])}.")
    return conclusion, sentences


def _despite(spoilt: Sequence[Configuration]) -> str:
    """``, at rewards of 0.82–0.99 (chopped sentences in 6 cells)``: what was earned, and what of the texts was lost."""
    rewards = [_two(found) for found in spoilt if found.finished]
    if not rewards:
        return ""
    low, high = (decimals(end, 2) for end in (min(rewards), max(rewards)))
    earned = f", at a reward of {low}" if low == high else f", at rewards of {low}–{high}"
    seen = faults(row for found in spoilt for row in found.finished)
    return f"{earned} ({seen})" if seen else earned


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


# --- what a verdict rests on ---------------------------------------------------------------------------


def published_signals(scope: Scope) -> Finding:
    """What the verdicts would be by the signals alone that the published rows give, and which others say more."""
    rule = (
        "The published rows give first sentences, Jaccard, KL, reward and lengths, each of them some of these. By what "
        "they give the rule of the verdict, whose limits were chosen on them, calls 38 of these 39 rows what they are "
        "called there. The same is done here with all five figures of our cells, KL as training estimates it, which a "
        "few rare tokens can lift. The verdict itself looks at likelihoods under the base and at single sentences too, "
        "and the published study had remarks on the texts."
    )
    cells = [row for row in scope.finished if row["verdict_published_signals"]]
    if not cells:
        return not_enough("none has finished", rule=rule)
    columns = ("verdict", "verdict_published_signals")
    whole, alone = (verdicts_in_numbers(row[column] for row in cells) for column in columns)
    differing = [row for row in cells if row["verdict"] != row["verdict_published_signals"]]
    seen = faults(differing)
    rows = [
        {name: found.cells[0][name] for name in found.fields}
        | {
            "n": len(found.finished),
            **{
                by: verdicts_in_numbers(row[column] for row in found.finished)
                for by, column in zip(("by all signals", "by the published ones"), columns, strict=True)
            },
        }
        for found in scope.configurations
        if found.finished
    ]
    sentences = [f"By all signals the verdicts are {whole}; by the published ones alone {alone}."]
    if seen:
        differ, them = ("differs", "it") if len(differing) == 1 else ("differ", "them")
        sentences.append(f"{count(len(differing), 'cell')} of {len(cells)} {differ}; what was seen in {them}: {seen}.")
    conclusion = f"{alone}; by all signals {whole}" if differing else f"the same, {whole}"
    return finding(conclusion, sentences, cells, rows, rule)


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
    "from the lowest to the highest value is taken (where there are more than two, along the line of best fit through "
    "them at equal distances). "
    f"Intervals are Student's, and so is P with fewer than {SIGNS_FROM} sets; with more it comes from shuffling signs."
)


def penalty_effect(scope: Scope) -> Finding:
    """How much the repetition penalty changes the reward and the likeness of texts."""
    limits = " and ".join(f"{limit} of {COLUMNS[name].label}" for name, limit in NEGLIGIBLE.items())
    rule = (
        f"{EFFECT_RULE} A change is negligible if two one-sided t tests tell that it is smaller than {limits} "
        f"(P < {ALPHA}, adjusted for all that was asked: Holm)."
    )
    found = {name: column_effect(scope.rows, "repetition_penalty", name) for name in NEGLIGIBLE}
    measured = {name: each for name, each in found.items() if each is not None}
    if not measured:
        return not_enough("no two finished cells differ in the repetition penalty alone", rule=rule)
    parts, sentences, rows = [], [], []
    asked = {
        Question("negligible", name, "repetition_penalty", limit): equivalence(measured[name].changes, limit)
        for name, limit in NEGLIGIBLE.items()
        if name in measured
    }
    for question, small in adjusted(scope, asked).items():
        each = measured[question.column]
        label, limit = COLUMNS[question.column].label, question.limit
        word, sentence = _size(label, each, limit, small)
        parts.append(word)
        sentences.append(sentence)
        changes = _changes("repetition_penalty", each)
        rows.append({"figure": label, **changes, "limit": limit, "adjusted P of the limit": _p(small)})
    cells = [row for each in measured.values() for row in each.cells]
    return finding("; ".join(parts), sentences, cells, rows, rule)


def _size(label: str, found: Effect, limit: float, small: float | None) -> tuple[str, str]:
    """How large an effect is, in a few words and in a sentence; ``small`` is P that it only looks negligible."""
    gap = found.difference
    sets = count(gap.n, "pair") if len(found.means) == 2 else count(gap.n, "set")
    change = f"The penalty changes {label} by {change_in_words(gap)}"
    if gap.p is None or small is None:
        return f"on {label} cannot be told with n = 1", f"{change}, and one set of cells cannot tell that from chance."
    same = sum(math.copysign(1, each) == math.copysign(1, gap.mean) and each != 0 for each in found.changes)
    verb = "falls" if gap.mean < 0 else "rises"
    if small < ALPHA:
        return f"negligible on {label}", f"{change}: surely less than {limit}, over {sets}."
    if gap.p < ALPHA:
        return f"{label} {verb} in {same} of {sets}", f"{change}; it {verb} in {same} of {sets}."
    return f"on {label} cannot be told", f"{change}: neither surely there nor surely less than {limit}, over {sets}."


def stories_by_penalty(scope: Scope) -> Finding:
    """Reward and verdicts as the repetition penalty rises, for each configuration of everything else."""
    rule = (
        "Rewards are what training paid, under each configuration's own penalty, means over its finished seeds; reward "
        "(samples) is that of the final samples, which are drawn without one. Configurations that differ in the "
        "repetition penalty alone are told in a row, from the lowest to the highest."
    )
    ran = [found for found in scope.configurations if found.finished]
    rows: dict[str, list[Configuration]] = {}
    for found in sorted(ran, key=lambda found: found.cells[0]["repetition_penalty"]):
        others = [name for name in found.named if name != "repetition_penalty"]
        rows.setdefault(settings(others, found.cells[0]), []).append(found)
    compared = {label: row for label, row in rows.items() if len(row) > 1}
    if not compared:
        return not_enough("no two finished configurations differ in the repetition penalty alone", rule=rule)
    parts, sentences = [], []
    for label, row in compared.items():
        penalties = [show("repetition_penalty", found.cells[0]["repetition_penalty"]) for found in row]
        said = [verdicts_in_short([str(cell["verdict"]) for cell in found.finished]) for found in row]
        rewards = " → ".join(decimals(_two(found), 2) for found in row)
        verdicts = f"all {said[0]}" if len(set(said)) == 1 else " → ".join(said)
        parts.append(f"{label}{': ' if label else ''}reward {rewards} at penalty {' → '.join(penalties)}, {verdicts}")
        each = zip(penalties, row, strict=True)
        seen = "; ".join(f"at {at} {what}" for at, found in each if (what := faults(found.finished)))
        sentences.append(sentence_case(f"{'with ' if label else ''}{parts[-1]}{f' ({seen})' if seen else ''}."))
        change = column_effect([cell for found in row for cell in found.cells], "repetition_penalty", "final_reward")
        if change is not None:
            by = change_in_words(change.difference)
            sentences.append(f"From the lowest to the highest the reward changes by {by}, the seed being the same.")
    cells = [cell for row in compared.values() for found in row for cell in found.finished]
    figures = [
        found.figures() | {name: found.mean(name).mean for name in ("reward_256", "skeleton_share")} for found in ran
    ]
    return finding("; ".join(parts), sentences, cells, figures, rule)


def scale_effect(scope: Scope) -> Finding:
    """How much it changes the reward that an adapter's output is multiplied by 8 / rank instead of by 1."""
    rule = (
        f"Each LoRA whose alpha is constant, so that its output is multiplied by {SHARED_ALPHA} / rank, is set against "
        "the one whose alpha is its rank (multiplied by 1) and which is otherwise equal, the seed too. Small ranks are "
        "multiplied by more than 1, large ones by less. Intervals are Student's."
    )
    by_level = matched([row for row in scope.rows if row["adapter_alpha"] in ("rank", "constant")], "adapter_alpha")
    pairs = list(zip(by_level.get("rank", ()), by_level.get("constant", ()), strict=True))
    if not pairs:
        return not_enough("no two finished cells differ in the adapter's scale alone", rule=rule)
    parts = []
    for what, some in (
        ("up", [pair for pair in pairs if pair[0]["rank"] < SHARED_ALPHA]),
        ("down", [pair for pair in pairs if pair[0]["rank"] > SHARED_ALPHA]),
    ):
        if some:
            change = difference([scaled["final_reward"] - plain["final_reward"] for plain, scaled in some])
            same = sum(plain["verdict"] == scaled["verdict"] for plain, scaled in some)
            parts.append(
                f"multiplying {numbered('rank', {plain['rank'] for plain, _ in some})} {what} changes reward by "
                f"{change_in_words(change)} and the verdict in {len(some) - same} of {count(len(some), 'pair')}"
            )
    rows = [
        {
            **{name: plain[name] for name in ("rank", "lr", "seed")},
            "multiplied by": SHARED_ALPHA / plain["rank"],
            "final_reward": scaled["final_reward"],
            "reward by 1": plain["final_reward"],
            "verdict": scaled["verdict"],
            "verdict by 1": plain["verdict"],
        }
        for plain, scaled in pairs
    ]
    sentences = [f"{sentence_case(part)}." for part in parts]
    return finding("; ".join(parts), sentences, [cell for pair in pairs for cell in pair], rows, rule)


def _changes(key: str, found: Effect) -> dict[str, Any]:
    """An effect as a row of figures."""
    gap = found.difference
    return {setting(key, level): mean for level, mean in found.means.items()} | {
        "change": gap.mean,
        "95 % interval": f"{gap.low:+.3f} to {gap.high:+.3f}" if gap.low is not None else None,
        "change by sd": gap.effect,
        "P": _p(gap.p),
        "n": gap.n,
    }


def _p(p: float | None) -> str | None:
    return None if p is None else p_value(p)


def beta_order(scope: Scope) -> Finding:
    """Whether KL and reward fall as beta rises."""
    rule = (
        f"{EFFECT_RULE} A figure falls if its mean does at each step up and the change is none of chance: its P "
        f"(Student's, one-sided), adjusted for all that was asked (Holm), is below {ALPHA}. It does not fall if the "
        "same is so of the opposite; otherwise it cannot be told."
    )
    names = ("final_kl", "kl_exact", "final_reward")
    found = {name: each for name in names if (each := column_effect(scope.rows, "beta", name)) is not None}
    if not {"final_kl", "final_reward"} <= set(found):
        return not_enough("no finished cells differ in beta alone", rule=rule)
    kl, reward = found["final_kl"], found["final_reward"]
    betas = " → ".join(show("beta", beta) for beta in kl.means)
    sentences = [f"From beta {betas}, KL goes {kl.path} nats per token, a change of {change_in_words(kl.difference)}."]
    if (exact := found.get("kl_exact")) is not None:
        change = change_in_words(exact.difference)
        sentences.append(f"KL (exact), measured on the final samples, goes {exact.path}, a change of {change}.")
    sentences += [
        f"Reward goes {reward.path}, a change of {change_in_words(reward.difference)}.",
        f"These are means over {count(kl.difference.n, 'set')} of cells that differ in beta alone.",
    ]
    told = adjusted(scope, {Question("falls", name, "beta"): goes_p(found[name], "falls") for name in JUDGED})
    ps = {question.column: p for question, p in told.items()}
    rows = [
        {"figure": COLUMNS[name].label, **_changes("beta", each), "adjusted P": _p(ps.get(name))}
        for name, each in found.items()
    ]
    cells = [row for each in found.values() for row in each.cells]
    answers = [goes(found[question.column], "falls", p) for question, p in told.items()]
    return finding(_falls(kl, *answers), sentences, cells, rows, rule)


JUDGED = ("final_kl", "final_reward")
"""What the order of beta is told of."""


def adjusted(scope: Scope, asked: Mapping[Question, float | None]) -> dict[Question, float | None]:
    """P of a finding's questions: as they were adjusted where they were asked among others, else among themselves."""
    return {
        question: scope.adjusted.get(question, p) for question, p in zip(asked, holm(list(asked.values())), strict=True)
    }


def _falls(kl: Effect, kl_falls: bool | None, reward_falls: bool | None) -> str:
    """Which of the two fall as beta rises, and which it cannot be told of."""
    told = {"KL": kl_falls, "reward": reward_falls}
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


Direction = Literal["falls", "rises"]


def goes_p(found: Effect, direction: Direction) -> float | None:
    """P that chance alone would look like a figure that falls (or rises) with the setting; None of one set of cells."""
    sign = 1 if direction == "falls" else -1
    return below([sign * change for change in found.changes], 0.0)


def goes(found: Effect, direction: Direction, p: float | None) -> bool | None:
    """Whether a figure falls (or rises) as the setting does, at each step up; None if it cannot be told.

    Args:
        p: of chance (:func:`goes_p`), adjusted if other questions were asked too.
    """
    alone = goes_p(found, direction)
    if p is None or alone is None:
        return None
    if 1 - alone < ALPHA:
        return False
    return True if p < ALPHA and found.moves("decreasing" if direction == "falls" else "increasing") else None


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
    tried = numbered("rank", {found.cells[0]["rank"] for found in ran})
    best = smallest_configuration(scope)
    if best is None:
        conclusion = f"no rank reaches {PASSING} with every seed ok"
        sentence = f"No configuration reaches {PASSING} with every seed ok; tried: {tried}."
    else:
        conclusion = f"{best.label} ({decimals(_two(best), 2)})"
        sentence = (
            f"The smallest rank that reaches {PASSING} with every seed ok is {best.cells[0]['rank']}: "
            f"{_achieves(best)}. Tried: {tried}."
        )
    return finding(conclusion, [sentence], cells, rows, rule)


class LrRatio(NamedTuple):
    """LoRA's best learning rate at one rank, by that of full fine-tuning.

    ``rivals`` are the configurations that pass and are not surely worse than the best, on either side.
    """

    lora: Configuration
    full: Configuration
    rivals: tuple[Sequence[Configuration], Sequence[Configuration]]

    @property
    def rank(self) -> int:
        """Rank of the adapter."""
        return int(self.lora.cells[0]["rank"])

    @property
    def ratio(self) -> float:
        """LoRA's learning rate by full fine-tuning's, to 6 digits."""
        return _ratio(_lr(self.lora), _lr(self.full))

    @property
    def span(self) -> tuple[float, float] | None:
        """The ratios that are compatible with the rewards; None where a best one rests on one seed."""
        if min(self.lora.reward.n, self.full.reward.n) < 2:
            return None
        lora, full = ([_lr(found) for found in side] for side in self.rivals)
        return _ratio(min(lora), max(full)), _ratio(max(lora), min(full))


def _lr(found: Configuration) -> float:
    return float(found.cells[0]["lr"])


def _ratio(lora: float, full: float) -> float:
    return float(f"{lora / full:.6g}")


def lr_ratios(scope: Scope) -> list[LrRatio]:
    """One ratio for each rank that reaches 0.85 with every seed ok; see ``lr_ratio_to_full``."""
    lora = [found for found in scope.configurations if found.cells[0]["method"] == "lora"]
    passing = [found for found in lora if found.passes()]
    ratios = []
    for rank in sorted({found.cells[0]["rank"] for found in passing}):
        sound = [found for found in passing if found.cells[0]["rank"] == rank]
        best = highest(sound)
        fulls = _sound_full(scope, best.cells[0])
        if fulls:
            full = highest(fulls)
            ratios.append(LrRatio(best, full, (rivals(best, sound), rivals(full, fulls))))
    return ratios


def rivals(best: Configuration, among: Sequence[Configuration]) -> list[Configuration]:
    """Those whose reward is not surely lower than that of the best (Welch's t test): the best itself is one."""
    found = []
    for other in among:
        ours, theirs = ([row["final_reward"] for row in each.finished] for each in (best, other))
        gap = unpaired(ours, theirs)
        if gap.p is None or gap.p >= ALPHA:
            found.append(other)
    return found


def _sound_full(scope: Scope, lora: Row) -> list[Configuration]:
    """The configurations of full fine-tuning of the same base and reward that are ok in every seed."""
    same = ("base", "base_recipe", "reward")
    full = [
        row
        for row in scope.evidence.finished()
        if row["method"] == "full" and all(row[name] == lora[name] for name in same)
    ]
    return [found for found in configurations(full) if found.all_ok]


def lr_ratio_to_full(scope: Scope) -> Finding:
    """How much larger LoRA's best learning rate is than that of full fine-tuning."""
    rule = (
        "For each rank, the learning rate with the highest mean reward among configurations that reach "
        f"{PASSING} with every seed ok, by the learning rate of the best full fine-tuning configuration of the same "
        "base and reward that is ok in every seed. Compatible with the rewards are the ratios of all such "
        f"configurations that are not surely worse than the best (Welch's t test, P < {ALPHA}); with one seed it "
        "cannot be told. Rates that nobody tried are in neither."
    )
    ratios = lr_ratios(scope)
    if not ratios:
        needed = (
            f"it takes a LoRA configuration that reaches {PASSING} with every seed ok, and such a full "
            "fine-tuning of the same base and reward"
        )
        return not_enough(needed, scope.finished, rule)
    rows = [
        {
            "rank": found.rank,
            "lr": _lr(found.lora),
            "lr of full fine-tuning": show("lr", _lr(found.full)),
            "ratio": found.ratio,
            "compatible with": _times(found.span) if found.span else None,
            "final_reward": found.lora.reward.mean,
            "n": min(found.lora.reward.n, found.full.reward.n),
        }
        for found in ratios
    ]
    times = _times([found.ratio for found in ratios])
    ranks = ", ".join(f"rank {row['rank']} at {show('lr', row['lr'])}" for row in rows)
    sentences = [
        f"LoRA's best learning rates are {times} times that of full fine-tuning "
        f"({rows[0]['lr of full fine-tuning']}): {ranks}."
    ]
    cells = [row for found in ratios for side in (found.lora, found.full) for row in side.finished]
    spans = [found.span for found in ratios if found.span]
    if len(spans) < len(ratios):
        sentences.append("With n = 1 on either side it cannot be told which rate is the best.")
        return finding(f"cannot be told with n = 1 ({times} times)", sentences, cells, rows, rule)
    ends = [end for span in spans for end in span]
    if _times(ends) == times:
        sentences.append("Every other rate that passes at these ranks is surely worse, or there is none.")
        return finding(f"{times} times", sentences, cells, rows, rule)
    sentences.append(f"Rates that are not surely worse make {_times(ends)} times compatible with the rewards too.")
    return finding(f"{times} times, and {_beyond(ratios, ends)} is compatible", sentences, cells, rows, rule)


def _times(ratios: Sequence[float]) -> str:
    """``10–30``."""
    low, high = f"{min(ratios):.3g}", f"{max(ratios):.3g}"
    return low if low == high else f"{low}–{high}"


def _beyond(ratios: Sequence[LrRatio], ends: Sequence[float]) -> str:
    """``up to 30``, ``down to 3``, or both ends."""
    low = min(ends) < min(found.ratio for found in ratios)
    high = max(ends) > max(found.ratio for found in ratios)
    if low and high:
        return f"{min(ends):.3g} to {max(ends):.3g}"
    return f"up to {max(ends):.3g}" if high else f"down to {min(ends):.3g}"
