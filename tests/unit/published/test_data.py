from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.trees import REPOSITORY, row

from rewardgrid.published.comparison import Published, load_published
from rewardgrid.published.data import happy_at_end
from rewardgrid.published.replica import SETTINGS, is_published, references
from rewardgrid.report.tables import spec_row
from rewardgrid.study.errors import ConfigError
from rewardgrid.study.study import load_study


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "config" / "published", tmp_path / "published"))


def problems(directory: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_published(directory)
    return str(error.value)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_published_files_are_read_whole(published: Published) -> None:
    assert {name: len(rows) for name, rows in published.tables.items()} == {
        "reward_sweep.csv": 12,
        "lora_rank.csv": 21,
        "lora_rank_summary.csv": 4,
        "batch_size.csv": 6,
        "routing_asymmetric.csv": 6,
    }
    assert (len(published.claims), len(published.relations)) == (72, 14)
    assert published.tables["lora_rank.csv"][3]["unique_first_sentences"] is None
    assert published.tables["lora_rank.csv"][0]["lr"] == 3e-4
    assert published.tables["reward_sweep.csv"][5]["note"] == "comma-stuffing but varied content"


def test_the_full_configuration_is_the_published_study() -> None:
    """Every cell of config.yaml, but those of the controls, has the settings under which figures are compared."""
    study = load_study([REPOSITORY / "config" / "config.yaml"])
    controls = {"exact_match_penalty", "lora_alpha", "batch_size_scaled", "routing_long"}
    assert set(study.grid) == {*SETTINGS, *controls}
    for name in SETTINGS:
        for cell in study.grid[name]:
            assert is_published(spec_row(cell), name), f"{name}: {cell.name}"


@pytest.mark.parametrize(
    "change",
    [{"max_steps": 200}, {"lr": 1e-3}, {"repetition_penalty": 1.2}, {"batch_size": 64}, {"beta": 0.05}],
)
def test_a_cell_of_other_settings_is_not_the_published_one(change: dict[str, float]) -> None:
    assert is_published(row("reward_sweep", seed=7), "reward_sweep")
    assert not is_published(row("reward_sweep", **change), "reward_sweep")


def test_every_broken_field_is_reported_with_file_row_and_column(directory: Path) -> None:
    edit(directory / "reward_sweep.csv", "0.998,0.209", "much,0.209")
    edit(directory / "lora_rank.csv", "0.974,15,0.142,ok", "0.974,15,0.142,fine")
    edit(directory / "lora_rank.csv", "1,3e-4,42", ",3e-4,42")
    edit(directory / "routing_asymmetric.csv", "0 from step 70", "gone soon")
    text = problems(directory)
    assert "reward_sweep.csv: row 1, reward: read 'much'; write a number" in text
    assert "lora_rank.csv: row 1, verdict: read 'fine'; write ok, borderline or degenerate" in text
    assert "lora_rank.csv: row 2, rank: read ''; write a whole number" in text
    assert "routing_asymmetric.csv: row 1, retain_happy: read 'gone soon'; write 0 from step N" in text
    assert text.startswith("4 problems")


def test_infinity_is_no_figure(directory: Path) -> None:
    edit(directory / "reward_sweep.csv", "0.998,0.209", "inf,0.209")
    assert "row 1, reward: read 'inf'; write a number" in problems(directory)


def test_a_missing_file_a_wrong_heading_and_a_short_row_are_reported(directory: Path) -> None:
    (directory / "batch_size.csv").unlink()
    edit(directory / "reward_sweep.csv", "beta,", "Beta,")
    edit(directory / "lora_rank_summary.csv", "1,3e-4,0.97,1.1", "1,3e-4,0.97")
    text = problems(directory)
    assert "batch_size.csv: (file): read None; no such file" in text
    assert "reward_sweep.csv: line 1: " in text
    assert "write the columns beta, repetition_penalty, seed" in text
    assert "lora_rank_summary.csv: row 1: " in text
    assert "write 4 fields" in text


def test_claims_are_checked_with_a_hint(directory: Path) -> None:
    path = directory / "claims.yaml"
    edit(path, "kind: level, metric: reward, about: 0.19", "kind: level, metrics: reward, about: 0.19")
    edit(path, "kind: climb", "kind: clim")
    text = problems(directory)
    assert "claims.yaml: claims.7.metrics: read 'reward'; unknown key; did you mean \"metric\"?" in text
    assert "claims.41.kind: read 'clim'; write one of " in text
    assert 'did you mean "climb"?' in text


def test_claims_that_cannot_be_judged_are_reported(directory: Path) -> None:
    path = directory / "claims.yaml"
    edit(path, "metric: reward, about: 0.19", "metric: reward")
    assert "claims.7.range: read None; write one of range (with at least one end) and about" in problems(directory)
    edit(path, "kind: level, metric: reward}", "kind: level, metric: reward, about: 0.19}")
    edit(path, "id: exact10-diverse, experiment: exact_match", "id: exact10-reward, experiment: exact_mach")
    edit(path, "where: {reward: sentence_length_5}, kind: level", "where: {rewards: sentence_length_5}, kind: level")
    edit(path, "table: routing_asymmetric.csv", "table: routing.csv")
    edit(path, "kind: ends, by: beta", "kind: ends, by: betas")
    edit(path, "of: [step1-gone, step1-throughout]", "of: [step1-gone, step4-gone]")
    text = problems(directory)
    assert "claims.8.id: read 'exact10-reward'; stands twice" in text
    assert "claims.8.experiment: read 'exact_mach'; write one of" in text
    assert "claims.10: read 'rewards'; write a spec field; did you mean \"reward\"" in text
    assert "table: read 'routing.csv'; write one of" in text
    assert "relations.2: read 'betas'; write a spec field; did you mean \"beta\"" in text
    assert "of: read 'step4-gone'; name claims that stand before this one" in text


def test_happy_of_the_asymmetric_table_is_read_in_its_three_forms() -> None:
    assert happy_at_end("0 from step 70") == (True, 70, 0.0, 0.0)
    assert happy_at_end("0.1 at step 100") == (False, 100, 0.1, 0.1)
    assert happy_at_end("0.5-1.1 at step 100") == (False, 100, 0.5, 1.1)
    with pytest.raises(ValueError, match="soon"):
        happy_at_end("soon")


def test_points_for_pictures_stand_beside_cells_of_the_published_settings_only(published: Published) -> None:
    ours = row("reward_sweep", beta=0.003, repetition_penalty=1.1, seed=42)
    short = row("reward_sweep", beta=0.003, repetition_penalty=1.1, seed=123, max_steps=100)
    (point,) = references(published.tables, "reward_sweep", [ours, short])
    assert (point.cell, point.kl, point.reward, point.verdict) == (ours, 2.94, 0.998, "degenerate")
    assert references(published.tables, "lora_rank", [ours]) == ()
    missing = row("lora_rank", method="lora", rank=32, lr=3e-5, seed=42, state="missing")
    (point,) = references(published.tables, "lora_rank", [missing])
    assert (point.cell, point.kl, point.reward, point.verdict) == (missing, None, 0.892, "borderline")
    assert references(published.tables, "exact_match", [ours]) == ()
