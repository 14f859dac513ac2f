"""Runs and their metrics: appended in batches, read thinned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from backend.errors import Broken
from backend.store.base import Base, as_json, now

COLUMNS = pa.schema([
    ("step", pa.int64()), ("metric", pa.string()), ("layer", pa.int32()), ("head", pa.int32()),
    ("value", pa.float64()), ("time", pa.float64()),
])
SERIES = "metric, layer, head"

#: `rows`: one per step, the last written (a resumed run repeats steps). Buckets have equal width in step per series:
#: of each the least and the greatest number stay, and the first NaN; the series' ends stay. Series go by a number
#: because hashing names costs three times as much.
THINNED = f"""
WITH series AS MATERIALIZED (
  SELECT {SERIES}, (row_number() OVER (ORDER BY metric, layer NULLS LAST, head NULLS LAST))::INTEGER AS id
  FROM metrics m WHERE {{chosen}} GROUP BY {SERIES}
), rows AS MATERIALIZED (
  SELECT id, step, arg_max(value, m.rowid) AS value
  FROM metrics m JOIN series s ON m.metric = s.metric
       AND m.layer IS NOT DISTINCT FROM s.layer AND m.head IS NOT DISTINCT FROM s.head
  WHERE {{chosen}} AND value IS NOT NULL GROUP BY id, step
), ends AS MATERIALIZED (
  SELECT id, min(step) AS first, max(step) AS last, count(*) AS n,
         ($points - 2) // (2 + max(isnan(value)::INTEGER)) AS buckets
  FROM rows GROUP BY id
), kept AS (
  SELECT id, [arg_min(step, value) FILTER (NOT isnan(value)), arg_max(step, value) FILTER (NOT isnan(value)),
              min(step) FILTER (isnan(value))] AS steps,
         [min(value), max(value) FILTER (NOT isnan(value)), 'nan'::DOUBLE] AS numbers
  FROM rows JOIN ends USING (id) WHERE n > $points
  GROUP BY id, CASE WHEN step = first THEN -1 WHEN step = last THEN -2
                    ELSE (step - first) * buckets // (last - first + 1) END
), points AS (
  SELECT DISTINCT * FROM (SELECT id, unnest(steps) AS step, unnest(numbers) AS value FROM kept) WHERE step IS NOT NULL
  UNION ALL SELECT id, step, value FROM rows JOIN ends USING (id) WHERE n <= $points
)
SELECT step, {SERIES}, value, n FROM points JOIN series USING (id) JOIN ends USING (id) ORDER BY id, step
"""


class Metrics(Base):
    """The part of the store that keeps runs."""

    def put_run(self, name: str, folder: str, info: dict) -> None:
        """Keep a run's record; its metrics and offset stay as they are."""
        def work(cursor: Any) -> None:
            _make_run(cursor, name)
            cursor.execute("UPDATE runs SET folder = ?, info = ? WHERE name = ?", [folder, as_json(info), name])

        self._writer.run(work)

    def runs(self) -> pd.DataFrame:
        """Return [name, folder, info, offset, created] of all runs, newest first; info is a dict."""
        sql = 'SELECT name, folder, info, folder_offset AS "offset", created FROM runs ORDER BY created DESC, name'
        frame = self._frame(sql)
        return frame.assign(info=[json.loads(text) for text in frame["info"]])

    def run(self, name: str) -> dict | None:
        """Return {name, folder, info, offset} of a run, or None."""
        rows = self._rows("SELECT name, folder, info, folder_offset FROM runs WHERE name = ?", [name])
        if not rows:
            return None
        return {"name": rows[0][0], "folder": rows[0][1], "info": json.loads(rows[0][2]), "offset": rows[0][3]}

    def append_metrics(self, run: str, rows: pa.Table | pd.DataFrame, offset: int) -> None:
        """Add rows [step, metric, layer, head, value, time] and say that the file was read up to byte `offset`.

        Both in one transaction; batches that wait side by side, of any runs, become one. Raises Broken for other
        columns.
        """
        self._writer.append(_append, (run, as_metrics(rows), offset))

    def reset_run(self, run: str) -> None:
        """Drop a run's metrics, and what was found in them, and begin its file anew (it was replaced)."""
        def work(cursor: Any) -> None:
            for table in ("metrics", "transitions", "transitions_seen"):
                cursor.execute(f"DELETE FROM {table} WHERE run = ?", [run])
            cursor.execute("UPDATE runs SET folder_offset = 0 WHERE name = ?", [run])

        self._writer.run(work)

    def run_offset(self, run: str) -> int:
        """Return the byte up to which the run's metrics are here; 0 for an unknown run."""
        rows = self._rows("SELECT folder_offset FROM runs WHERE name = ?", [run])
        return rows[0][0] if rows else 0

    def metrics(self, run: str, names: Sequence[str] | None = None, points: int = 2000) -> pd.DataFrame:
        """Return [step, metric, layer, head, value], each series thinned to at most `points` rows.

        The ends and the minimum and maximum of every bucket of steps stay, so that no spike is lost; NaN and
        infinities are values. `attrs["thinned"]` is {series: (shown, of)} for those that were thinned.
        """
        chosen, values = _chosen(run, names)
        sql = THINNED.replace("{chosen}", chosen)
        with self._reading() as cursor:
            table = cursor.execute(sql, {**values, "points": max(int(points), 8)}).to_arrow_table()
        frame = table.to_pandas().astype({"layer": "Int32", "head": "Int32"})
        thinned = _thinned(frame[frame["n"] > max(int(points), 8)])
        frame = frame.drop(columns="n")
        frame.attrs["thinned"] = thinned
        return frame

    def last_step(self, run: str) -> int | None:
        """Return the largest step with a metric, or None."""
        return self._rows("SELECT max(step) FROM metrics WHERE run = ?", [run])[0][0]

    def metric_names(self, run: str) -> list[str]:
        """Return the names of a run's metrics in alphabetical order."""
        return [r[0] for r in self._rows("SELECT DISTINCT metric FROM metrics WHERE run = ? ORDER BY 1", [run])]


