"""A person's SQL: one reading statement, no files, bounded in rows, memory and time."""

from __future__ import annotations

import re
import threading

import duckdb
import pandas as pd
import pyarrow as pa

from backend.errors import BadInput
from backend.store.base import Base, frame_of
from backend.store.damage import is_damage

EXPLAIN = re.compile(r"\s*explain(\s+analyze)?(\s*\([^)]*\))?\s+", re.IGNORECASE)
SECONDS = 30.0  # after which a statement is stopped
ADVICE = "Write one SELECT, WITH, DESCRIBE, SHOW or EXPLAIN over the tables that SHOW TABLES lists"


class ReadOnly(Base):
    """The part of the store that answers SQL."""

    def query(self, sql: str, limit: int = 10_000, seconds: float = SECONDS) -> pd.DataFrame:
        """Return at most `limit` rows; `attrs["more"]` says whether rows were left out.

        The statement runs in a read-only transaction of an instance that opens no file (CONFIG in opening.py).
        Raises BadInput for anything but one reading statement, and for what DuckDB refuses.
        """
        check(sql)
        with self._reading() as cursor:
            clock = threading.Timer(seconds, cursor.interrupt)
            clock.daemon = True
            clock.start()
            try:
                return _run(cursor, sql, limit)
            except duckdb.Error as error:
                if is_damage(error):
                    raise  # no fault of the statement: `_reading` says so
                raise _refused(error, seconds) from None
            finally:
                clock.cancel()


def check(sql: str) -> None:
    """Raises BadInput unless `sql` is one statement that reads."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise BadInput("This SQL", _first_line(error), ADVICE) from None
    if len(statements) != 1:
        raise BadInput("This SQL", f"it holds {len(statements)} statements", ADVICE)
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN:
        inner, replaced = EXPLAIN.subn("", statements[0].query, count=1)
        return check(inner) if replaced else None
    if kind != duckdb.StatementType.SELECT:
        raise BadInput("This SQL", f"{kind.name} is not reading", ADVICE)
    return None


def _run(cursor: duckdb.DuckDBPyConnection, sql: str, limit: int) -> pd.DataFrame:
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    reader = cursor.execute(sql).to_arrow_reader(10_000)  # a stream: the rest of a long answer is never made
    batches, rows = [], 0
    for batch in reader:
        batches.append(batch)
        rows += batch.num_rows
        if rows > limit:
            break
    frame = frame_of(pa.Table.from_batches(batches, reader.schema).slice(0, limit))
    frame.attrs["more"] = rows > limit
    return frame


def _refused(error: duckdb.Error, seconds: float) -> BadInput:
    if isinstance(error, duckdb.InterruptException):
        return BadInput("This SQL", f"it took more than {seconds:g} s and was stopped", "Ask for less")
    return BadInput("This SQL", _first_line(error), ADVICE)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["not understood"])[0].rstrip(".")
