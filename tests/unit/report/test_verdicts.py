"""Why a cell has its verdict, as the report says it."""

from __future__ import annotations

from collections.abc import Callable

from tests.trees import SWEEP, Tree, judged

from rewardgrid.report.columns import COLUMNS, RENAMED
from rewardgrid.report.tables import experiment_table, rows_of
from rewardgrid.report.verdicts import SIGNALS, deciding, evidence_table, nearness, other_draws
from rewardgrid.study.verdict import _CRITERIA

Make = Callable[..., Tree]


def test_a_signal_is_as_near_as_the_share_of_its_way_from_the_base_to_the_limit() -> None:
    assert nearness(judged("jaccard", 0.13, 0.12, 0.16, 0.26)) == (0.13 - 0.12) / (0.16 - 0.12)
    # Worse when smaller: the same.
    assert nearness(judged("unique_openings", 15, 20, 10, 5)) == 0.5
    assert nearness(judged("comma_rate", 0.0, 0.05, 0.12, 0.22)) < 0


def test_what_decides_is_every_signal_that_is_not_ok_or_else_the_nearest_to_its_limit() -> None:
    far, near = judged("comma_rate", 0.06, 0.05, 0.12, 0.22), judged("jaccard", 0.15, 0.12, 0.16, 0.26)
    bad = judged("fragment_share", 0.4, 0.04, 0.19, 0.39, "degenerate")
    assert deciding([far, near]) == [near]
    assert deciding([bad, far, near]) == [bad]
    assert deciding([]) == []


def test_the_table_shows_value_base_and_limits_of_finished_cells_only(tree: Make) -> None:
    sweep = tree(reward_sweep=SWEEP)
    first, second = sweep.study.grid["reward_sweep"][:2]
    sweep.finish(first, verdict="degenerate")
    sweep.finish(second)
    table = evidence_table(sweep.study.layout, rows_of(experiment_table(sweep.study, "reward_sweep")))
    assert table is not None
    lines = str(table).splitlines()[2:]
    assert lines == [
        "| beta 0.003, penalty 1.05, seed 42 | degenerate | Jaccard (256) | 0.300 | 0.120 | 0.156 | 0.264 "
        "| degenerate |",
        "| beta 0.003, penalty 1.05, seed 123 | ok | commas | 0.120 | 0.050 | 0.120 | 0.220 | ok |",
    ]


def test_without_a_finished_cell_there_is_nothing_to_explain(tree: Make) -> None:
    sweep = tree(reward_sweep=SWEEP)
    assert evidence_table(sweep.study.layout, rows_of(experiment_table(sweep.study, "reward_sweep"))) is None


def test_further_draws_of_the_base_are_counted_by_their_verdict() -> None:
    assert (
        other_draws({"other_draws": [{"verdict": "ok"}, {"verdict": "borderline"}, {"verdict": "ok"}]}) == "2 of 3 ok"
    )
    assert other_draws({"other_draws": []}) == "none was drawn"


def test_the_columns_explain_every_signal_of_a_verdict() -> None:
    judged = {name for criterion in _CRITERIA for name in criterion.signals}
    # Jaccard and first sentences of the full samples have names of their own in a table.
    assert set(SIGNALS) == {RENAMED.get(name, name) for name in judged}
    assert set(SIGNALS) <= set(COLUMNS)
