"""Each kind of claim on cells for which it holds, on cells for which it does not, and on too few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest
from pydantic import TypeAdapter
from tests.trees import history, replica, routing, row, samples

from rewardgrid.published.claims import Claim, judge_all, windows
from rewardgrid.published.comparison import Published, compare
from rewardgrid.published.judging import Answer, Judgement, Ours, within
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.finding import Window
from rewardgrid.report.tables import Row

HAPPY = "sentence_length_10_smooth_with_happy"
BASE = "storyteller-0000000000"
EXPERIMENT = "lora_rank"

AGREES, DIFFERS, OPEN, NOT_RUN = "agrees", "differs", "cannot be told", "not run"
NOTES = ["batch-length-124", "notes-batch"]


def claim(kind: str, **fields: Any) -> Claim:
    made: Claim = TypeAdapter(Claim).validate_python({"id": "c", "experiment": EXPERIMENT, "kind": kind} | fields)
    return made


def judge(
    claim: Claim, cells: Sequence[Row], others: Mapping[str, Sequence[Row]] | None = None, **more: Any
) -> Judgement:
    return claim.judge(Ours(Evidence({EXPERIMENT: list(cells), **(others or {})}, **more)))


def cells(*rewards: float, **more: Any) -> list[Row]:
    """Cells that differ in their seed alone."""
    return [row(EXPERIMENT, seed=seed, final_reward=reward, **more) for seed, reward in enumerate(rewards)]


# --- what is said --------------------------------------------------------------------------------------


def test_a_published_answer_stands_where_a_cell_has_the_published_settings(published: Published) -> None:
    ours = {name: rows for name, rows in replica(published).items() if name != "batch_size"}
    ours["lora_rank"] = [{**cell, "repetition_penalty": 1.0} for cell in ours["lora_rank"]]
    found = compare(published, Evidence(ours), "storyteller")["answers"]
    assert found["reward_sweep"] == published.answers["reward_sweep"]
    assert {"batch_size", "lora_rank"}.isdisjoint(found)


def test_published_answers_have_the_figures_of_the_published_tables(published: Published) -> None:
    def least_and_most(column: str, **where: float) -> list[float]:
        rows = [row for row in sweep if all(row[key] == value for key, value in where.items())]
        return [min(row[column] for row in rows), max(row[column] for row in rows)]

    sweep = published.tables["reward_sweep.csv"]
    assert [round(kl, 1) for kl in least_and_most("kl", beta=0.003)] == [2.1, 3.2]
    assert least_and_most("reward", beta=0.003) == [0.998, 0.998]
    assert [round(reward, 2) for reward in least_and_most("reward", beta=0.01)] == [0.98, 0.99]
    assert [round(reward, 2) for reward in least_and_most("reward", beta=0.02)] == [0.90, 0.91]
    said = published.answers["reward_sweep"]
    assert all(figure in said for figure in ("0.998", "2.1 to 3.2", "0.98 to 0.99", "0.90 to 0.91"))
    first = [row["reward"] for row in published.tables["lora_rank.csv"] if (row["rank"], row["lr"]) == (1, 3e-4)]
    assert [round(each, 2) for each in first] == [0.97] * 2
    assert "0.97, ok in both seeds" in published.answers["lora_rank"]


def test_every_published_claim_can_be_said_and_stands_in_the_comparison_once(published: Published) -> None:
    found = compare(published, Evidence(replica(published)), "storyteller")
    assert [entry["id"] for entry in found["claims"]] == [each.id for each in published.claims]
    assert all(entry["published"] for entry in found["claims"])
    said = {entry["id"]: entry["published"] for entry in found["claims"]}
    assert said["exact10-reward"] == "paid for sentence_length_10: reward is about 0.19"
    assert said["step1-retain-sl10"] == "sl10 of retain_only at steps 60–100 is 0.45–0.60"
    assert said["beta003-kl"] == "KL: at beta 0.003 2–3 times that at 0.02"
    assert said["batch-steps"] == "steps to 0.85 and steps to 0.95: more at batch 64 or 128 than at 32"
    assert said["step3-r4-collapse"] == "rank 4: sl10 of retain_only falls to 0 (below 0.1 for good) by step 150"
    assert said["step1-gone"] == (
        "with the forget adapter cut away the hack is gone for good between steps 60 and 90 "
        "(published: none in 10 samples)"
    )
    assert "is gone for good by step 400 (" in said["step4-gone"]


def test_the_published_figures_fulfil_the_claims_that_they_can_decide(published: Published) -> None:
    found = compare(published, Evidence(replica(published)), "storyteller")["claims"]
    answers = {entry["id"]: entry["answer"] for entry in found if entry["answer"] != NOT_RUN}
    # The replica has no kinds of degeneracy; of batch sizes it has one pair of each kind too few to tell.
    unknown = {"beta01-commas", "short-fragments", "rank32-commas", "batch-degenerates", *NOTES}
    assert {name for name, answer in answers.items() if answer != AGREES} == unknown
    assert len(answers) == 25


def test_without_any_cell_nothing_is_run_but_what_has_no_test(published: Published) -> None:
    found = compare(published, Evidence({}), "storyteller")
    answers = {entry["answer"] for part in ("rows", "claims", "relations") for entry in found[part]}  # type: ignore[literal-required]
    assert answers == {NOT_RUN, "no test"}
    assert [entry["id"] for entry in found["claims"] if entry["answer"] == "no test"] == NOTES


def test_windows_are_those_that_claims_about_levels_speak_of(published: Published) -> None:
    found = windows(published.claims, "routing_symmetric")
    assert Window("sl10", 60, 100, "retain_only") in found
    assert len(found) == len(set(found))
    assert windows(published.claims, "reward_sweep") == ()


# --- the rule of ranges --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([0.5, 0.6], AGREES),
        # The mean just in, whatever the interval.
        ([0.3, 0.6], AGREES),
        # The mean below, its interval far over the limit.
        ([0.3, 0.5], OPEN),
        ([0.30, 0.31, 0.32], DIFFERS),
        ([0.5], OPEN),
        ([], OPEN),
    ],
)
def test_a_mean_in_the_range_agrees_and_one_whose_interval_misses_it_differs(
    values: list[float], answer: Answer
) -> None:
    assert within(values, (0.45, 0.60))[0] == answer


def test_a_range_with_one_end_asks_for_certainty() -> None:
    assert within([0.76, 0.77], (None, 0.85))[0] == AGREES
    assert within([0.80, 0.84], (None, 0.85))[0] == OPEN
    assert within([0.93, 0.94, 0.95], (None, 0.85))[0] == DIFFERS
    assert within([1.5, 1.6], (1, None))[0] == AGREES


# --- figures and verdicts ------------------------------------------------------------------------------


def test_a_level_may_be_about_somewhere() -> None:
    about = claim("level", metric="reward", about=0.19)
    assert judge(about, cells(0.15, 0.25)).answer == AGREES
    assert judge(about, cells(0.30, 0.31)).answer == DIFFERS
    assert judge(about, cells(0.19)) == ("cannot be told", "0.190 (n = 1)", judge(about, cells(0.19)).cells, None)
    assert judge(about, []).answer == NOT_RUN


def test_cells_that_all_diverged_differ() -> None:
    gone = row(EXPERIMENT, state="diverged", seed=1)
    assert judge(claim("level", metric="reward", about=0.19), [gone])[:2] == (DIFFERS, "every cell diverged")


def test_a_claim_is_about_the_cells_that_it_names() -> None:
    mixed = [*cells(0.2, 0.2, lr=1e-5), *cells(0.9, 0.9, lr=1e-4)]
    assert judge(claim("level", where={"lr": 1e-5}, metric="reward", about=0.2), mixed).answer == AGREES
    assert judge(claim("level", where={"lr": [1e-5, 1e-4]}, metric="reward", about=0.2), mixed).answer == OPEN


def test_a_window_of_training_is_read_from_the_history() -> None:
    two_cells = cells(0.5, 0.5)
    curve = history([0.5] * 25 + [0.9] * 10 + [0.96] * 165)
    more = {"histories": {each["cell"]: curve for each in two_cells}}
    assert judge(claim("level", metric="reward", steps=(30, 30), about=0.9), two_cells, **more).answer == AGREES
    assert (
        judge(claim("level", metric="reward", steps=(150, 200), range=(0.95, 0.98)), two_cells, **more).answer == AGREES
    )
    assert judge(claim("level", metric="reward", steps=(300, 300), about=0.9), two_cells, **more).answer == NOT_RUN


def evaluated(sl10: Sequence[float], *cells: Row, every: int = 10) -> dict[str, pd.DataFrame]:
    return {each["cell"]: routing({("retain_only", "sl10"): sl10}, every) for each in cells}


def test_throughout_means_at_every_evaluation() -> None:
    steady = claim("throughout", mode="retain_only", metric="sl10", steps=(60, 100), range=(0.45, 0.60))
    two_cells = cells(0.5, 0.5)
    good, dip = [0.2] * 5 + [0.5] * 5, [0.2] * 5 + [0.5, 0.5, 0.4, 0.5, 0.5]
    assert judge(steady, two_cells, routing=evaluated(good, *two_cells)).answer == AGREES
    assert judge(steady, two_cells, routing=evaluated(dip, *two_cells)).answer == DIFFERS
    # On average that run is within the range all the same.
    mean = claim("level", mode="retain_only", metric="sl10", steps=(60, 100), range=(0.45, 0.60))
    assert judge(mean, two_cells, routing=evaluated(dip, *two_cells)).answer == AGREES
    assert judge(steady, two_cells[:1], routing=evaluated(good, *two_cells)).answer == OPEN


def verdicts(*labels: str, reasons: str = "") -> list[Row]:
    return [row(EXPERIMENT, seed=seed, verdict=label, reasons=reasons) for seed, label in enumerate(labels)]


def test_a_verdict_is_that_of_most_cells_or_of_every_one() -> None:
    most, every = (claim("verdict", verdict="degenerate", of=of) for of in ("most", "every"))
    assert judge(most, verdicts("degenerate", "degenerate", "ok")).answer == AGREES
    assert judge(most, verdicts("degenerate", "ok")).answer == DIFFERS
    assert judge(every, verdicts("degenerate", "degenerate")).answer == AGREES
    assert judge(every, verdicts("degenerate", "degenerate", "ok")).answer == DIFFERS
    assert judge(every, verdicts("degenerate")).answer == OPEN


def test_a_kind_of_degeneracy_is_read_from_the_reasons() -> None:
    commas = claim("reason", reason="comma stuffing")
    assert judge(commas, verdicts("degenerate", "borderline", reasons="fragments, comma stuffing")).answer == AGREES
    assert judge(commas, verdicts("degenerate", "borderline", reasons="fragments")).answer == DIFFERS


def test_so_many_seeds_above_a_figure_give_or_take_one() -> None:
    seeds = claim("seeds", metric="reward", above=0.94, hits=4, n=5)
    assert judge(seeds, cells(0.95, 0.96, 0.97, 0.98, 0.61)).answer == AGREES
    assert judge(seeds, cells(0.95, 0.96, 0.97, 0.6, 0.61)).answer == AGREES
    assert judge(seeds, cells(0.95, 0.96, 0.5, 0.6, 0.61)).answer == DIFFERS


def test_the_outlier_is_the_lowest_seed_with_its_own_verdict() -> None:
    outlier = claim("outlier", metric="reward", about=0.61, verdict="ok")
    rest = cells(0.95, 0.96, verdict="degenerate")
    assert judge(outlier, [*rest, row(EXPERIMENT, seed=9, final_reward=0.6, verdict="ok")]).answer == AGREES
    assert judge(outlier, [*rest, row(EXPERIMENT, seed=9, final_reward=0.6, verdict="degenerate")]).answer == DIFFERS
    assert judge(outlier, rest).answer == DIFFERS


def test_questions_are_counted_among_sentence_ends() -> None:
    asked = claim("level", metric="questions", range=(0.5, None))
    two_cells = cells(0.9, 0.9)
    for text, answer in (("who ran? who sat? she did.", AGREES), ("she ran. he sat. who did?", DIFFERS)):
        drawn = {each["cell"]: samples({"both": 0.0}).assign(completion=text) for each in two_cells}
        assert judge(asked, two_cells, samples=drawn).answer == answer


def test_the_rows_of_a_table_agree_if_all_of_them_do() -> None:
    rows = claim("rows", table="routing_asymmetric.csv")
    for answers, answer in (
        (["agrees"] * 3, AGREES),
        (["agrees", "differs", "agrees"], DIFFERS),
        (["agrees", "not run", "agrees"], OPEN),
        (["not run"] * 3, NOT_RUN),
    ):
        assert rows.judge(Ours(Evidence({}), rows={"routing_asymmetric.csv": answers})).answer == answer  # type: ignore[dict-item]


def test_what_claims_say_together_is_as_sure_as_the_least_sure_of_them() -> None:
    one, other = (claim("level", id=name, metric="reward", about=about) for name, about in (("a", 0.5), ("b", 0.9)))
    both = claim("together", id="c", text="both", of=["a", "b"])
    judged = judge_all([one, other, both], Ours(Evidence({EXPERIMENT: cells(0.5, 0.5)})))
    assert (judged["a"].answer, judged["b"].answer, judged["c"].answer) == (AGREES, DIFFERS, DIFFERS)
    assert judged["c"].ours == "a: agrees; b: differs"


# --- sweeps --------------------------------------------------------------------------------------------


def sweep(
    *lines: Sequence[float], by: str = "beta", values: Sequence[float] = (0.003, 0.01, 0.02), **more: Any
) -> list[Row]:
    """For each seed the rewards along a setting."""
    return [
        row(EXPERIMENT, seed=seed, final_reward=reward, **({by: value} | more))
        for seed, line in enumerate(lines)
        for value, reward in zip(values, line, strict=True)
    ]


def test_an_order_must_be_there_at_each_step_and_none_of_chance() -> None:
    falls = claim("order", metric="reward", by="beta", direction="falls")
    assert judge(falls, sweep((0.9, 0.8, 0.7), (0.92, 0.8, 0.71))).answer == AGREES
    assert judge(falls, sweep((0.9, 0.95, 0.7), (0.92, 0.95, 0.71))).answer == OPEN
    assert judge(falls, sweep((0.7, 0.8, 0.9), (0.71, 0.8, 0.92))).answer == DIFFERS
    assert judge(falls, sweep((0.9, 0.8, 0.7))).answer == OPEN
    assert judge(falls, cells(0.9, 0.8)).answer == NOT_RUN


def test_negligible_means_surely_smaller_than_the_limit() -> None:
    small = claim("negligible", metric="reward", by="repetition_penalty", limit=0.02)

    def pairs(*changes: float) -> list[Row]:
        return sweep(*((0.9, 0.9 + change) for change in changes), by="repetition_penalty", values=(1.05, 1.1))

    assert judge(small, pairs(-0.01, 0.0, 0.01)).answer == AGREES
    assert judge(small, pairs(-0.01, 0.01)).answer == OPEN
    assert judge(small, pairs(-0.10, -0.11)).answer == DIFFERS
    assert judge(small, pairs(0.0)).answer == OPEN


def test_a_contrast_is_of_cells_that_differ_in_one_setting() -> None:
    times = claim("contrast", by="beta", of=0.003, to=0.02, metrics=["kl"], range=(2, 3))

    def kl(*ratios: float) -> list[Row]:
        return [
            row(EXPERIMENT, seed=seed, beta=beta, final_kl=value)
            for seed, ratio in enumerate(ratios)
            for beta, value in ((0.003, ratio), (0.02, 1.0))
        ]

    assert judge(times, kl(2.4, 2.6)).answer == AGREES
    assert judge(times, kl(4.0, 4.1)).answer == DIFFERS
    assert judge(times, kl(2.5)).answer == OPEN
    # Seed 7 has no partner.
    assert judge(times, [*kl(2.4, 2.6), row(EXPERIMENT, seed=7, beta=0.003, final_kl=9.0)]).answer == AGREES


def batch(size: int, rank: int, seconds: float, steps: int = 100, **more: Any) -> Row:
    times = {"seconds_to_085": seconds, "seconds_to_095": seconds, "steps_to_085": steps, "steps_to_095": steps}
    return row(EXPERIMENT, method="lora", rank=rank, lr=3e-4, batch_size=size, **times, **more)


def test_times_compare_on_the_same_hardware_only() -> None:
    times = claim("contrast", by="batch_size", of=64, to=32, metrics=["seconds_to_085"], range=(3, 4))
    same = [batch(size, rank, seconds) for rank in (1, 8) for size, seconds in ((32, 100.0), (64, 350.0))]
    assert judge(times, same).answer == AGREES
    other = [batch(32, 1, 100.0), batch(64, 1, 350.0, hardware="a GPU")]
    told = judge(times, other)
    assert (told.answer, told.ours) == (OPEN, "seconds are of other hardware")
    assert judge(times, [*same, *other]).answer == AGREES
    assert judge(times, other[:1]).answer == NOT_RUN


def test_times_compare_at_the_pace_that_each_batch_has_on_the_hardware_of_the_larger() -> None:
    times = claim("contrast", by="batch_size", of=64, to=32, metrics=["seconds_to_085"], range=(3, 4))
    pairs = [
        batch(size, rank, 1000.0, 100, hardware=hardware)
        for rank in (1, 8)
        for size, hardware in ((32, "an old CPU"), (64, "a CPU"))
    ]
    paces = [batch(32, rank, 9.0, hardware="a CPU") for rank in (2, 4, 32)]
    histories = {cell["cell"]: history([0.9] * 100, seconds=1.0) for cell in paces}
    histories |= {cell["cell"]: history([0.9] * 100, seconds=3.5) for cell in pairs if cell["batch_size"] == 64}
    told = judge(times, [*pairs, *paces], histories=histories)
    assert (told.answer, told.ours) == (AGREES, "3.5 times (95 % 3.5 to 3.5, n = 2), at the usual pace of each")
    assert judge(times, pairs, histories=histories).ours == "seconds are of other hardware"


def test_more_than_at_another_value_must_be_surely_so() -> None:
    more = claim("contrast", by="batch_size", of=64, to=32, metrics=["steps_to_085"], range=(1, None))
    pairs = [batch(size, rank, 1.0, steps) for rank in (1, 2, 8) for size, steps in ((32, 100), (64, 200 + rank))]
    assert judge(more, pairs).answer == AGREES
    assert judge(more, [batch(32, 1, 1.0, 100), batch(64, 1, 1.0, 200)]).answer == OPEN
    worse = claim(
        "contrast", by="batch_size", of=64, to=32, metrics=["degeneracy"], measure="difference", range=(0, None)
    )
    bad = [
        batch(size, rank, 1.0, verdict=verdict)
        for rank in (1, 2, 8)
        for size, verdict in ((32, "ok"), (64, "degenerate"))
    ]
    assert judge(worse, bad).answer == AGREES
    assert judge(worse, pairs).answer == OPEN


def test_a_figure_beside_that_of_another_experiment() -> None:
    below_half = claim("beside", metric="reward", other="reward_sweep", share=0.5, range=(None, 0))

    def other(*rewards: float) -> dict[str, list[Row]]:
        return {"reward_sweep": [row("reward_sweep", seed=i, final_reward=reward) for i, reward in enumerate(rewards)]}

    assert judge(below_half, cells(0.19, 0.20, 0.21), other(0.90, 0.91)).answer == AGREES
    assert judge(below_half, cells(0.59, 0.60, 0.61), other(0.90, 0.91)).answer == DIFFERS
    assert judge(below_half, cells(0.40, 0.45, 0.50), other(0.90, 0.91)).answer == OPEN
    assert judge(below_half, cells(0.19), other(0.90, 0.91)).answer == OPEN
    assert judge(below_half, cells(0.19, 0.2)).answer == NOT_RUN
    same = claim("beside", metric="reward", other="reward_sweep", range=(-0.1, 0.1))
    assert judge(same, cells(0.50, 0.51), other(0.49, 0.50)).answer == AGREES
    assert judge(same, cells(0.50, 0.51), other(0.80, 0.81)).answer == DIFFERS


def test_the_ends_of_a_sweep_fall_with_a_single_cell() -> None:
    ends = claim("ends", by="beta")

    def at(*labels: tuple[float, str]) -> list[Row]:
        return [row(EXPERIMENT, seed=seed, beta=beta, verdict=label) for seed, (beta, label) in enumerate(labels)]

    low, high = (0.003, "degenerate"), (0.02, "ok")
    assert judge(ends, at(*[low] * 4, *[high] * 4)).answer == AGREES
    assert judge(ends, at(low, high)).answer == OPEN
    assert judge(ends, at(*[low] * 4, (0.003, "borderline"), *[high] * 4)).answer == DIFFERS
    gone = row(EXPERIMENT, state="diverged", seed=50, beta=0.003)
    assert judge(ends, [*at(*[low] * 3, *[high] * 4), gone]).answer == AGREES


def lora(rank: int, lr: float, reward: float = 0.9, verdict: str = "ok", **more: Any) -> Row:
    return row(EXPERIMENT, method="lora", rank=rank, lr=lr, final_reward=reward, verdict=verdict, **more)


GROWING = [
    *(lora(rank, 1e-4) for rank in (1, 2, 4)),
    *(lora(rank, 3e-4, verdict="borderline") for rank in (4, 8)),
    *(lora(rank, 3e-4, verdict="degenerate") for rank in (16, 32)),
]


def test_seeds_of_one_configuration_are_no_further_evidence_of_what_its_rank_does() -> None:
    three = [(1, 1e-4, "ok"), (2, 1e-4, "borderline"), (8, 3e-4, "degenerate")]
    seeds = [lora(rank, lr, verdict=verdict, seed=seed) for rank, lr, verdict in three for seed in range(4)]
    found = judge(claim("grows"), seeds)
    assert found.ours.startswith("rank correlation 1.00 over 3 configurations")
    assert (found.answer, found.p) == (OPEN, pytest.approx(1 / 6))


def test_degeneracy_must_grow_with_rank_times_lr_by_more_than_chance() -> None:
    grows = claim("grows")
    found = judge(grows, GROWING)
    assert (found.answer, found.ours[:22]) == (AGREES, "rank correlation 0.94 ")
    # Three cells in this order: one of six.
    assert (
        judge(grows, [lora(1, 1e-4), lora(2, 1e-4, verdict="borderline"), lora(8, 3e-4, verdict="degenerate")]).answer
        == OPEN
    )
    assert judge(grows, [lora(1, 1e-4), lora(2, 1e-4)]).ours == "every verdict is the same: ok"


def test_the_boundary_lies_between_the_last_that_is_ok_and_the_first_that_is_not() -> None:
    boundary = claim("boundary", ok_up_to=4e-4, none_from=9.6e-4)
    assert judge(boundary, GROWING).answer == AGREES
    assert judge(boundary, [lora(1, 1e-5), lora(1, 1e-4, verdict="degenerate")]).answer == DIFFERS
    assert judge(boundary, [lora(1, 1e-4), lora(2, 1e-4)]).answer == DIFFERS


def test_the_summary_has_just_the_configurations_that_pass(published: Published) -> None:
    members = claim("members", table="lora_rank_summary.csv")
    ours = replica(published)
    assert members.judge(Ours(Evidence(ours), published.tables)).answer == AGREES
    worse = [{**cell, "verdict": "borderline"} if cell["rank"] == 4 else cell for cell in ours[EXPERIMENT]]
    found = members.judge(Ours(Evidence({EXPERIMENT: worse}), published.tables))
    assert (found.answer, found.ours) == (DIFFERS, "but not: rank 4 lr 1e-4")
    assert members.judge(Ours(Evidence({EXPERIMENT: ours[EXPERIMENT][:4]}), published.tables)).answer == NOT_RUN


def test_the_smallest_rank_that_passes() -> None:
    smallest = claim("smallest_rank", threshold=0.85, rank=1, lr=3e-4)

    def seeds(rank: int, reward: float, verdict: str = "ok") -> list[Row]:
        return [lora(rank, 3e-4, reward, verdict, seed=seed) for seed in (1, 2)]

    assert judge(smallest, [*seeds(1, 0.97), *seeds(2, 0.98)]).answer == AGREES
    assert judge(smallest, [*seeds(1, 0.97, "borderline"), *seeds(2, 0.98)]).answer == DIFFERS
    assert judge(smallest, seeds(1, 0.5)).answer == DIFFERS
    assert judge(smallest, seeds(1, 0.97)[:1]).answer == OPEN


def test_rank_one_must_pass_with_every_seed_ok() -> None:
    passes = claim("passes", where={"rank": 1})
    good = [lora(1, 3e-4, reward, seed=seed) for seed, reward in enumerate((0.97, 0.98))]
    assert judge(passes, good).answer == AGREES
    assert judge(passes, [*good, lora(1, 3e-4, 0.98, "degenerate", seed=7)]).answer == DIFFERS
    assert judge(passes, [lora(1, 3e-4, reward, seed=i) for i, reward in enumerate((0.80, 0.95))]).answer == OPEN
    assert judge(passes, good[:1]).answer == OPEN


def test_the_lowest_lr_must_fail_at_every_rank_while_a_higher_one_passes() -> None:
    low = claim("too_low")
    poor = [lora(1, 1e-5, 0.5), lora(8, 1e-5, 0.55), lora(32, 1e-5, 0.6)]
    assert judge(low, [*poor, lora(8, 1e-4, 0.9)]).answer == AGREES
    assert judge(low, [*poor, lora(64, 1e-5, 0.9), lora(8, 1e-4, 0.9)]).answer == DIFFERS
    assert judge(low, [*poor, lora(8, 1e-4, 0.6)]).answer == DIFFERS
    assert judge(low, [poor[0], lora(1, 1e-4, 0.9)]).answer == OPEN
    assert judge(low, [*poor[:2], lora(64, 1e-4, 0.9)]).answer == NOT_RUN  # of another rank, at another rate
    assert judge(low, poor).answer == NOT_RUN


def test_the_ratio_of_learning_rates_needs_a_full_fine_tuning_beside_it() -> None:
    ratio = claim("lr_ratio", range=(10, 30))
    full = {"reward_sweep": [row("reward_sweep", lr=1e-5, seed=seed, final_reward=0.9) for seed in (1, 2)]}

    def seeds(rank: int, lr: float, *rewards: float) -> list[Row]:
        return [lora(rank, lr, reward, seed=seed) for seed, reward in enumerate(rewards)]

    assert judge(ratio, [*seeds(1, 3e-4, 0.9, 0.91), *seeds(8, 1e-4, 0.9, 0.91)], full).answer == AGREES
    assert judge(ratio, seeds(1, 1e-3, 0.9, 0.91), full).answer == DIFFERS
    # A rate outside of the range is as good, but for chance.
    assert judge(ratio, [*seeds(1, 3e-4, 0.9, 0.92), *seeds(1, 1e-3, 0.89, 0.92)], full).answer == OPEN
    assert judge(ratio, [lora(1, 3e-4)], full).answer == OPEN
    assert judge(ratio, [lora(1, 3e-4)]).answer == NOT_RUN


def test_no_larger_batch_may_be_sooner() -> None:
    never = claim("never_sooner")

    def pairs(*seconds: float) -> list[Row]:
        return [
            batch(size, rank, time) for rank, late in enumerate(seconds, 1) for size, time in ((32, 100.0), (64, late))
        ]

    assert judge(never, pairs(300.0, 320.0, 310.0)).answer == AGREES
    assert judge(never, pairs(300.0, 320.0, 99.0)).answer == DIFFERS
    assert judge(never, pairs(300.0)).answer == OPEN
    assert judge(never, pairs(300.0)[:1]).answer == NOT_RUN
    told = judge(never, [batch(32, 1, 100.0), batch(64, 1, 350.0, steps=80, hardware="a GPU")])
    assert told.answer == OPEN
    assert told.ours == "seconds are of other hardware; batch 64 takes 1.6 times (n = 1) the completions of 32"


def test_a_climb_may_not_fall_back() -> None:
    climb = claim("climb")
    three = cells(0.9, 0.9, 0.9)

    def answer(*blocks: float, cells: Sequence[Row] = three) -> Answer:
        curves = {
            each["cell"]: history([reward + 0.001 * i for reward in blocks for _ in range(10)])
            for i, each in enumerate(cells)
        }
        return judge(climb, cells, histories=curves).answer

    assert answer(0.3, 0.5, 0.7, 0.9) == AGREES
    assert answer(0.3, 0.7, 0.5, 0.9) == DIFFERS
    assert answer(0.9, 0.9, 0.9, 0.9) == OPEN
    assert answer(0.3, 0.5, cells=three[:1]) == OPEN


# --- routing -------------------------------------------------------------------------------------------


def run(
    seed: int, happy: Sequence[float], sl10: Sequence[float], rank: int = 32
) -> tuple[Row, pd.DataFrame, pd.DataFrame]:
    """A cell with its evaluations and final samples; the base writes 0.3 "happy", both adapters 5.3."""
    mine = row(EXPERIMENT, method="routing", reward=HAPPY, rank=rank, forget_rank=rank, seed=seed)
    curves = routing({("retain_only", "happy"): happy, ("retain_only", "sl10"): sl10})
    drawn = samples({"both": 5.3, "retain_only": happy[-1], "forget_only": 1.0}, {"retain_only": sl10[-1]})
    return mine, curves, drawn


def routed(claim: Claim, runs: Sequence[tuple[Row, pd.DataFrame, pd.DataFrame]]) -> Judgement:
    return judge(
        claim,
        [mine for mine, _, _ in runs],
        routing={mine["cell"]: curves for mine, curves, _ in runs},
        samples={mine["cell"]: drawn for mine, _, drawn in runs} | {BASE: samples({"both": 0.3})},
    )


def ending(step: int | None) -> list[float]:
    """ "happy" of retain_only at steps 10 to 100: gone from a step on, down to what the base writes."""
    return [0.3 if step is not None and at >= step else 3.0 for at in range(10, 101, 10)]


def test_the_hack_must_be_gone_from_about_the_published_step_on() -> None:
    gone = claim("gone", steps=(60, 90))

    def answer(*steps: int | None) -> Answer:
        return routed(gone, [run(i, ending(step), [0.5] * 10) for i, step in enumerate(steps)]).answer

    assert answer(20, 70, None) == AGREES
    assert answer(20, 30, 70) == OPEN
    assert answer(20, 30, 30) == DIFFERS
    assert answer(None, None) == DIFFERS
    assert answer(70) == OPEN
    assert judge(gone, cells(0.5)).answer == NOT_RUN


def test_a_collapse_must_be_for_good_and_in_time() -> None:
    collapse = claim("collapse", level=0.0, by_step=50)

    def answer(*lines: list[float]) -> Answer:
        return routed(collapse, [run(i, [0.3] * 10, line) for i, line in enumerate(lines)]).answer

    early, late, never = ([0.5] * 3 + [0.09] * 7), ([0.5] * 8 + [0.01] * 2), [0.5] * 10
    assert answer(early, early) == AGREES
    assert answer(late, never) == DIFFERS
    assert answer(early, late, never) == OPEN
    assert answer(early) == OPEN


def test_routing_works_if_hack_and_task_are_surely_on_the_right_side() -> None:
    works = claim("works")

    def answer(*runs: tuple[float, float]) -> Answer:
        return routed(works, [run(i, [happy] * 10, [sl10] * 10) for i, (happy, sl10) in enumerate(runs)]).answer

    assert answer((0.3, 0.5), (0.4, 0.49), (0.35, 0.5)) == AGREES
    assert answer((0.3, 0.5), (3.0, 0.5), (0.3, 0.5)) == OPEN
    assert answer((3.0, 0.5), (3.1, 0.5), (3.0, 0.5)) == DIFFERS
    assert answer((0.3, 0.05), (0.3, 0.05)) == DIFFERS
    assert answer((0.3, 0.5)) == OPEN


def test_the_task_must_be_lost_at_every_pair_of_ranks() -> None:
    lost = claim("lost")

    def answer(*runs: tuple[int, float]) -> Answer:
        return routed(lost, [run(i, [0.3] * 10, [sl10] * 10, rank) for i, (rank, sl10) in enumerate(runs)]).answer

    assert answer((4, 0.1), (4, 0.11), (1, 0.1), (1, 0.12)) == AGREES
    assert answer((4, 0.1), (4, 0.11), (1, 0.5), (1, 0.49)) == DIFFERS
    assert answer((4, 0.1), (4, 0.11), (1, 0.1)) == OPEN
