"""The page as one file: libraries, styles and data inlined, nothing fetched, and nothing run that is not listed here.

Plotly draws the curves and DataTables the table: both are kept up, come whole in Python packages (plotly, itables), and
need no ``eval``, as Vega does. They and the data lie in the page as gzip in base64, which its own script unpacks:
plotly.js is then 2 MB of every page instead of 4.8. The content security policy names the hash of each script and
forbids every connection, so that even markup that slipped into the page would run and load nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from string import Template
from typing import Any

SCRIPTS = ("data", "table", "curves", "reader", "page")
"""The page's own, in this order."""


def library(package: str, path: str) -> str:
    """The text of a file that a Python package brings along."""
    return (files(package) / path).read_text(encoding="utf-8")


def as_script(module: str) -> str:
    """The DataTables module of itables as a classic script that defines ``DataTable``.

    Raises:
        ValueError: it exports no default, as another version might.
    """
    exported = re.search(r"export\s*\{([^{}]*)\}\s*;?", module)
    name = re.search(r"([\w$]+) as default", exported[1]) if exported else None
    if exported is None or name is None:
        raise ValueError("itables' dt_bundle.js exports no DataTable: use the version in constraints.txt")
    own = f"{module[: exported.start()]}globalThis.DataTable={name[1]};{module[exported.end() :]}"
    return f"(()=>{{{own}\n}})();"


def libraries() -> dict[str, str]:
    """JavaScript that others maintain, by the id of its element."""
    return {
        "plotly": library("plotly", "package_data/plotly.min.js"),
        "datatables": as_script(library("itables", "html/dt_bundle.js")),
    }


def own_script() -> str:
    """The page's own JavaScript."""
    parts = (library("rewardgrid.page", f"assets/{name}.js") for name in SCRIPTS)
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"


def packed(text: str) -> str:
    """Text as gzip in base64: letters that mean nothing to HTML. Equal texts give equal letters."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def policy(scripts: Iterable[str]) -> str:
    """A content security policy that allows these scripts and no connection to anywhere."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def whole(title: str, overview: Mapping[str, Any], blocks: Mapping[str, Any]) -> str:
    """The page.

    Args:
        title: plain text.
        overview: what is unpacked when the page opens.
        blocks: the rest, by the id under which ``overview`` names it; unpacked when it is looked at.
    """
    found, own = libraries(), own_script()
    data = {"overview": _json(overview)} | {name: _json(block) for name, block in blocks.items()}
    elements = [
        f'<script type="application/gzip" id="data-{name}">{packed(text)}</script>'
        for name, text in (found | data).items()
    ]
    return Template(library("rewardgrid.page", "assets/page.html")).substitute(
        policy=policy([*found.values(), own]),
        title=html.escape(title),
        style=library("rewardgrid.page", "assets/page.css"),
        data="\n".join(elements),
        script=own,
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
