from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rewardgrid.report.published import (
    NAMED_RELATIONS,
    SETTINGS,
    Claim,
    Published,
    claim_kind,
    happy_at_end,
    is_published,
    load_published,
)
from rewardgrid.report.relations import RELATIONS
from rewardgrid.study.errors import ConfigError
from rewardgrid.study.study import load_study

from .trees import REPOSITORY, row


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
    assert (len(published.claims), len(published.relations)) == (28, 14)
    assert published.tables["lora_rank.csv"][3]["unique_first_sentences"] is None
    assert published.tables["lora_rank.csv"][0]["lr"] == 3e-4
    assert published.tables["reward_sweep.csv"][5]["note"] == "comma-stuffing but varied content"


def test_every_relation_without_a_check_has_a_rule(published: Published) -> None:
    assert set(RELATIONS) == set(NAMED_RELATIONS)
    assert {relation.id for relation in published.relations if relation.check is None} == set(RELATIONS)


def test_the_full_configuration_is_the_published_study() -> None:
    """Every cell of config.yaml, but those of the control, has the settings under which figures are compared."""
    study = load_study([REPOSITORY / "config" / "config.yaml"])
    assert set(study.grid) == {*SETTINGS, "batch_size_scaled"}
    for name in SETTINGS:
        for cell in study.grid[name]:
            assert is_published(cell.model_dump(mode="json"), name), f"{name}: {cell.name}"


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
    edit(path, "metric: reward, mean: 0.19", "metrics: reward, mean: 0.19")
    text = problems(directory)
    assert "claims.yaml: claims.0.metrics" in text
    assert 'did you mean "metric"' in text


def test_claims_that_cannot_be_checked_are_reported(directory: Path) -> None:
    path = directory / "claims.yaml"
    edit(path, "metric: reward, mean: 0.19", "metric: reward")
    edit(path, "id: exact10-diverse, experiment: exact_match", "id: exact10-reward, experiment: exact_mach")
    edit(path, "where: {reward: sentence_length_5}, metric", "where: {rewards: sentence_length_5}, metric")
    edit(path, "table: routing_asymmetric.csv", "table: routing.csv")
    edit(path, "id: low-beta-degenerates", "id: low-beta-degenerate")
    edit(path, "by: beta, direction: decreasing", "by: betas")
    text = problems(directory)
    assert "claims.0: read 'exact10-reward'; says nothing that can be checked" in text
    assert "claims.1.id: read 'exact10-reward'; stands twice" in text
    assert "claims.1.experiment: read 'exact_mach'; write one of" in text
    assert "claims.2.where: read 'rewards'; write a spec field; did you mean \"reward\"" in text
    assert "table: read 'routing.csv'; write one of" in text
    assert "relations.2.id: read 'low-beta-degenerate'; has no rule; give it a check; did you mean" in text
    assert "relations.0.check.by: read 'betas'; write a spec field" in text
    assert "relations.0.check: read" in text


def test_happy_of_the_asymmetric_table_is_read_in_its_three_forms() -> None:
    assert happy_at_end("0 from step 70") == (True, 70, 0.0, 0.0)
    assert happy_at_end("0.1 at step 100") == (False, 100, 0.1, 0.1)
    assert happy_at_end("0.5-1.1 at step 100") == (False, 100, 0.5, 1.1)
    with pytest.raises(ValueError, match="soon"):
        happy_at_end("soon")


def test_every_published_claim_is_of_a_kind(published: Published) -> None:
    kinds = {claim.id: claim_kind(claim) for claim in published.claims}
    assert None not in kinds.values()
    assert kinds["exact10-diverse"] == "verdict"
    assert kinds["step1-retain-happy-zero"] == "zero_from"
    assert kinds["step3-r1-collapse"] == "collapse"
    assert kinds["step1-forget-sl10"] == "value"
    assert kinds["step3b-table"] == "table"
    assert kinds["lora-lr-ratio"] == "finding"
    assert claim_kind(Claim(id="x", experiment="lora_rank", finding="best_tradeoff")) is None
