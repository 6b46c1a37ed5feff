"""``python -m rewardgrid page``."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import pytest
import yaml
from tests.page_study import make_page_study

from rewardgrid.__main__ import main
from rewardgrid.study.study import Study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The page's study in a directory of its own, where two more seeds have not begun."""
    made = make_page_study(tmp_path)
    config = made.model_dump(mode="json", exclude={"published"}) | {"published": None}
    config["experiments"]["sweep"]["grids"][0]["seed"] += [3]
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return made


def cells_on(path: Path) -> list[str]:
    (letters,) = re.findall(r'id="data-overview">([^<]*)<', path.read_text(encoding="utf-8"))
    overview = json.loads(gzip.decompress(base64.b64decode(letters)))
    return [cell["name"] for cell in overview["cells"]]


def test_the_page_is_made_of_what_has_begun_or_of_chosen_cells(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["page"]) == 0
    assert capsys.readouterr().out.strip() == f"{study.results}/report.html"
    # A cell that diverged has begun; those of seed 3 have not.
    assert cells_on(Path(study.results) / "report.html") == list(study.cells)

    one, other = study.grid["sweep"][0].name, study.grid["routed"][0].name
    assert main(["page", other, one, "--out", "chosen.html"]) == 0
    assert cells_on(Path("chosen.html")) == [one, other]
    assert main(["page", "sweep", "seed=1,3", "--out", "chosen.html"]) == 0
    assert [name.rsplit("_", 1)[1][:2] for name in cells_on(Path("chosen.html"))] == ["s1", "s3", "s1", "s3"]


def test_a_study_that_has_not_begun_has_no_page(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    Path(study.results).rename("elsewhere")
    assert main(["page"]) == 2
    assert "no cell has begun" in capsys.readouterr().err
    assert not Path(study.results).exists()
