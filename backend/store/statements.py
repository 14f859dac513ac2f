"""The SQL of results: what one transaction writes, finds or deletes. Everything here runs on a cursor it is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from backend.contract import Analysis, Request, Result
from backend.errors import Broken
from backend.store.base import as_json, marks, now, quoted
from backend.store.blobs import Stored

SQL_TYPES = {"int": "BIGINT", "float": "DOUBLE", "str": "VARCHAR", "bool": "BOOLEAN"}
BLOB_FIELDS = "column_name, part, shape, dtype, codec, data, path"


def set_last_used(cursor: Any, rows: pa.Table) -> None:
    """Write rows [key, at] of last uses; a later one that is there stays."""
    cursor.register("touched", rows)
    cursor.execute("UPDATE results SET last_used = greatest(last_used, t.at) FROM touched t WHERE results.key = t.key")
    cursor.unregister("touched")


def check(analysis: Analysis, request: Request, result: Result) -> None:
    """Raises Broken where a result is not what was asked or declared."""
    declared = [c.name for c in analysis.scalars]
    if (request.analysis, request.version) != (analysis.name, analysis.version):
        asked = f"Keep a result of {request.analysis} v{request.version}"
        raise Broken(asked, f"given as {analysis.table}", "Ask again")
    if list(result.table.column_names) != declared or "key" in declared:
        raise Broken(f"Keep a result of {analysis.name}", f"its columns are {result.table.column_names}",
                     f"It declares {declared}; `key` is the store's own")


def describe(analysis: Analysis, request: Request, result: Result, card: dict, tokenizer: str, job_id: str,
             stored: list[Stored]) -> dict[str, Any]:
    """Return the row of `results`."""
    at, step = now(), request.step
    return {
        "key": request.key, "analysis": analysis.name, "version": analysis.version, "table_name": analysis.table,
        "title": analysis.title, "spec": request.spec, "step": step,
        "model": request.spec + ("" if step is None else f" step {step}"), "fingerprint": request.fingerprint,
        "dtype": request.dtype, "device": request.device, "subject": as_json(request.subject),
        "params": as_json(request.params), "provenance": as_json(result.provenance), "card": as_json(card),
        "tokenizer": tokenizer, "job_id": job_id, "created": at, "last_used": at,
        "seconds": float(result.provenance.get("seconds", 0.0)),
        "bytes": sum(s.size for s in stored) + result.table.nbytes, "rows": result.table.num_rows, "pinned": False,
    }


def insert(cursor: Any, analysis: Analysis, row: dict, table: pa.Table, stored: list[Stored]) -> bool:
    """Write a result whole; return False where its key is there already."""
    key = row["key"]
    if cursor.execute("SELECT 1 FROM results WHERE key = ?", [key]).fetchone():
        return False
    _make_table(cursor, analysis)
    columns = ", ".join(quoted(c.name) for c in analysis.scalars)
    cursor.register("incoming", table)
    cursor.execute(f"INSERT INTO {quoted(analysis.table)} (key, {columns}) SELECT ?, {columns} FROM incoming", [key])
    cursor.unregister("incoming")
    if stored:
        cursor.register("incoming", _blob_table(key, stored))
        cursor.execute(f"INSERT INTO arrays (key, n, {BLOB_FIELDS}) SELECT key, n, {BLOB_FIELDS} FROM incoming")
        cursor.unregister("incoming")
    cursor.execute(f"INSERT INTO results ({', '.join(row)}) VALUES ({marks(list(row))})", list(row.values()))
    return True


def _make_table(cursor: Any, analysis: Analysis) -> None:
    wanted = [("key", "VARCHAR"), *((c.name, SQL_TYPES[c.kind]) for c in analysis.scalars)]
    sql = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
    found = cursor.execute(sql, [analysis.table]).fetchall()
    if not found:
        cursor.execute(f"CREATE TABLE {quoted(analysis.table)} ({', '.join(f'{quoted(n)} {t}' for n, t in wanted)})")
    elif found != wanted:
        raise Broken(f"Keep a result of {analysis.name}", f"version {analysis.version} had other columns before",
                     "Raise the analysis's version when its columns change")


def _blob_table(key: str, stored: list[Stored]) -> pa.Table:
    names = BLOB_FIELDS.split(", ")
    columns = {n: [getattr(s, n) for s in stored] for n in names}
    kinds = {n: pa.large_binary() if n == "data" else pa.string() for n in names}
    return pa.table({"key": [key] * len(stored), "n": pa.array(range(len(stored)), pa.int32()),
                     **{n: pa.array(columns[n], kinds[n]) for n in names}})


def blob_rows(cursor: Any, key: str, column: str, where: Mapping[str, int]) -> list[Stored]:
    """Return the rows of a column whose part agrees with `where`: first their numbers, then those blobs alone."""
    sql = "SELECT n, part FROM arrays WHERE key = ? AND column_name = ?"
    parts = cursor.execute(sql, [key, column]).fetchall()
    numbers = [n for n, part in parts if where.items() <= json.loads(part).items()]
    if not numbers:
        return []
    these, values = "column_name = ?", [column]
    if len(numbers) < len(parts):
        these, values = f"n IN ({marks(numbers)})", numbers
    sql = f"SELECT {BLOB_FIELDS} FROM arrays WHERE key = ? AND {these} ORDER BY n"
    return [Stored(*row) for row in cursor.execute(sql, [key, *values]).fetchall()]


def listing(analysis: str | None, text: str) -> tuple[str, list[Any]]:
    """Return the WHERE clause of a search, and its values: every word of `text` must occur."""
    fields = "concat_ws(' ', key, analysis, title, model, fingerprint, dtype, device, subject, params)"
    tests, values = [], []
    if analysis:
        tests.append("analysis = ?")
        values.append(analysis)
    for word in text.lower().split():
        tests.append(f"contains(lower({fields}), ?)")
        values.append(word)
    return (f" WHERE {' AND '.join(tests)}" if tests else ""), values


def delete(cursor: Any, keys: list[str]) -> tuple[int, list[str]]:
    """Delete results; return how many there were and the names of their files, to be removed after the commit."""
    these = f"key IN ({marks(keys)})"
    tables = cursor.execute(f"SELECT DISTINCT table_name FROM results WHERE {these}", keys).fetchall()
    files = cursor.execute(f"SELECT path FROM arrays WHERE path IS NOT NULL AND {these}", keys).fetchall()
    for (table,) in tables:
        cursor.execute(f"DELETE FROM {quoted(table)} WHERE {these}", keys)
    cursor.execute(f"DELETE FROM arrays WHERE {these}", keys)
    count = cursor.execute(f"DELETE FROM results WHERE {these}", keys).fetchone()[0]
    return count, [path for (path,) in files]
