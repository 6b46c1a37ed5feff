"""Relations: claims that are judged on any cells, all at once."""

from __future__ import annotations

import dataclasses

import pytest
from tests.trees import replica, row

from rewardgrid.published.comparison import Published, compare
from rewardgrid.published.judging import Judgement
from rewardgrid.published.relations import adjusted_p, judge_relations
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Question, Scope
from rewardgrid.report.findings import FINDINGS
from rewardgrid.report.tables import Row


def sweep(*rewards: float, **more: object) -> list[Row]:
    """Two seeds at each of three betas; the KL falls as the rewards do."""
    return [
        row("reward_sweep", beta=beta, seed=seed, final_reward=reward + 0.01 * seed, final_kl=3 * reward, **more)
        for beta, reward in zip((0.003, 0.01, 0.02), rewards, strict=True)
        for seed in (1, 2)
    ]


def judged(published: Published, rows: list[Row]) -> dict[str, Judgement]:
    return judge_relations(published.relations, Evidence({"reward_sweep": rows}))


def test_relations_are_judged_on_any_settings_and_steps(published: Published) -> None:
    found = judged(published, sweep(0.9, 0.8, 0.7, lr=1e-3, max_steps=150))
    assert found["beta-orders-kl"].answer == found["beta-orders-reward"].answer == "agrees"
    assert found["routing-removes-hack"].answer == "not run"


def test_the_beginning_of_a_longer_run_decides_no_relation(published: Published) -> None:
    assert judged(published, sweep(0.9, 0.8, 0.7, decay_steps=2000))["beta-orders-kl"].answer == "not run"


def test_asking_many_questions_makes_each_answer_less_sure(published: Published) -> None:
    """The published sweep alone, then with everything else that was published."""
    ours = replica(published)
    alone = judged(published, list(ours["reward_sweep"]))
    whole = {entry["id"]: entry for entry in compare(published, Evidence(ours), "storyteller")["relations"]}
    # Fisher's exact P of 4 of 4 against 0 of 4 is 1/70: the largest of three, then the next to largest of eight.
    low = "low-beta-degenerates"
    assert alone[low].p is not None
    assert whole[low]["p"] is not None
    assert round(70 * alone[low].p) == 1
    assert round(70 * whole[low]["p"]) == 2
    assert {entry["answer"] for entry in whole.values()} == {"agrees", "not run"}


def test_what_is_too_unsure_among_many_cannot_be_told(published: Published) -> None:
    """By itself a P of 0.03 would do."""
    rows = [
        row("reward_sweep", beta=beta, seed=seed, final_reward=0.9, final_kl=kl)
        for seed, line in enumerate(((3.0, 2.0, 1.0), (2.2, 2.0, 1.7), (3.4, 2.0, 1.5)))
        for beta, kl in zip((0.003, 0.01, 0.02), line, strict=True)
    ]
    found = judged(published, rows)["beta-orders-kl"]
    assert found.p is not None
    assert found.p >= 0.05
    assert found.answer == "cannot be told"


def test_one_cell_of_each_kind_tells_nothing_but_what_a_single_one_refutes(published: Published) -> None:
    found = judged(published, sweep(0.9, 0.8, 0.7)[::2])
    assert found["beta-orders-kl"].answer == "cannot be told"
    # "Every cell at the lowest beta is degenerate" falls with one that is ok.
    assert found["low-beta-degenerates"].answer == "differs"


@pytest.mark.parametrize(("spread", "answer"), [(0.05, "agrees"), (0.18, "agrees"), (0.45, "cannot be told")])
def test_headline_and_relation_give_one_answer(published: Published, spread: float, answer: str) -> None:
    """The same cells, asked whether KL falls. By itself even the last one's P would do."""
    rows = [
        row("reward_sweep", beta=beta, seed=seed, final_reward=0.9, final_kl=kl)
        for seed, step in enumerate((1 - spread, 1, 1 + spread))
        for beta, kl in zip((0.003, 0.01, 0.02), (2 + step, 2.0, 2 - step), strict=True)
    ]
    evidence = Evidence({"reward_sweep": rows})
    relation = judge_relations(published.relations, evidence)["beta-orders-kl"]
    told = adjusted_p(published.relations, evidence)["reward_sweep"]
    conclusion = FINDINGS["beta_order"][1](Scope(evidence, "reward_sweep", adjusted=told))["conclusion"]
    assert told[Question("falls", "final_kl", "beta")] == relation.p
    assert relation.answer == answer
    assert conclusion.startswith("KL falls as beta rises") == (answer == "agrees")


def test_a_finding_takes_the_p_that_was_adjusted_elsewhere() -> None:
    scope = Scope(Evidence({"reward_sweep": sweep(0.9, 0.8, 0.7)}), "reward_sweep")
    assert FINDINGS["beta_order"][1](scope)["conclusion"].startswith("KL and reward fall as beta rises")
    asked = {Question("falls", "final_kl", "beta"): 0.07, Question("falls", "final_reward", "beta"): 0.03}
    among_others = FINDINGS["beta_order"][1](dataclasses.replace(scope, adjusted=asked))["conclusion"]
    assert among_others.startswith("reward falls as beta rises; whether KL falls cannot be told (")
