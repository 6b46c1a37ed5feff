"""The blind check: how samples are drawn, how agreement is counted, and how far reader and verdict agree."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from tests.agreement import (
    PAGE,
    RECORDED,
    Confusion,
    blind_confusion,
    false_alarms,
    false_onsets,
    kappa,
    measured,
    opposite,
    page,
    reading,
    untouched,
)
from tests.blind import LABELLED, TEXTS, TOGETHER, draw, main, other_draws, untouched_course, untouched_rollouts
from tests.runs import run
from tests.tiny import make_cell

from rewardgrid.base.load import Base
from rewardgrid.evaluate.cell import evaluate_base
from rewardgrid.study.study import Evaluation
from rewardgrid.study.verdict import LABELS
from rewardgrid.train.engines.native import train

SMALL = Evaluation(samples=24, published_samples=10, published_top_k=5, base_draws=0)


@pytest.fixture(scope="module")
def evaluated(base: Base) -> Path:
    """The tiny base with its evaluation, which serves as a cell too."""
    evaluate_base(base, SMALL, make_cell().max_new_tokens, base.directory / "evaluation")
    return base.directory


# How samples are drawn


def test_the_sheet_names_no_cell_and_its_order_tells_nothing(evaluated: Path, tmp_path: Path) -> None:
    main(["draw", "--cells", str(evaluated), "--each", "20", "--out", str(tmp_path)])
    sheet, key = (tmp_path / "sheet.md").read_text(), pd.read_parquet(tmp_path / "key.parquet")
    names = [line.removeprefix("## ") for line in sheet.splitlines() if line.startswith("## ")]
    assert names == sorted(set(key["sample"]))
    assert sheet.count("\n- **") == 20
    assert evaluated.name not in sheet
    assert set(key["cell"]) == {evaluated.name}


def test_a_sample_holds_as_many_texts_of_both_protocols_and_none_twice(evaluated: Path) -> None:
    drawn = draw([evaluated], 20, 0)
    for _, texts in drawn.groupby("sample"):
        assert texts["protocol"].tolist() == ["full"] * (TOGETHER // 2) + ["top_k"] * (TOGETHER // 2)
    assert not drawn.duplicated(["protocol", "prompt"]).any()


def test_another_seed_draws_other_texts(evaluated: Path) -> None:
    first, again, other = (draw([evaluated], 20, seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not set(first["sample"]) & set(other["sample"])
    assert list(first["completion"]) != list(other["completion"])


def test_what_is_not_labelled_is_not_closed(evaluated: Path, tmp_path: Path) -> None:
    main(["draw", "--cells", str(evaluated), "--each", "20", "--out", str(tmp_path)])
    sheet = ["--sheet", str(tmp_path), "--cells", str(evaluated), "--base", str(evaluated), "--purpose", "check"]
    with pytest.raises(SystemExit, match="has no label for 2 samples"):
        main(["close", *sheet])


def test_further_draws_of_a_base_are_measured_against_its_own(evaluated: Path) -> None:
    first, second = other_draws(evaluated, 2, SMALL)
    assert first["unlikely_windows"] != second["unlikely_windows"]
    assert {"prompts", "jaccard", "completion_length"} <= first.keys() == second.keys()


# How agreement is counted


def test_a_cell_is_read_as_its_middle_sample() -> None:
    assert reading(["ok", "degenerate", "ok"]) == "ok"
    assert reading(["ok", "degenerate", "borderline"]) == "borderline"
    assert reading(["ok", "degenerate"]) == "ok"


def test_kappa_is_agreement_beyond_chance() -> None:
    # Of 50, 35 agree: 0.7. By chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5. Kappa (0.7 - 0.5) / (1 - 0.5).
    found = Confusion(
        {
            ("ok", "ok"): 20,
            ("ok", "degenerate"): 5,
            ("degenerate", "ok"): 10,
            ("degenerate", "degenerate"): 15,
        }
    )
    assert kappa(found) == pytest.approx(0.4)
    assert kappa(Confusion({("ok", "ok"): 3, ("degenerate", "degenerate"): 9})) == 1


# What was read


def test_every_sample_has_a_label_and_the_bad_ones_a_reason() -> None:
    labels, texts = pd.read_csv(LABELLED, dtype=str), pd.read_parquet(TEXTS)
    assert set(labels["sample"]) == set(texts["sample"])
    assert labels["sample"].is_unique
    assert set(labels["label"]) <= set(LABELS)
    assert labels["date"].notna().all()
    assert labels.loc[labels["label"] != "ok", "reason"].notna().all()


def test_sixty_texts_of_each_of_at_least_twelve_cells_were_read() -> None:
    texts, cells = pd.read_parquet(TEXTS), measured()["cells"]
    assert len(cells) >= 12
    assert texts["cell"].value_counts().to_dict() == dict.fromkeys(cells, 60)


def test_the_verdict_says_what_a_blind_reader_says() -> None:
    found = blind_confusion("check")
    assert kappa(found) >= 0.8, found
    assert opposite(found) == 0, found


def test_few_further_draws_of_the_base_are_not_ok() -> None:
    assert false_alarms() <= 0.05 * len(measured()["other_draws"])


def test_the_page_shows_the_agreement_as_it_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "write it anew: python -m tests.agreement"


def test_untouched_rollouts_are_those_that_training_records(base: Base, tmp_path: Path) -> None:
    cell = make_cell(max_steps=1, repetition_penalty=1.3)
    (directory,) = run(train, [cell], base, tmp_path)
    recorded = pd.read_parquet(directory / "train" / "rollouts.parquet")
    # The first step is drawn before anything has been learnt.
    drawn = untouched_rollouts(base, cell, [0])
    assert drawn["completion"].tolist() == recorded["completion"].tolist()
    assert [list(ids) for ids in drawn["ids"]] == [list(ids) for ids in recorded["ids"]]
    found = untouched_course(base, cell, 2)
    assert found["step"].tolist() == [0, 1, 2]
    # Step 0 is the reference, which has its own 5 % beyond its 95 % quantile.
    assert found["unlikely_ends"][0] == pytest.approx(0.05, abs=0.02)


def test_a_run_that_never_leaves_its_base_is_hardly_ever_called_not_ok() -> None:
    labels = untouched()
    assert len(labels) >= 600
    assert "degenerate" not in labels
    assert labels.count("borderline") / len(labels) <= 0.05
    lasting, two_in_a_row = false_onsets(labels, RECORDED)
    assert lasting <= 0.01 < two_in_a_row
