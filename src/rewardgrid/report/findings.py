"""Every finding by name: each a pure function of the evidence that never states more than its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rewardgrid.report import reward_findings, routing_findings
from rewardgrid.report.finding import Finding, Scope

FINDINGS: dict[str, Callable[[Scope], Finding]] = {
    "best_tradeoff": reward_findings.best_tradeoff,
    "penalty_effect": reward_findings.penalty_effect,
    "beta_order": reward_findings.beta_order,
    "smallest_passing": reward_findings.smallest_passing,
    "lr_ratio_to_full": reward_findings.lr_ratio_to_full,
    "slower_than_baseline": reward_findings.slower_than_baseline,
    "slower_when_scaled": reward_findings.slower_when_scaled,
    "baseline_climb": routing_findings.baseline_climb,
    "hack_removed": routing_findings.hack_removed,
    "windows": routing_findings.windows,
    "collapse": routing_findings.collapse,
    "asymmetric_table": routing_findings.asymmetric_table,
}
"""Every finding that a configuration can ask for."""


def compute(scope: Scope, names: Iterable[str]) -> list[Finding]:
    """The findings of one experiment, in the order asked for."""
    return [FINDINGS[name](scope) for name in names]
