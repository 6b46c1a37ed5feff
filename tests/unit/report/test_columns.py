from __future__ import annotations

import pandas as pd
import pytest

from rewardgrid.evaluate.samples import by_mode, summary
from rewardgrid.report.columns import (
    COLUMNS,
    MEASURED_COLUMNS,
    NOTHING,
    RENAMED,
    bounds,
    decimals,
    settings,
    show,
    table_schema,
)
from rewardgrid.study.cell import EVAL_MODES, Cell
from rewardgrid.study.contracts import SAMPLES


def test_every_column_says_what_it_means_and_in_which_unit_in_the_file_too() -> None:
    assert table_schema().names == list(COLUMNS)
    for field in table_schema():
        column = COLUMNS[field.name]
        assert field.metadata == {b"meaning": column.meaning.encode(), b"unit": column.unit.encode()}
        assert len(column.meaning) > 3
        # What is counted or measured has a unit, if only that it is a plain number; text has none.
        assert bool(column.unit) == (str(field.type) in ("int64", "double")), field.name
        assert column.unit != "1"


def test_units_are_told_apart_from_meanings() -> None:
    units = {
        name: COLUMNS[name].unit for name in ("final_kl", "happy", "seconds_to_085", "steps_to_085", "max_new_tokens")
    }
    assert units == {
        "final_kl": "nats per token",
        "happy": '"happy" per completion',
        "seconds_to_085": "seconds",
        "steps_to_085": "steps",
        "max_new_tokens": "tokens",
    }
    assert not any("nats" in column.meaning for name, column in COLUMNS.items() if name != "kl_cap")


def test_a_figure_has_the_range_of_its_kind() -> None:
    assert bounds("jaccard") == bounds("sl10") == bounds("final_reward", "happy_binary") == (0.0, 1.0)
    assert bounds("unique_openings") == (0.0, 20.0)
    assert bounds("final_reward", "happy_count") == bounds("final_kl") == bounds("happy") == (0.0, float("inf"))


def test_what_functions_of_ones_own_give_has_no_range() -> None:
    assert bounds("own_distinct") == bounds("final_reward", "alliteration") == (-float("inf"), float("inf"))


def test_metrics_of_ones_own_are_shown_like_other_figures() -> None:
    assert show("own_distinct", 0.6002344097942114) == "0.600"


def test_every_spec_field_is_a_column_of_its_own_type() -> None:
    assert set(Cell.model_fields) <= set(COLUMNS)
    kinds = {name: str(COLUMNS[name].kind) for name in ("rank", "lr", "prompt_eos", "routing_mode", "eval_modes")}
    assert kinds == {"rank": "int64", "lr": "double", "prompt_eos": "bool", "routing_mode": "string"} | {
        "eval_modes": "string"
    }


def test_no_measured_column_hides_a_spec_field() -> None:
    """``reward`` is what a cell is paid for; what it earned has other names."""
    assert not set(MEASURED_COLUMNS) & set(Cell.model_fields)


def test_everything_that_evaluation_measures_has_a_column() -> None:
    samples = pd.DataFrame({name: [1.0] * 20 for name in SAMPLES.names})
    samples = samples.assign(prompt="one day", completion="she ran. he sat, and slept.", tokens=9, ended=True)
    samples = samples.assign(windows=[[]] * 20, ends=[[0.1, 0.4]] * 20)
    full = summary(samples, 3, {"windows": 3.0, "ends": 0.2})
    assert {RENAMED.get(name, name) for name in full} <= set(MEASURED_COLUMNS)
    assert {f"{mode}_{name}" for mode in EVAL_MODES for name in by_mode(samples, 3)} <= set(MEASURED_COLUMNS)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("lr", 3e-4, "3e-4"),
        ("lr", 1e-5, "1e-5"),
        ("beta", 0.003, "0.003"),
        ("repetition_penalty", 1.0, "1"),
        ("final_reward", 0.9, "0.900"),
        ("final_kl", 123456.7, "1.23e+05"),
        ("seconds_to_085", 121.7, "122"),
        ("steps_to_085", 2000, "2000"),
        ("unique_first_sentences", 17.0, "17"),
        ("completion_length", 101.54, "101.5"),
        ("final_reward", None, NOTHING),
        ("final_reward", float("nan"), NOTHING),
        ("rank", None, NOTHING),
        ("verdict", "ok", "ok"),
        ("prompt_eos", False, "no"),
    ],
)
def test_a_value_is_written_with_its_columns_digits(column: str, value: object, text: str) -> None:
    assert show(column, value) == text


def test_a_mean_that_does_not_exist_is_a_dash_and_not_zero() -> None:
    assert decimals(None) == NOTHING
    assert decimals(0.0) == "0.000"


def test_a_configuration_is_named_in_words() -> None:
    row = {"rank": 1, "lr": 3e-4, "batch_size": 64, "reward": "sentence_length_5"}
    assert settings(["rank", "lr", "batch_size", "reward"], row) == "rank 1, lr 3e-4, batch 64, sentence_length_5"
