"""Large studies: how long they are planned."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm


def test_two_thousand_cells_are_planned_in_a_minute_and_two_gigabytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(root / "workflow/scripts"))
    import plan

    seconds, cpu, memory = plan.measure(2000)
    print(f"{seconds:.0f} s, {cpu:.0f} CPU-s, {memory:.0f} MiB", file=sys.stderr)
    assert seconds < 60
    assert memory < 2048
