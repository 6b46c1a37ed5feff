"""Every finding by name: its title, and a pure function of the evidence that never states more than its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rewardgrid.report import batch_findings, reward_findings, routing_findings
from rewardgrid.report.finding import Finding, Scope
from rewardgrid.study.study import FindingName
from rewardgrid.study.text import count


class Entry(Finding):
    """A finding under its name and title, as findings.json holds it."""

    name: str
    title: str
    experiment: str


FINDINGS: dict[FindingName, tuple[str, Callable[[Scope], Finding]]] = {
    "best_tradeoff": ("Best trade-off", reward_findings.best_tradeoff),
    "penalty_effect": ("Effect of the repetition penalty", reward_findings.penalty_effect),
    "stories_by_penalty": ("Stories by repetition penalty", reward_findings.stories_by_penalty),
    "scale_effect": ("Effect of the adapter's scale", reward_findings.scale_effect),
    "beta_order": ("Order of beta", reward_findings.beta_order),
    "published_signals": ("Verdicts by the published signals alone", reward_findings.published_signals),
    "smallest_passing": ("Smallest rank that passes", reward_findings.smallest_passing),
    "lr_ratio_to_full": ("Learning rate, LoRA by full", reward_findings.lr_ratio_to_full),
    "slower_than_baseline": ("Larger batch against smaller", batch_findings.slower_than_baseline),
    "slower_when_scaled": ("Larger batch and learning rate against smaller", batch_findings.slower_when_scaled),
    "baseline_climb": ("Climb without routing", routing_findings.baseline_climb),
    "hack_removed": ("Forget adapter cut away", routing_findings.hack_removed),
    "stories": ("Stories by adapter", routing_findings.stories),
    "windows": ("Each adapter alone", routing_findings.windows),
    "collapse": ("Collapse of the task", routing_findings.collapse),
    "asymmetric_table": ("Ranks of the forget adapter", routing_findings.asymmetric_table),
}
"""Every finding that a configuration can ask for."""


def compute(scope: Scope, names: Iterable[FindingName]) -> list[Entry]:
    """The findings of one experiment, in the order asked for."""
    entries: list[Entry] = []
    stopped = sum(row["state"] == "stopped" for row in scope.rows)
    verb = "was" if stopped == 1 else "were"
    left_out = [f"{count(stopped, 'cell')} {verb} stopped early and left out."] if stopped else []
    for name in names:
        title, find = FINDINGS[name]
        entries.append({"name": name, "title": title, "experiment": scope.experiment, **find(scope)})
        entries[-1]["sentences"] += left_out
    return entries
