"""Claims about gradient routing: when the hack goes, when the task does, and what is left of both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from rewardgrid.published.judging import NOT_RUN, Answer, Judgement, Ours, by_p, with_p
from rewardgrid.published.rows import PUBLISHED_SAMPLES
from rewardgrid.published.statement import Statement
from rewardgrid.report.curves import mode_curve, stays_below
from rewardgrid.report.finding import Question
from rewardgrid.report.routing_findings import Ended, endings
from rewardgrid.report.separation import HACK_GONE, TASK_DESTROYED, TASK_KEPT, gone_from, separate
from rewardgrid.report.statistics import below
from rewardgrid.report.tables import Row
from rewardgrid.study.text import count


def _since(steps: Sequence[int | None]) -> str:
    """From which steps on something holds in each seed, in words."""
    reached, never = sorted(step for step in steps if step is not None), list(steps).count(None)
    same = reached[:1] if len(set(reached)) == 1 else reached
    said = [f"from step {', '.join(map(str, same))}"] if reached else []
    said += [f"never in {never}" if reached else "never"] if never else []
    return f"{'; '.join(said)} ({count(len(steps), 'seed')})"


def _in_time(steps: Sequence[int | None], first: int, last: int) -> Answer:
    """Whether the median seed lies in a range of steps; it differs if no seed does, nor any on either side of it."""
    places = [float("inf") if step is None else float(step) for step in steps]
    if len(places) < 2:
        return "cannot be told"
    if first <= statistics.median(places) <= last:
        return "agrees"
    return "differs" if max(places) < first or min(places) > last else "cannot be told"


class Gone(Statement):
    """With the forget adapter cut away the hack is gone from a step on: most of the excess over the base is."""

    kind: Literal["gone"]
    steps: tuple[int, int]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        ended = endings(ours.evidence, cells)
        if not ended:
            return NOT_RUN
        steps = [gone_from(ours.evidence.routing[each.row["cell"]], each.run) for each in ended]
        return Judgement(_in_time(steps, *self.steps), f"gone {_since(steps)}", [each.row for each in ended])

    def words(self) -> str:
        first, last = self.steps
        when = f"between steps {first} and {last}" if 0 < first < last else f"by step {last}"
        return (
            f"with the forget adapter cut away the hack is gone for good {when} (published: none in "
            f"{PUBLISHED_SAMPLES} samples)"
        )


class Collapse(Statement):
    """retain_only's task reward falls to a level for good, by a step."""

    kind: Literal["collapse"]
    level: float
    by_step: int

    @property
    def limit(self) -> float:
        """What counts as having fallen to the level."""
        return self.level + 0.1

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        limit = self.limit
        curves = [(row, ours.evidence.routing[row["cell"]]) for row in cells if row["cell"] in ours.evidence.routing]
        steps = [stays_below(*mode_curve(routing, "retain_only", "sl10"), limit) for _, routing in curves]
        if not steps:
            return NOT_RUN
        return Judgement(
            _in_time(steps, 0, self.by_step), f"below {limit:g} {_since(steps)}", [row for row, _ in curves]
        )

    def words(self) -> str:
        return f"sl10 of retain_only falls to {self.level:g} (below {self.limit:g} for good) by step {self.by_step}"


class Works(Statement):
    """Cutting the forget adapter away removes the hack and keeps the task."""

    kind: Literal["works"]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        ended = endings(ours.evidence, cells)
        if not ended:
            return NOT_RUN
        runs = [each.run for each in ended]
        found = separate(runs)
        used = [each.row for each in ended]
        text = f"{found.shares} ({count(len(runs), 'seed')})"
        ps = [
            below([run.left - (1 - HACK_GONE) * run.excess for run in runs], 0.0),
            below([TASK_KEPT - run.task for run in runs], 0.0),
        ]
        if found.gone is None or ps[0] is None or ps[1] is None:
            return Judgement("cannot be told", text, used)
        # Both must hold, so the less sure of the two decides.
        p = max(ps[0], ps[1])
        answer = by_p(p, 1.0 if found.ending not in ("partly", "collapses") else 0.0)
        return Judgement(answer, with_p(text, p), used, p)

    @property
    def question(self) -> Question:
        return Question("works")

    def words(self) -> str:
        return (
            f"cutting the forget adapter away removes the hack (at least {100 * HACK_GONE:.0f} % of it) and keeps the "
            f"task (at least {100 * TASK_KEPT:.0f} %)"
        )


class Lost(Statement):
    """retain_only's task reward ends below half of the base's, at every pair of ranks."""

    kind: Literal["lost"]

    def judged(self, ours: Ours, cells: Sequence[Row]) -> Judgement:
        by_ranks: dict[tuple[int, int], list[Ended]] = {}
        for each in endings(ours.evidence, cells):
            by_ranks.setdefault((each.row["rank"], each.row["forget_rank"]), []).append(each)
        if not by_ranks:
            return NOT_RUN
        parts, ps = [], []
        for (rank, forget), members in sorted(by_ranks.items()):
            shares = [each.run.task for each in members]
            parts.append(
                f"ranks {rank}+{forget}: {100 * statistics.fmean(shares):.0f} % kept ({count(len(shares), 'seed')})"
            )
            ps.append(below(shares, TASK_DESTROYED))
        used = [each.row for members in by_ranks.values() for each in members]
        known = [p for p in ps if p is not None]
        if len(known) < len(ps):
            return Judgement("cannot be told", "; ".join(parts), used)
        # It must be so at every pair of ranks: the least sure one decides.
        p = max(known)
        return Judgement(by_p(p), with_p("; ".join(parts), p), used, p)

    def words(self) -> str:
        return f"retain_only's task reward is lost: it ends below {100 * TASK_DESTROYED:.0f} % of the base's"
