"""The blind check: how texts are drawn, how agreement is counted, and how far reader and verdict agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from tests.blind import CELLS, LABELLED, TEXTS, confusion, draw, kappa, main, reading
from tests.tiny import make_cell

from rewardgrid.base.load import Base
from rewardgrid.evaluate.cell import evaluate_base
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Evaluation
from rewardgrid.study.thresholds import Thresholds

ALLOWED = {"ok", "borderline", "degenerate"}


@pytest.fixture(scope="module")
def evaluated(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base's directory with its evaluation, which serves as a cell."""
    root = tmp_path_factory.mktemp("blind") / "some-cell"
    settings = Evaluation(samples=20, published_samples=10, published_top_k=5, base_draws=0)
    evaluate_base(base, settings, make_cell().max_new_tokens, root / "evaluation")
    return root


def test_the_sheet_names_no_cell_and_its_order_tells_nothing(evaluated: Path, tmp_path: Path) -> None:
    main(["draw", "--cells", str(evaluated), "--each", "12", "--out", str(tmp_path)])
    sheet, key = pd.read_csv(tmp_path / "sheet.csv"), pd.read_csv(tmp_path / "key.csv")
    assert list(sheet.columns) == ["sample", "prompt", "completion"]
    assert sheet["sample"].is_monotonic_increasing
    assert sheet["sample"].str.fullmatch("[0-9a-f]{10}").all()
    assert "some-cell" not in (tmp_path / "sheet.csv").read_text()
    assert key["protocol"].value_counts().to_dict() == {"full": 6, "top_k": 6}


def test_another_seed_draws_other_texts(evaluated: Path) -> None:
    first, again, other = (draw([evaluated], 10, seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert set(first["sample"]) != set(other["sample"])
    assert list(first["completion"]) != list(other["completion"])


def test_what_is_not_labelled_is_not_closed(evaluated: Path, tmp_path: Path) -> None:
    main(["draw", "--cells", str(evaluated), "--each", "4", "--out", str(tmp_path)])
    sheet = ["--sheet", str(tmp_path), "--cells", str(evaluated), "--base", str(evaluated), "--purpose", "check"]
    with pytest.raises(SystemExit, match="has no label for 4 samples"):
        main(["close", *sheet])


def test_a_cell_is_read_as_its_middle_text() -> None:
    assert reading(["ok", "degenerate", "ok"]) == "ok"
    assert reading(["ok", "degenerate", "borderline"]) == "borderline"
    assert reading(["ok", "degenerate"]) == "ok"


def test_kappa_is_agreement_beyond_chance() -> None:
    # Of 50, 35 agree: 0.7. By chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5. Kappa (0.7 - 0.5) / (1 - 0.5).
    found = Counter({("ok", "ok"): 20, ("ok", "degenerate"): 5, ("degenerate", "ok"): 10, ("degenerate",) * 2: 15})
    assert kappa(found) == pytest.approx(0.4)  # type: ignore[arg-type]
    assert kappa(Counter({("ok", "ok"): 3, ("degenerate", "degenerate"): 9})) == 1


def test_every_label_is_of_a_text_and_says_why() -> None:
    labels, texts = pd.read_csv(LABELLED, dtype=str), pd.read_csv(TEXTS, dtype=str)
    assert set(labels["sample"]) == set(texts["sample"])
    assert labels["sample"].is_unique
    assert set(labels["label"]) <= ALLOWED
    assert set(texts["cell"]) == set(read_json(CELLS))
    unsaid = labels[(labels["label"] != "ok") & labels["reason"].isna()]
    assert unsaid.empty


@pytest.mark.parametrize("purpose", sorted({cell["purpose"] for cell in read_json(CELLS).values()}))
def test_the_verdict_says_what_a_blind_reader_says(purpose: str) -> None:
    labels, texts = pd.read_csv(LABELLED, dtype=str), pd.read_csv(TEXTS, dtype=str)
    found = confusion(labels, texts, read_json(CELLS), purpose, Thresholds())
    assert kappa(found) >= 0.8, found
    assert found["ok", "degenerate"] == found["degenerate", "ok"] == 0, found
