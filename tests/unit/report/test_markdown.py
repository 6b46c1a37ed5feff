from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardgrid.report.markdown import code, cut, grid, md


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", "a &#124; b"),
        ("`code`", "&#96;code&#96;"),
        ("<b>bold</b> & more", "&#60;b&#62;bold&#60;/b&#62; &#38; more"),
        ("*stress* and ~~no~~", "&#42;stress&#42; and &#126;&#126;no&#126;&#126;"),
        ("[here](javascript:x)", "&#91;here&#93;(javascript:x)"),
        ("&lt;script&gt;", "&#38;lt;script&#38;gt;"),
        ("a\n\n# heading", "a &#35; heading"),
        ("$x$ @someone", "&#36;x&#36; &#64;someone"),
        ("retain_only", "retain_only"),
        ("_stress_ __more__", "&#95;stress&#95; &#95;&#95;more&#95;&#95;"),
        ("see https://x.y and www.z.org", "see https&#58;//x.y and www&#46;z.org"),
        ('once upon a time, she said: "no!"', 'once upon a time, she said: "no!"'),
        ("\u202eevil\x07", "\ufffdevil\ufffd"),
    ],
)
def test_nothing_in_a_text_becomes_markup(text: str, shown: str) -> None:
    assert md(text) == shown


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_escaped_text_reads_as_it_was_and_holds_nothing_special(text: str) -> None:
    shown = str(md(text))
    assert not re.search(r"[<>`*\[\]|\\~$@\n]|#(?!\d+;)|&(?!#\d+;)", shown)
    plain = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    assert html.unescape(shown) == plain


def test_a_name_cannot_leave_its_code_span() -> None:
    assert code("lora-r1_lr3e-4_s42") == "`lora-r1_lr3e-4_s42`"
    assert code("a`|<b>") == "`a??? b?`".replace(" ", "")


def test_a_long_text_is_cut_between_words() -> None:
    assert cut("one two three", 9) == "one two …"
    assert cut("one\ntwo  three", 13) == "one two three"


def test_a_pipe_in_a_cell_does_not_make_another_column() -> None:
    table = str(grid(["a|b", "c"], [["x|y", md("z")], ["`", "-"]], [False, True]))
    assert table.splitlines() == ["| a&#124;b | c |", "|:--|--:|", "| x&#124;y | z |", "| &#96; | - |"]
