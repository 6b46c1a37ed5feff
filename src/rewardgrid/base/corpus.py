"""Stories from files, and what a source of stories hands over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rewardgrid.study.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Stories:
    """The stories of a base, split by split, and what is known of their origin and of the model's making.

    ``facts`` may grow until both splits have been read.
    """

    train: Iterable[str]
    evaluation: Iterable[str]
    facts: dict[str, Any] = field(default_factory=dict)


def read_stories(path: Path, column: str) -> Iterator[str]:
    """The stories of a text file (one a line, empty lines skipped) or of a parquet file (one a row).

    Raises:
        UserError: the file is missing, of another kind, corrupt, or lacks the column, or the column is not
            of text.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of stories; write the path of a .txt or .parquet file")
    if path.suffix == ".txt":
        with path.open(encoding="utf-8") as lines:
            try:
                yield from (line.strip() for line in lines if line.strip())
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: no UTF-8 text ({error}); save it as UTF-8") from None
        return
    if path.suffix != ".parquet":
        raise UserError(f"{path}: read a file of kind {path.suffix!r}; write a .txt (one story a line) or a .parquet")
    try:
        with pq.ParquetFile(path) as table:
            columns = table.schema_arrow
            if column not in columns.names:
                hint = did_you_mean(column, columns.names)
                raise UserError(
                    f"{path}: story_column: read {column!r}, but the columns are {', '.join(columns.names)};"
                    f"{hint or ' write one of them'}"
                )
            kind = columns.field(column).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise UserError(
                    f"{path}: story_column: read {column!r}, which is a column of {kind}; write one of text"
                )
            for batch in table.iter_batches(columns=[column], batch_size=1000):
                yield from (story for story in batch.column(0).to_pylist() if story)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: corrupt parquet file ({error}); fetch or make it again") from None
