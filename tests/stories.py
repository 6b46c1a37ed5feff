"""Two hundred stories as a teacher told them, for tests that need natural text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rewardgrid.study.contracts import TOLD, read_table

FILE = Path(__file__).parent / "data" / "told.parquet"


def told() -> pd.DataFrame:
    """Schema ``study.contracts.TOLD``; a fifth of them came to no end."""
    return read_table(FILE, TOLD)
