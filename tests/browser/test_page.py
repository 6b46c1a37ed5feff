"""The page of runs in a browser, from disk: what a reader can do with it, and what its texts cannot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.page_study import HOSTILE, ODD, RIGHT, make_page_study

from rewardgrid.page.make import page
from rewardgrid.study.study import Study

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
pytestmark = pytest.mark.skipif(
    None in PROGRAMS.values(), reason="THE PAGE WAS NOT LOOKED AT: no Chromium here; tests/browser/up installs it"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_page_study(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def path(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("a page") / "report.html"
    made.write_text(page(study, list(study.cells)), encoding="utf-8")
    return made


class Reader:
    """Who looks at the page."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver, self.address = driver, path.as_uri()

    def open(self, fragment: str = "") -> None:
        """Load the page anew, and wait until it is drawn."""
        self.driver.get("about:blank")
        self.driver.get(self.address + fragment)
        self.until(lambda: self.run("return document.body.dataset.shown") is not None)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Any) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 60).until(lambda _: condition())

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [str(element.text) for element in self.all(selector)]

    def cells(self) -> list[str]:
        """Names of the cells that the table lists."""
        return self.texts("#table tbody a")

    def filter(self, column: str, text: str) -> None:
        box = self.one(f"#table input[aria-label='filter {column}']")
        box.clear()
        box.send_keys(text)

    def lines(self, place: str = "curves") -> dict[str, list[Any]]:
        """The drawn lines of the first panel by name; a mark or band has no line."""
        return {
            line["name"]: line["y"]
            for line in self.run(f"return document.getElementById('{place}').data ?? []")
            if line["xaxis"] == "x" and line["mode"].startswith("lines") and line.get("hoverinfo") != "skip"
        }


@pytest.fixture(scope="module")
def opened(path: Path) -> Iterator[Reader]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(PROGRAMS["chromium"])
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(PROGRAMS["chromedriver"])))
    try:
        yield Reader(driver, path)
    finally:
        driver.quit()


