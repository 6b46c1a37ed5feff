"""The page as a file: nothing is fetched, nothing runs that is not ours, and equal results give equal bytes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import pytest
from tests.page_study import HOSTILE, make_page_study

from rewardgrid.page.file import as_script, packed, whole
from rewardgrid.page.make import page
from rewardgrid.study.study import Study


class Elements(HTMLParser):
    """What a browser would see: the scripts' text by id, and every tag's attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = str(dict(attrs).get("id", "own")) if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_page_study(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def text(study: Study) -> str:
    return page(study, list(study.cells))


def unpacked(letters: str) -> str:
    return gzip.decompress(base64.b64decode(letters)).decode()


def test_the_policy_allows_exactly_the_scripts_of_the_page_and_no_connection(text: str) -> None:
    found = Elements(text)
    (policy,) = (own["content"] for tag, own in found.tags if own.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    run = [found.scripts["own"], unpacked(found.scripts["data-plotly"]), unpacked(found.scripts["data-datatables"])]
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in run} == set(allowed)


def test_no_element_names_a_file_or_an_address(text: str) -> None:
    for tag, attributes in Elements(text).tags:
        assert "src" not in attributes, tag
        assert tag != "link"
        assert not str(attributes.get("href", "#")).strip("#"), attributes
        assert not any(name.startswith("on") for name in attributes), attributes


def test_texts_lie_in_the_page_as_letters_without_meaning(text: str) -> None:
    assert HOSTILE not in text
    blocks = [
        json.loads(unpacked(own)) for name, own in Elements(text).scripts.items() if name.startswith("data-cell-")
    ]
    assert any("".join(found["pieces"]) == HOSTILE for block in blocks for found in block["final"])


def test_a_title_is_no_markup_and_equal_pages_have_equal_bytes() -> None:
    title = "<script>alert(1)</script>"
    made = whole(title, {"title": title}, {})
    assert title not in made
    assert html.escape(title) in made
    assert made == whole(title, {"title": title}, {})
    assert packed("a") == packed("a")


def test_another_kind_of_datatables_bundle_is_told_apart() -> None:
    assert "globalThis.DataTable=b;" in as_script("var b=1;export{a as x,b as default};")
    with pytest.raises(ValueError, match=r"constraints\.txt"):
        as_script("var b=1;")
