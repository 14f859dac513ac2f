"""Results: written once, whole, in one transaction; read part by part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from backend.contract import Analysis, PackedArray, Request, Result
from backend.errors import NotFound
from backend.store import blobs, statements
from backend.store.base import frame_of, now, quoted
from backend.store.tokenizers import Tokenizers

JSON_COLUMNS = ("subject", "params", "provenance", "card")
RECORD = ("key", "analysis", "version", "title", "spec", "step", "model", "fingerprint", "dtype", "device", "subject",
          "params", "provenance", "card", "job_id", "created", "last_used", "seconds", "bytes", "rows", "pinned")
LISTED = ("key", "analysis", "version", "title", "model", "spec", "step", "dtype", "device", "subject", "params",
          "created", "last_used", "seconds", "bytes", "rows", "pinned", "job_id")
TOUCHES = 500  # last uses that may wait in memory to be written together


class Results(Tokenizers):
    """The part of the store that keeps results."""

    _touched: dict[str, Any]  # key -> last use not yet written

    def put(self, analysis: Analysis, request: Request, result: Result, *, card: dict, job_id: str = "") -> None:
        """Keep a result under its request's key; a key that is there already is left as it is.

        Raises Broken where the result is not what the analysis declares.
        """
        statements.check(analysis, request, result)
        key = request.key
        if self.has(key):
            return
        stored = [blobs.encode(packed, key, self.tensors) for packed in result.arrays]
        plain, tokenizer = self._split_card(card)
        row = statements.describe(analysis, request, result, plain, tokenizer, job_id, stored)
        written = self._writer.run(lambda cursor: statements.insert(cursor, analysis, row, result.table, stored))
        if not written:  # another thread was first
            blobs.remove(self.tensors, [s.path for s in stored if s.path])
        else:
            self.evict(spare=key)

    def has(self, key: str) -> bool:
        """Say whether a result is kept under this key."""
        return bool(self._rows("SELECT 1 FROM results WHERE key = ? LIMIT 1", [key]))

    def record(self, key: str) -> dict[str, Any] | None:
        """Return all that is known of a result, JSON decoded and times as ISO text in UTC, or None."""
        rows = self._rows(f"SELECT {', '.join(RECORD)}, tokenizer FROM results WHERE key = ?", [key])
        if not rows:
            return None
        record = dict(zip(RECORD, rows[0], strict=False))
        record.update({c: json.loads(record[c]) for c in JSON_COLUMNS})
        record["card"] = self._join_card(record["card"], rows[0][-1])
        record.update({c: record[c].isoformat(timespec="milliseconds") + "Z" for c in ("created", "last_used")})
        return record

    def table(self, analysis: Analysis, key: str, where: Mapping[str, int] | None = None) -> pd.DataFrame:
        """Return the scalar columns as declared, rows as they were put; `where` keeps rows that agree on axes.

        A NULL and a NaN of a float column both read as NaN. Raises NotFound.
        """
        if not self.has(key):
            raise NotFound(f"Result {key}", "not kept (never computed, deleted or evicted)", "Ask the analysis again")
        self._touch(key)
        columns = ", ".join(quoted(c.name) for c in analysis.scalars)
        also = "".join(f" AND {quoted(axis)} = ?" for axis in where or {})
        sql = f"SELECT {columns} FROM {quoted(analysis.table)} WHERE key = ?{also} ORDER BY rowid"
        with self._reading() as cursor:
            return frame_of(cursor.execute(sql, [key, *(where or {}).values()]).to_arrow_table())

    def arrays(self, key: str, column: str, where: Mapping[str, int] | None = None) -> list[PackedArray]:
        """Return the blobs of a column whose part agrees with `where`; no other blob is read. Raises Broken."""
        self._touch(key)
        with self._reading() as cursor:
            cursor.execute("BEGIN TRANSACTION READ ONLY")  # both look at one snapshot
            rows = statements.blob_rows(cursor, key, column, where or {})
        return [blobs.decode(row, self.tensors) for row in rows]

    def results(self, analysis: str | None = None, text: str = "", limit: int = 200, offset: int = 0) -> pd.DataFrame:
        """Return kept results, last used first; `text` is looked for in names, models, subjects and params."""
        self._flush_touched()
        where, values = statements.listing(analysis, text)
        sql = f"SELECT {', '.join(LISTED)} FROM results{where} ORDER BY last_used DESC, rowid DESC LIMIT ? OFFSET ?"
        return self._frame(sql, [*values, limit, offset])

    def count_results(self, analysis: str | None = None, text: str = "") -> int:
        """Return how many results `results` would list without a limit."""
        where, values = statements.listing(analysis, text)
        return self._rows(f"SELECT count(*) FROM results{where}", values)[0][0]

    def delete(self, keys: list[str]) -> int:
        """Delete results with their rows, blobs and files; return how many there were."""
        if not keys:
            return 0
        count, files = self._writer.run(lambda cursor: statements.delete(cursor, keys))
        blobs.remove(self.tensors, files)
        for key in keys:
            self._touched.pop(key, None)
        return count

    def pin(self, key: str, pinned: bool) -> None:
        """Keep a result from eviction, or let it go. Raises NotFound."""
        sql = "UPDATE results SET pinned = ? WHERE key = ?"
        if not self._writer.run(lambda cursor: cursor.execute(sql, [pinned, key]).fetchone()[0]):
            raise NotFound(f"Result {key}", "not kept", "Reload the list of results")

    def size_bytes(self) -> int:
        """Return the bytes of kept results as the budget counts them: compressed blobs, files and table columns."""
        return self._rows("SELECT coalesce(sum(bytes), 0)::BIGINT FROM results")[0][0]

    def evict(self, spare: str = "") -> list[str]:
        """Delete the least recently used results until the rest fits the budget; pinned ones and `spare` stay."""
        excess = self.size_bytes() - self.budget_bytes
        if excess <= 0:
            return []
        self._flush_touched()
        leaving = []
        sql = "SELECT key, bytes FROM results WHERE NOT pinned AND key <> ? ORDER BY last_used, rowid"
        for key, size in self._rows(sql, [spare]):
            if excess <= 0:
                break
            leaving.append(key)
            excess -= size
        self.delete(leaving)
        return leaving

    def sql_for(self, analysis: Analysis, key: str) -> str:
        """Return the SQL that fetches the numbers of a result."""
        columns = ", ".join(quoted(c.name) for c in analysis.scalars)
        return f"SELECT {columns}\nFROM {quoted(analysis.table)}\nWHERE key = '{key}'\nORDER BY rowid"

    def _touch(self, key: str) -> None:
        self._touched[key] = now()
        if len(self._touched) >= TOUCHES:
            self._flush_touched()

    def _flush_touched(self) -> None:
        touched, self._touched = self._touched, {}
        if touched:
            rows = pa.table({"key": list(touched), "at": pa.array(list(touched.values()), pa.timestamp("us"))})
            self._writer.run(lambda cursor: statements.set_last_used(cursor, rows))
