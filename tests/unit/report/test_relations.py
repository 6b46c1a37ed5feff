"""Each relation on cells for which it holds, and on cells for which it does not."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from rewardgrid.report.evidence import Evidence
from rewardgrid.report.published import Published
from rewardgrid.report.relations import Judged, check_relation, rank_correlation
from rewardgrid.report.tables import Row

from .trees import routing, row

HAPPY = "sentence_length_10_smooth_with_happy"
Curves = dict[str, pd.DataFrame]


def judge(published: Published, identity: str, rows: list[Row], curves: Curves | None = None) -> Judged:
    (relation,) = [each for each in published.relations if each.id == identity]
    tables: dict[str, list[Row]] = {}
    for each in rows:
        tables.setdefault(each["experiment"], []).append(each)
    bases = {"storyteller-0000000000": {"sl10": 0.5}}
    return check_relation(relation, Evidence(tables, routing=curves or {}, bases=bases))


def sweep(*cells: tuple[float, float, float, str], penalty: float = 1.1) -> list[Row]:
    """(beta, reward, KL, verdict) of cells."""
    return [
        row("reward_sweep", beta=beta, repetition_penalty=penalty, final_reward=reward, final_kl=kl, verdict=verdict)
        for beta, reward, kl, verdict in cells
    ]


ORDERED = sweep((0.003, 0.99, 3.0, "degenerate"), (0.01, 0.95, 2.0, "ok"), (0.02, 0.9, 1.0, "ok"))
BROKEN = sweep((0.003, 0.90, 1.0, "ok"), (0.01, 0.95, 2.0, "ok"), (0.02, 0.99, 3.0, "degenerate"))


@pytest.mark.parametrize("identity", ["beta-orders-kl", "beta-orders-reward", "low-beta-degenerates"])
def test_order_of_beta(published: Published, identity: str) -> None:
    assert judge(published, identity, ORDERED)[0] is True
    assert judge(published, identity, BROKEN)[0] is False
    assert judge(published, identity, ORDERED[:1])[0] is None


def test_equal_kl_at_two_betas_does_not_fall(published: Published) -> None:
    flat = sweep((0.003, 0.99, 3.0, "ok"), (0.01, 0.95, 3.0, "ok"))
    assert judge(published, "beta-orders-kl", flat)[0] is False


def test_a_diverged_cell_at_the_lowest_beta_counts_as_degenerate(published: Published) -> None:
    rows = [*ORDERED[1:], row("reward_sweep", state="diverged", beta=0.003)]
    assert judge(published, "low-beta-degenerates", rows)[0] is True


def test_one_sound_cell_at_the_lowest_beta_is_enough_to_differ(published: Published) -> None:
    rows = [*ORDERED, *sweep((0.003, 0.99, 3.0, "borderline"), penalty=1.05)]
    holds, text, _ = judge(published, "low-beta-degenerates", rows)
    assert holds is False
    assert text == "degenerate: 1 of 2 at beta 0.003, 0 of 1 at 0.02"


def test_the_penalty_is_negligible_up_to_0_02(published: Published) -> None:
    near = sweep((0.02, 0.90, 1.0, "ok")) + sweep((0.02, 0.92, 1.0, "ok"), penalty=1.05)
    far = sweep((0.02, 0.90, 1.0, "ok")) + sweep((0.02, 0.93, 1.0, "ok"), penalty=1.05)
    assert judge(published, "penalty-negligible", near)[0] is True
    assert judge(published, "penalty-negligible", far)[0] is False
    assert judge(published, "penalty-negligible", near[:1])[0] is None


def test_exact_length_is_harder_if_it_ends_below_half_of_the_smooth_reward(published: Published) -> None:
    def cells(exact: float, **other: Any) -> list[Row]:
        ten = row("exact_match", reward="sentence_length_10", repetition_penalty=1.2, final_reward=exact, **other)
        return [ten, row("reward_sweep", beta=0.02, final_reward=0.9)]

    assert judge(published, "exact-is-harder", cells(0.44))[0] is True
    assert judge(published, "exact-is-harder", cells(0.46))[0] is False
    # Without a smooth run of the same beta there is nothing to compare with.
    assert judge(published, "exact-is-harder", cells(0.2, beta=0.1))[0] is None


def lora(rank: int, lr: float, reward: float, verdict: str = "ok") -> Row:
    return row("lora_rank", method="lora", rank=rank, lr=lr, final_reward=reward, verdict=verdict)


def test_rank_1_must_pass_without_degenerating(published: Published) -> None:
    assert judge(published, "smallest-rank-works", [lora(1, 1e-4, 0.5), lora(1, 3e-4, 0.9)])[0] is True
    assert judge(published, "smallest-rank-works", [lora(1, 3e-4, 0.9, "degenerate")])[0] is False
    assert judge(published, "smallest-rank-works", [lora(2, 3e-4, 0.9)])[0] is None


def test_the_lowest_lr_must_fail_at_every_rank_while_a_higher_one_passes(published: Published) -> None:
    assert judge(published, "too-low-lr", [lora(1, 1e-5, 0.5), lora(8, 1e-5, 0.6), lora(8, 1e-4, 0.9)])[0] is True
    assert judge(published, "too-low-lr", [lora(1, 1e-5, 0.5), lora(8, 1e-5, 0.9), lora(8, 1e-4, 0.9)])[0] is False
    assert judge(published, "too-low-lr", [lora(1, 1e-5, 0.5), lora(1, 1e-4, 0.6)])[0] is False
    assert judge(published, "too-low-lr", [lora(1, 1e-5, 0.5)])[0] is None


def test_degeneracy_must_grow_with_rank_times_lr(published: Published) -> None:
    growing = [lora(1, 1e-4, 0.5), lora(2, 1e-4, 0.9, "borderline"), lora(8, 3e-4, 0.9, "degenerate")]
    falling = [lora(1, 1e-4, 0.5, "degenerate"), lora(8, 3e-4, 0.9)]
    assert judge(published, "capacity-times-lr", growing)[0] is True
    assert judge(published, "capacity-times-lr", falling)[0] is False
    holds, text, _ = judge(published, "capacity-times-lr", [lora(1, 1e-4, 0.5), lora(2, 1e-4, 0.5)])
    assert holds is False
    assert text == "every verdict is the same: ok"


def test_ranks_of_ties_are_their_mean() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, sums of squares 4.5 and 5.
    assert rank_correlation([1, 2, 2, 9], [10, 20, 30, 40]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([1, 1], [1, 2]) is None


def test_no_larger_batch_may_be_sooner(published: Published) -> None:
    def cells(seconds: float) -> list[Row]:
        common = {"method": "lora", "rank": 1, "lr": 3e-4, "seconds_to_095": None}
        return [
            row("batch_size", batch_size=32, seconds_to_085=100.0, **common),
            row("batch_size", batch_size=64, seconds_to_085=seconds, **common),
        ]

    assert judge(published, "batch-slower", cells(100.0))[0] is True
    assert judge(published, "batch-slower", cells(99.0))[0] is False
    assert judge(published, "batch-slower", cells(99.0)[:1])[0] is None


def routed(experiment: str, *seeds: tuple[int, int, float, float]) -> tuple[list[Row], Curves]:
    """Routing runs from (rank, forget rank, retain_only sl10, retain_only happy at the end)."""
    rows, curves = [], {}
    for seed, (rank, forget, sl10, happy) in enumerate(seeds):
        cell = row(experiment, method="routing", reward=HAPPY, rank=rank, forget_rank=forget, seed=seed)
        rows.append(cell)
        curves[cell["cell"]] = routing(
            {
                ("both", "happy"): [5.0] * 4,
                ("retain_only", "sl10"): [sl10] * 4,
                ("retain_only", "happy"): [1.0, happy, happy, happy],
            }
        )
    return rows, curves


@pytest.mark.parametrize(
    ("identity", "experiment"),
    [("routing-removes-hack", "routing_symmetric"), ("routing-imperfect-ok", "routing_imperfect")],
)
def test_routing_must_work_in_most_seeds(published: Published, identity: str, experiment: str) -> None:
    works, fails = (32, 32, 0.5, 0.0), (32, 32, 0.5, 1.0)
    assert judge(published, identity, *routed(experiment, works, works, fails))[0] is True
    assert judge(published, identity, *routed(experiment, works, fails))[0] is False
    assert judge(published, identity, routed(experiment, works)[0])[0] is None


@pytest.mark.parametrize(
    ("identity", "experiment"),
    [("routing-low-rank-collapses", "routing_low_rank"), ("routing-noise-sensitive", "routing_label_noise")],
)
def test_the_task_is_destroyed_if_most_seeds_of_every_rank_end_below_half_of_the_base(
    published: Published, identity: str, experiment: str
) -> None:
    lost, kept = (4, 4, 0.2, 0.0), (4, 4, 0.3, 0.0)
    assert judge(published, identity, *routed(experiment, lost, lost, kept))[0] is True
    assert judge(published, identity, *routed(experiment, lost, kept))[0] is False
    holds, text, cells = judge(published, identity, *routed(experiment, lost, (1, 1, 0.5, 0.0)))
    assert holds is False
    assert text == "ranks 1+1: lost by 0 of 1 seed; ranks 4+4: lost by 1 of 1 seed"
    assert len(cells) == 2


def test_the_forget_rank_is_free_if_means_differ_by_at_most_0_1(published: Published) -> None:
    identity, experiment = "routing-forget-rank-free", "routing_asymmetric"
    assert judge(published, identity, *routed(experiment, (32, 16, 0.55, 0.0), (32, 1, 0.46, 0.0)))[0] is True
    assert judge(published, identity, *routed(experiment, (32, 16, 0.57, 0.0), (32, 1, 0.46, 0.0)))[0] is False
    assert judge(published, identity, *routed(experiment, (32, 16, 0.57, 0.0)))[0] is None


def test_relations_are_checked_on_any_settings_and_steps(published: Published) -> None:
    quick = [
        row("reward_sweep", lr=1e-3, max_steps=150, beta=beta, final_kl=kl) for beta, kl in ((0.003, 2.0), (0.02, 1.0))
    ]
    assert judge(published, "beta-orders-kl", quick)[0] is True


def test_the_beginning_of_a_longer_run_decides_no_relation(published: Published) -> None:
    assert judge(published, "beta-orders-kl", [{**each, "decay_steps": 2000} for each in BROKEN]) == (None, "", [])
    begun = {**BROKEN[0], "decay_steps": 2000}
    held, _, cells = judge(published, "beta-orders-kl", [begun, *ORDERED[1:]])
    assert held is True
    assert begun not in cells