def _chosen(run: str, names: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    """Return the WHERE clause for a run and metric names, as plain comparisons that skip blocks of the file."""
    values = {f"name{i}": name for i, name in enumerate(names or [])}
    among = f" AND m.metric IN ({', '.join('$' + n for n in values)})" if values else ""
    return f"m.run = $run{among}", {"run": run, **values}


def as_metrics(rows: pa.Table | pd.DataFrame) -> pa.Table:
    """Return rows as the store's Arrow columns; a NaN of `value` stays NaN, a missing layer or head is NULL."""
    try:
        if isinstance(rows, pa.Table):
            return rows.select(COLUMNS.names).cast(COLUMNS)
        ints = {n: pa.array(rows[n], COLUMNS.field(n).type, from_pandas=True) for n in ("step", "layer", "head")}
        value = {"value": pa.array(rows["value"].to_numpy(dtype="float64", na_value=float("nan")))}
        rest = {n: pa.array(rows[n], COLUMNS.field(n).type, from_pandas=True) for n in ("metric", "time")}
        return pa.table({**ints, **value, **rest}).select(COLUMNS.names)
    except (KeyError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise Broken("Append metrics", f"{type(error).__name__}: {error}", f"Columns are {COLUMNS.names}") from None


def _append(cursor: Any, payloads: list[tuple[str, pa.Table, int]]) -> None:
    payloads = sorted(payloads, key=lambda p: p[0])  # by run, so that a run's rows lie together; stable within one
    tables = [t.append_column("run", pa.array([run] * t.num_rows, pa.string())) for run, t, _ in payloads]
    cursor.register("incoming", pa.concat_tables(tables))
    columns = ", ".join(["run", *COLUMNS.names])
    cursor.execute(f"INSERT INTO metrics ({columns}) SELECT {columns} FROM incoming")
    cursor.unregister("incoming")
    for run, offset in {run: offset for run, _, offset in payloads}.items():
        _make_run(cursor, run)
        cursor.execute("UPDATE runs SET folder_offset = ? WHERE name = ?", [offset, run])


def _make_run(cursor: Any, name: str) -> None:
    if not cursor.execute("SELECT 1 FROM runs WHERE name = ?", [name]).fetchone():
        sql = "INSERT INTO runs (name, folder, info, folder_offset, created) VALUES (?, '', '{}', 0, ?)"
        cursor.execute(sql, [name, now()])


def _thinned(frame: pd.DataFrame) -> dict[str, tuple[int, int]]:
    groups = frame.groupby(SERIES.split(", "), dropna=False, sort=False)["n"].agg(["size", "first"])
    return {label(*series): (int(shown), int(of)) for series, (shown, of) in
            zip(groups.index, groups.to_numpy(), strict=True)}


def label(metric: str, layer: Any, head: Any) -> str:
    """Return the name of a series for people: `loss`, `induction L1H3`."""
    where = ("" if pd.isna(layer) else f"L{int(layer)}") + ("" if pd.isna(head) else f"H{int(head)}")
    return f"{metric} {where}".strip()
