"""How programs end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, sys
from rewardgrid.cli.program import run_program

atexit.register(lambda: print("frozen" if gc.get_freeze_count() else "searched"))

def main():
    sys.stdout.write("unflushed ")
    {body}

run_program(main)
"""


@pytest.mark.parametrize(("body", "status"), [("return 0", 0), ("return 2", 2), ("raise KeyError", 1)])
def test_a_program_leaves_with_its_status_its_output_and_no_search_for_garbage(body: str, status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == status
    assert ended.stdout == "unflushed frozen\n"


def test_an_encoding_without_blocks_of_curves_ends_no_program() -> None:
    code = PROGRAM.format(body='print("▁█ reward"); return 0')
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True
    )
    assert ended.stdout == b"unflushed ?? reward\nfrozen\n"