@pytest.fixture
def reader(opened: Reader) -> Iterator[Reader]:
    """The page, freshly opened; at the end of each test nothing has gone wrong in it, and nothing was fetched."""
    opened.open()
    yield opened
    assert opened.run("return performance.getEntriesByType('resource').map((each) => each.name)") == []
    said = [entry["message"] for entry in opened.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert said == []
    assert opened.run("return document.title") != "owned"
    assert opened.all("img") == []


def name_of(study: Study, beta: float, seed: int) -> str:
    (name,) = (cell.name for cell in study.grid["sweep"] if (cell.beta, cell.seed) == (beta, seed))
    return name


def test_the_table_filters_by_settings_figures_and_verdicts(reader: Reader) -> None:
    assert len(reader.cells()) == 6
    reader.filter("beta", "0.01..0.1")
    assert reader.cells() == ["beta 0.02, seed 1", "beta 0.02, seed 2", "routed, seed 1"]
    reader.filter("reward", "> 0.9")
    assert reader.cells() == []
    reader.filter("reward", "<= 0.9")
    reader.filter("verdict", "!border")
    assert reader.cells() == ["beta 0.02, seed 1", "beta 0.02, seed 2"]
    reader.filter("verdict", "")
    reader.filter("beta", "!0.02")
    reader.filter("reward", reader.run("return document.querySelector('#table tbody tr td:nth-child(9)').textContent"))
    assert reader.cells() == ["beta 0.003, seed 1"]  # 0.6015 is 0.602 in the table
    for half in ("> ", "!", "!>", "-"):
        reader.filter("reward", half)
        assert len(reader.cells()) == 3
    for word in ("(", "[a-", "\\", "*", "$&"):
        reader.filter("cell", word)
        assert reader.cells() == []
        reader.filter("cell", "!" + word)
        assert len(reader.cells()) == 3
    for column in ("beta", "reward", "verdict", "cell"):
        reader.filter(column, "x")
        reader.one(f"#table input[aria-label='filter {column}']").send_keys("\b")
    button = next(each for each in reader.all("#verdicts button") if "degenerate" in each.text)
    assert button.text == "2 degenerate"
    button.click()
    assert reader.cells() == ["beta 0.003, seed 1", "beta 0.003, seed 2"]


def test_a_filter_that_no_figure_can_pass_is_told(reader: Reader) -> None:
    told = reader.one("#misread")
    for text in ("> high", "0.5 to 0.9", "!0.5..x", "ok"):
        reader.filter("reward", text)
        assert told.text == 'reward: write a number, "> 0.9" or "0.1..0.5".'
        assert reader.one("#table input[aria-label='filter reward']").get_attribute("aria-invalid") == "true"
    for text in ("> 0.9", "!0.5..1e3", "3E-4", "–", "!", ">", ""):
        reader.filter("reward", text)
        assert told.text == ""
    for word in ("> border", "ok", "..."):
        reader.filter("verdict", word)
        assert told.text == ""


def test_a_cell_s_name_stays_in_sight(reader: Reader) -> None:
    reader.run(
        "document.querySelector('.scroll').style.width = '400px'; document.querySelector('.scroll').scrollLeft = 300"
    )
    name, scroll = reader.one("#table tbody a"), reader.one(".scroll")
    assert scroll.rect["x"] <= name.rect["x"] < scroll.rect["x"] + 100


def test_the_table_sorts_by_a_column_either_way(reader: Reader) -> None:
    head = next(each for each in reader.all("#table thead th") if each.text == "beta")
    head.click()
    up = reader.cells()
    assert up[0].startswith("beta 0.003")
    next(each for each in reader.all("#table thead th") if each.text.startswith("beta")).click()
    assert reader.cells()[0].startswith("broken")  # beta 0.5
    assert sorted(reader.cells()) == sorted(up)


def test_a_hidden_column_can_be_shown_and_filtered(reader: Reader) -> None:
    assert reader.all("#table input[aria-label='filter KL (exact)']") == []
    reader.one("#columns summary").click()
    next(each for each in reader.all("#columns label") if each.text == "KL (exact)").click()
    reader.filter("KL (exact)", "0.97")
    assert len(reader.cells()) == 5


def test_curves_of_ticked_cells_are_overlaid_and_seeds_share_a_line(reader: Reader) -> None:
    lines = reader.lines()
    assert list(lines) == ["beta 0.003", "beta 0.02"]
    last = lines["beta 0.003"][-1]
    # Both seeds' means of ten steps, 51 to 60, of step/60 + seed/100, at most 1.
    by_hand = sum(sum(min(1, step / 60 + seed / 100) for step in range(51, 61)) / 10 for seed in (1, 2)) / 2
    assert last == pytest.approx(by_hand, abs=1e-3)
    marks = [each for each in reader.run("return document.getElementById('curves').data") if each["mode"] == "markers"]
    assert {tuple(mark["x"]) for mark in marks} == {(25, 25)}
    reader.one("#grouped").click()
    reader.until(lambda: len(reader.lines()) == 4)
    reader.one("#table tbody tr:nth-child(5) input").click()
    reader.until(lambda: "routed, seed 1" in reader.lines())
    reader.one("#draw-none").click()
    reader.until(lambda: not reader.lines())


def test_a_cell_opens_where_it_turned_and_the_slider_moves_through_its_steps(reader: Reader, study: Study) -> None:
    reader.one("#table tbody a").click()
    reader.until(lambda: reader.one("#cell").is_displayed())
    # It hacks from step 25; step 40 is the first recorded one from there.
    assert reader.one("#at").text == "step 40 of 60"
    assert RIGHT in reader.one("#texts .text p").text.replace("10", "")
    assert "degenerate" in reader.one("#heads h1").text
    before = reader.one("#texts").text
    reader.one("#step").send_keys("\ue012")  # arrow to the left
    assert reader.one("#at").text == "step 20 of 60"
    assert reader.one("#texts").text != before
    assert f"cell={name_of(study, 0.003, 1)}&step=20" in reader.driver.current_url
    for _ in range(3):
        reader.one("#later").click()
    assert reader.one("#at").text == "final samples"
    assert not reader.one("#later").is_enabled()
    reader.one("#turns button").click()
    assert reader.one("#at").text == "step 40 of 60"


def test_lengths_happy_and_unlikely_tokens_are_marked(reader: Reader, study: Study) -> None:
    reader.open(f"#cell={name_of(study, 0.003, 1)}&step=1")
    first = "#texts .pair:nth-child(1)"
    assert reader.texts(f"{first} .sentence.right sub") == ["10"]
    assert reader.texts(f"{first} .sentence.far sub") == ["3"]
    assert reader.texts(f"{first} mark") == ["happy"]
    odd = next(each for each in reader.all("#texts .pair") if ODD[:11] in each.text)
    assert odd.find_elements("css selector", ".sentence.near sub")[0].text == "12"
    assert len(odd.find_elements("css selector", ".unlikely-3")) >= 3
    reader.one("[data-mark=lengths]").click()
    assert not reader.one(f"{first} sub").is_displayed()


def test_two_cells_stand_side_by_side_on_the_same_prompts(reader: Reader, study: Study) -> None:
    reader.open(f"#cell={name_of(study, 0.003, 1)}")
    assert reader.texts("#neighbours button")[:1] == ["beta 0.02 ↑"]
    reader.one("#neighbours button").click()
    reader.until(lambda: len(reader.all("#heads h1")) == 2)
    assert f"with={name_of(study, 0.02, 1)}" in reader.driver.current_url
    assert reader.one("#at").text == "step 40 of 60"
    for pair in reader.all("#texts .pair"):
        assert len(pair.find_elements("css selector", ".text")) == 2
        assert len(pair.find_elements("css selector", ".prompt")) == 1
    assert list(reader.lines("cell-curves")) == ["beta 0.003, seed 1", "beta 0.02, seed 1"]
    # Another seed met other prompts in training, and the same ones at the end.
    reader.open(f"#cell={name_of(study, 0.003, 1)}&with={name_of(study, 0.003, 2)}&step=20")
    assert "other prompts" in reader.one("#texts").text
    reader.open(f"#cell={name_of(study, 0.003, 1)}&with={name_of(study, 0.003, 2)}&step=final")
    assert reader.all("#texts .absent") == []


def test_of_steps_that_one_of_two_lacks_the_nearest_of_both_is_shown_and_said(reader: Reader, study: Study) -> None:
    """As of cells from an archive, which keeps each one's steps at which it turned."""
    own, other = name_of(study, 0.003, 2), name_of(study, 0.02, 2)
    reader.open(f"#cell={own}")
    assert reader.one("#at").text == "step 40 of 60"
    assert "Hacks from step 25; the next recorded step is 40." in reader.one("#texts").text
    reader.open(f"#cell={own}&with={other}")
    assert reader.one("#at").text == "step 40 of 60"
    assert reader.all("#texts .absent") == []
    assert "Both at step 60: of step 40 only one has texts." in reader.one("#texts").text
    assert "other prompts" not in reader.one("#texts").text
    reader.open(f"#cell={own}&with={other}&step=20")
    assert "Both at step" not in reader.one("#texts").text


def test_the_evidence_stands_beside_the_bases_draws(reader: Reader, study: Study) -> None:
    reader.open(f"#cell={name_of(study, 0.02, 1)}")
    assert reader.one("#why summary").text == "Why ok: commas 0.120 (base 0.050)"
    reader.one("#why summary").click()
    (row,) = reader.all("#evidence tr:not(:first-child)")
    assert row.text.split() == ["commas", "0.120", "0.050", "0.120", "0.220", "ok"]
    assert len(row.find_elements("css selector", "svg line")) == 1 + 3 + 1  # base, draws, cell


def test_labels_of_routing_are_shown(reader: Reader, study: Study) -> None:
    reader.open(f"#cell={study.grid['routed'][0].name}&step=1")
    assert reader.texts("#texts .pair:nth-child(1) .label") == ["eligible", "routed", "flagged"]


def test_texts_that_look_like_markup_are_shown_and_do_nothing(reader: Reader, study: Study) -> None:
    for step in ("1", "final"):
        reader.open(f"#cell={name_of(study, 0.003, 2)}&step={step}")
        reader.one("[data-mark=lengths]").click()
        shown = reader.run("return [...document.querySelectorAll('#texts p')].map((each) => each.textContent)")
        assert any(HOSTILE in text.replace(".6", ".") for text in shown) or any("onerror" in text for text in shown)
        assert reader.all("#texts img, #texts script") == []
    reader.open(f"#cell={study.grid['broken'][0].name}")
    assert "<img src=x onerror=" in reader.one("#heads").text


def test_markup_that_slipped_in_would_run_nothing(reader: Reader) -> None:
    reader.run(
        "document.body.insertAdjacentHTML('beforeend', '<a id=\"slip\" onclick=\"document.title=1\">x</a>');"
        "document.getElementById('slip').click();"
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title = 2'}))"
    )
    assert reader.run("return document.title") == "A small study"
    reader.driver.get_log("browser")  # the refusals


def test_a_menu_closes_with_escape_and_a_cell_can_be_opened_by_keyboard(reader: Reader) -> None:
    from selenium.webdriver.common.keys import Keys

    reader.one("#columns summary").send_keys(Keys.ENTER)
    assert reader.one("#columns .menu").is_displayed()
    reader.one("#columns summary").send_keys(Keys.ESCAPE)
    assert not reader.one("#columns .menu").is_displayed()
    reader.one("#table tbody a").send_keys(Keys.ENTER)
    reader.until(lambda: reader.one("#cell").is_displayed())
    reader.driver.back()
    reader.until(lambda: reader.one("#overview").is_displayed())
