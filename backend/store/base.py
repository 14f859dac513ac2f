"""What the parts of the store share: readers by cursor, writes through the one writer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa

from backend.errors import Broken
from backend.store.damage import Damage
from backend.store.writer import Writer

#: whole numbers and truth values stay what they are where some are NULL
NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}


class Base:
    """The open file."""

    _con: duckdb.DuckDBPyConnection
    _writer: Writer
    _damage: Damage
    tensors: Path
    budget_bytes: int

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Lend a cursor of its own: a snapshot that no writer blocks. Raises Broken for what DuckDB cannot do."""
        try:
            cursor = self._con.cursor()
        except duckdb.Error:
            raise Broken("Read the cache", "it is closed", "Start Phasescope again") from None
        try:
            yield cursor
        except duckdb.Error as error:
            raise self._damage.said(error, "Read the cache") from error
        finally:
            cursor.close()

    def _rows(self, sql: str, values: list[Any] | None = None) -> list[tuple]:
        with self._reading() as cursor:
            return cursor.execute(sql, values or []).fetchall()

    def _frame(self, sql: str, values: list[Any] | None = None) -> pd.DataFrame:
        with self._reading() as cursor:
            return frame_of(cursor.execute(sql, values or []).to_arrow_table())


def frame_of(table: pa.Table) -> pd.DataFrame:
    """Return a DataFrame; whole-number and boolean columns become nullable only where they hold a NULL."""
    holed = {f.name for f, c in zip(table.schema, table.columns, strict=True) if c.null_count and f.type in NULLABLE}
    plain = table.to_pandas()
    for name in holed:
        plain[name] = table[name].to_pandas(types_mapper=NULLABLE.get)
    return plain


def now() -> datetime:
    """Return the time in UTC without a zone, as DuckDB's TIMESTAMP holds it."""
    return datetime.now(UTC).replace(tzinfo=None)


def as_json(data: Any) -> str:
    """Return JSON with sorted keys; NaN and infinities are written as Python writes them."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def marks(values: Sequence[Any]) -> str:
    """Return as many `?` as there are values."""
    return ", ".join("?" * len(values))
