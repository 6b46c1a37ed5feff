"""docs/own_study.md and its example: they run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from rewardgrid.cli.run import by_base, evaluate_cells, train_cells
from rewardgrid.report.tables import check_columns, experiment_table
from rewardgrid.study.study import Study, load_study

FEW = {
    "defaults": {"max_steps": 2, "max_new_tokens": 24},
    "evaluation": {"samples": 20, "base_draws": 0},
    "experiments": {"dogs_routed": {"fixed": {"eval_samples": 4}}},
}


def example(results: Path, *overlays: object) -> Study:
    """The example with these laid over it."""
    files: list[Path | str] = ["config/config.yaml", "examples/dogs.yaml"]
    for number, content in enumerate([{"results": str(results / "results")}, *overlays]):
        files.append(results / f"{number}.yaml")
        (results / f"{number}.yaml").write_text(yaml.safe_dump(content))
    return load_study(files)


def test_the_example_runs_from_its_rewards_to_its_tables(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    study = example(tmp_path, FEW)
    train_cells(study, list(study.cells.values()), "cpu")
    evaluate_cells(study, list(study.cells.values()))
    table = pd.concat([experiment_table(study, name) for name in study.active])
    assert table["state"].tolist() == ["done"] * 3
    for row in table.itertuples():
        samples = pd.read_parquet(study.layout.samples(row.cell))
        full = samples[(samples["protocol"] == "full") & (samples["mode"] == "both")]
        dogs = [len(re.findall(r"\bdogs?\b", text)) for text in full["completion"]]
        shares = [number / len(text.split()) for number, text in zip(dogs, full["completion"], strict=True)]
        assert row.own_dogs == pytest.approx(sum(shares) / 20)
        paid = [float(number > 0) for number in dogs]
        expected = paid if row.reward == "dogs" else (full["sl10"] + 0.5 * pd.Series(paid, full.index)).tolist()
        assert full["reward"].tolist() == pytest.approx(expected, abs=1e-6)
    routed = table[table["method"] == "routing"].iloc[0]
    assert routed["detector"] == "crowded"
    assert routed["own"].startswith("crowded ")


def test_what_the_page_shows_is_a_configuration(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    shown = re.findall(r"```yaml\n(.*?)```", (root / "docs/own_study.md").read_text(), flags=re.DOTALL)
    assert len(shown) == 7
    study = example(tmp_path, *map(yaml.safe_load, shown))
    check_columns(study)
    assert len(study.grid["variants"]) == 6
    assert len(study.grid["search"]) == 80
    assert {str(cell.stop_when) for cell in study.grid["search"]} == {"degenerate for 50 steps"}
    (base, cells), *others = by_base(study, list(study.cells.values()))
    assert not others
    assert (base.name, len(cells)) == ("mine", len(study.cells))
    assert sorted(base.train_prompts().text) == sorted(Path("examples/prompts.txt").read_text().splitlines())
    assert sorted(base.eval_prompts().text) == sorted(Path("examples/eval_prompts.txt").read_text().splitlines())
