"""Kept results: tables, arrays, figures, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from backend.contract import Analysis, View
from backend.errors import NotFound
from backend.facade.base import Base, pick
from backend.models import tokens
from backend.tables import block, unpack


class Results(Base):
    """The part of the facade that reads what is kept."""

    def has(self, key: str) -> bool:
        """Say whether a result is kept under this key."""
        return self.store.has(key)

    def record(self, key: str) -> dict[str, Any]:
        """Return the provenance of a kept result. Raises NotFound."""
        record = self.store.record(key)
        if record is None:
            raise NotFound(f"Result {key}", "not kept (never computed, deleted or evicted)", "Ask the analysis again")
        return record

    def _declaration(self, record: Mapping[str, Any]) -> Analysis:
        found = self.analysis(record["analysis"])
        if found.version != record["version"]:
            raise NotFound(
                f"Result {record['key']}",
                f"made by version {record['version']}, now {found.version}",
                "Compute it again, or read its table by SQL",
            )
        return found

    def table(self, key: str, where: Mapping[str, int] | None = None, arrays: bool = True) -> pd.DataFrame:
        """Return the tidy table of a result, or of one part of it; array columns only where `arrays`."""
        asked = self._declaration(self.record(key))
        part = dict(where or {})
        frame = self.store.table(asked, key, part or None)
        if not arrays or not asked.arrays:
            return frame
        blobs = [b for v in asked.arrays for b in self.store.arrays(key, v.name, part or None)]
        return unpack(asked, frame, blobs)

    def array(self, key: str, column: str, where: Mapping[str, int]) -> Any:
        """Return one packed block (a head: [query_pos, key_pos]) as a numpy array."""
        found = self.store.arrays(key, column, dict(where))
        if not found:
            raise NotFound(
                f"{column} of {key} at {dict(where)}", "no such part", "Choose a layer and head of the model"
            )
        return block(found[0])

    def thumbnails(self, key: str, column: str) -> tuple[list[dict[str, int]], Any]:
        """Return (parts, uint8 [n, rows, cols]): the small display copies of an array column."""
        found = self.store.arrays(key, f"{column}@display")
        if not found:
            raise NotFound(f"Display copies of {column} of {key}", "none are kept", "Compute the result again")
        return [b.part for b in found], np.stack([block(b) for b in found])

    def figure(self, key: str, name: str, chosen: Mapping[str, Any] | None = None) -> Any:
        """Build one figure of a kept result; reads the array columns of the chosen part only, of a `whole` one all."""
        record = self.record(key)
        asked = self._declaration(record)
        figure = pick(asked.figures, name, "Figure")
        where = self._where(asked, key, figure.choose, chosen or {})
        arrays = bool(figure.choose) or figure.whole
        return figure.build(self.table(key, where, arrays=arrays), self._view(record, chosen))

    def claims(self, key: str) -> list[dict[str, str]]:
        """Return what a result says of what was expected: rows of criterion, null, value, verdict; [] where nothing
        was."""
        record = self.record(key)
        asked = self._declaration(record)
        if not asked.judge:
            return []
        return [vars(claim) for claim in asked.judge(self.table(key, arrays=False), self._view(record, None))]

    def _where(
        self, asked: Analysis, key: str, axes: Sequence[str], chosen: Mapping[str, Any]
    ) -> dict[str, int]:
        """Return one part of a result; an axis that is not chosen takes its first value, so never all is read."""
        where = {a: int(chosen[a]) for a in axes if a in chosen}
        if len(where) < len(axes):
            first = self.store.table(asked, key, where or None).head(1)
            where = {a: int(where.get(a, first[a].iloc[0] if len(first) else 0)) for a in axes}
        return where

    def _view(self, record: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> View:
        card = record["card"]
        words = tokens.tokenizer_from(card["tokenizer"])
        pairs = record["subject"].get("pairs")
        ids = pairs[0]["clean"] if pairs else record["subject"].get("tokens", [])
        return View(
            tokens=words.labels(ids), vocab=words.label, params=record["params"], chosen=dict(chosen or {}), card=card
        )

    def results(self, analysis: str | None = None, text: str = "", limit: int = 200, offset: int = 0) -> pd.DataFrame:
        """Return kept results, last used first."""
        return self.store.results(analysis=analysis, text=text, limit=limit, offset=offset)

    def count_results(self, analysis: str | None = None, text: str = "") -> int:
        """Return how many results fit the filter."""
        return self.store.count_results(analysis=analysis, text=text)

    def delete(self, keys: Sequence[str]) -> int:
        """Delete results with their arrays; returns how many there were."""
        return self.store.delete(list(keys))

    def pin(self, key: str, pinned: bool) -> None:
        """Keep a result from eviction, or let it go."""
        self.store.pin(key, pinned)

    def sql(self, key: str) -> str:
        """Return the SQL that fetches the numbers of a result."""
        return self.store.sql_for(self._declaration(self.record(key)), key)

    def query(self, sql: str) -> pd.DataFrame:
        """Run one reading SQL statement. Raises BadInput for anything else."""
        return self.store.query(sql)
