"""What a table's file says of its own columns."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewardgrid.study import contracts

SCHEMAS = {name: schema for name, schema in vars(contracts).items() if isinstance(schema, pa.Schema)}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_says_what_it_means_and_what_is_a_number_in_which_unit(name: str) -> None:
    for field in SCHEMAS[name]:
        meaning, unit = (field.metadata[key].decode() for key in (b"meaning", b"unit"))
        assert len(meaning) > 3
        assert unit not in ("1", meaning)
        assert "nats" not in meaning
        number = str(field.type) not in ("string", "bool")
        assert bool(unit) == number, field.name


def test_a_written_file_says_it_too(tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    frame = pd.DataFrame({name: [1] if name == "step" else [0.5] for name in contracts.HISTORY.names})
    contracts.write_table(path, frame, contracts.HISTORY)
    assert pq.read_schema(path).field("kl").metadata == {
        b"meaning": b"mean k3 estimate of KL(policy || base) over completion tokens",
        b"unit": b"nats per token",
    }
