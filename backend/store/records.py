"""Models that were opened, and jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from backend.store.base import as_json, marks, now
from backend.store.tokenizers import Tokenizers

CARD_FIELDS = ("architecture", "n_layers", "n_heads", "d_model", "n_ctx", "d_vocab", "n_params", "dtype", "device",
               "memory_bytes", "fingerprint", "source", "energy")
SAME_MODEL = "spec = ? AND step IS NOT DISTINCT FROM ?"
UPDATE_JOB = "UPDATE jobs SET key = ?, kind = ?, state = ?, created = ?, finished = ?, record = ? WHERE id = ?"
INSERT_JOB = "INSERT INTO jobs (key, kind, state, created, finished, record, id) VALUES (?, ?, ?, ?, ?, ?, ?)"


class Records(Tokenizers):
    """The part of the store that keeps models and jobs."""

    # ------------------------------------------------------------ models

    def put_model(self, card: dict, signature: str) -> None:
        """Keep the card of an opened model (its spec and step name it) beside the signature of its files."""
        plain, tokenizer = self._split_card(card)
        row = [card["spec"], card.get("step"), signature, as_json(plain), tokenizer, now()]
        sql = "INSERT INTO models (spec, step, signature, card, tokenizer, last_used) VALUES"

        def work(cursor: Any) -> None:
            cursor.execute(f"DELETE FROM models WHERE {SAME_MODEL}", row[:2])
            cursor.execute(f"{sql} ({marks(row)})", row)

        self._writer.run(work)

    def model(self, spec: str, step: int | None) -> tuple[dict, str] | None:
        """Return (card, signature), or None."""
        rows = self._rows(f"SELECT card, tokenizer, signature FROM models WHERE {SAME_MODEL}", [spec, step])
        return (self._join_card(json.loads(rows[0][0]), rows[0][1]), rows[0][2]) if rows else None

    def models(self) -> pd.DataFrame:
        """Return [spec, step, last_used, sizes ...] of opened models, last used first."""
        frame = self._frame("SELECT spec, step, last_used, card FROM models ORDER BY last_used DESC, rowid DESC")
        cards = [json.loads(card) for card in frame.pop("card")]
        return frame.assign(**{name: [card.get(name) for card in cards] for name in CARD_FIELDS})

    def touch_model(self, spec: str, step: int | None = None) -> None:
        """Say that a model was used just now."""
        sql = f"UPDATE models SET last_used = ? WHERE {SAME_MODEL}"
        self._writer.run(lambda cursor: cursor.execute(sql, [now(), spec, step]))

    def forget_model(self, spec: str) -> None:
        """Drop a model, all its steps, from the list; its results stay."""
        self._writer.run(lambda cursor: cursor.execute("DELETE FROM models WHERE spec = ?", [spec]))

    # ------------------------------------------------------------ jobs

    def put_job(self, record: dict) -> None:
        """Keep a job's record under its `id`, in place of an earlier one."""
        row = [record.get("key", ""), record.get("kind", ""), str(record.get("state", "")),
               seconds(record.get("created")), seconds(record.get("finished")), as_json(record), record["id"]]

        def work(cursor: Any) -> None:
            if not cursor.execute(UPDATE_JOB, row).fetchone()[0]:
                cursor.execute(INSERT_JOB, row)

        self._writer.run(work)

    def job(self, id: str) -> dict | None:
        """Return a job's record, or None."""
        rows = self._rows("SELECT record FROM jobs WHERE id = ?", [id])
        return json.loads(rows[0][0]) if rows else None

    def jobs(self, states: Sequence[str] | None = None, limit: int = 200) -> list[dict]:
        """Return job records, newest first, of these states or of all."""
        chosen = list(states or [])
        where = f" WHERE state IN ({marks(chosen)})" if chosen else ""
        sql = f"SELECT record FROM jobs{where} ORDER BY created DESC NULLS LAST, rowid DESC LIMIT ?"
        return [json.loads(row[0]) for row in self._rows(sql, [*chosen, limit])]

    def job_of_key(self, key: str) -> dict | None:
        """Return the newest job that was to compute this key, or None."""
        sql = "SELECT record FROM jobs WHERE key = ? ORDER BY created DESC NULLS LAST, rowid DESC LIMIT 1"
        rows = self._rows(sql, [key])
        return json.loads(rows[0][0]) if rows else None

    def drop_jobs(self, before: float | str | datetime) -> int:
        """Drop jobs that ended before a time (seconds since 1970, ISO text or datetime); return how many."""
        sql = "DELETE FROM jobs WHERE finished < ?"
        return self._writer.run(lambda cursor: cursor.execute(sql, [seconds(before)]).fetchone()[0])


def seconds(when: float | str | datetime | None) -> float | None:
    """Return a time as seconds since 1970; one without a zone is UTC; None and '' are None."""
    if when is None or when == "":
        return None
    if isinstance(when, int | float):
        return float(when)
    at = datetime.fromisoformat(when) if isinstance(when, str) else when
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
