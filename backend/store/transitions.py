"""Transitions found in runs: written whole per run, rewritten when its metrics or the detector change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backend.store.base import Base, marks, now

FIELDS = ("run", "metric_group", "step", "low", "high", "width", "width_low", "width_high", "verdict", "method",
          "channels", "alarm_step", "delay", "score", "threshold", "size", "artefact", "exogenous")  # fmt: skip


class Transitions(Base):
    """The part of the store that keeps what detection found."""

    def put_transitions(
        self, run: str, found: Sequence[Mapping[str, Any]], detector: int, metrics_offset: int
    ) -> None:
        """Keep what was found in a run (records with FIELDS; none is an answer too) in place of what was there."""
        at = now()
        rows = [[*(json.dumps(list(r[f])) if f == "channels" else r[f] for f in FIELDS), detector, metrics_offset, at]
                for r in found]  # fmt: skip
        columns = ", ".join([*FIELDS, "detector", "metrics_offset", "created"])

        def work(cursor: Any) -> None:
            for table in ("transitions", "transitions_seen"):
                cursor.execute(f"DELETE FROM {table} WHERE run = ?", [run])
            for row in rows:
                cursor.execute(f"INSERT INTO transitions ({columns}) VALUES ({marks(row)})", row)
            cursor.execute("INSERT INTO transitions_seen VALUES (?, ?, ?, ?)", [run, detector, metrics_offset, at])

        self._writer.run(work)

    def transitions_seen(self, run: str) -> tuple[int, int] | None:
        """Return (detector version, metrics offset) of what is kept of a run, or None where it was never written."""
        rows = self._rows("SELECT detector, metrics_offset FROM transitions_seen WHERE run = ?", [run])
        return (rows[0][0], rows[0][1]) if rows else None

    def transitions(self, run: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
        """Return kept transitions, newest first: of one run in the order of their alarms, or of all."""
        where, values = (" WHERE run = ?", [run]) if run is not None else ("", [])
        order = "alarm_step" if run is not None else "created DESC, alarm_step DESC"
        sql = f"SELECT {', '.join(FIELDS)}, created FROM transitions{where} ORDER BY {order} LIMIT ?"
        rows = [dict(zip([*FIELDS, "created"], row, strict=True)) for row in self._rows(sql, [*values, limit])]
        return [{**r, "channels": json.loads(r["channels"]), "created": r["created"].isoformat()} for r in rows]
