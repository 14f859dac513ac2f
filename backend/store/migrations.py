"""The schema's version and the way from every older one to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend.store.damage import is_damage

APP = "phasescope"
SCHEMA = 3
SCHEMA_SQL = Path(__file__).with_name("schema.sql")

#: version -> SQL steps that lead from it to the next version, run in one transaction
MIGRATIONS: dict[int, list[str]] = {
    1: [
        "ALTER TABLE results ADD COLUMN pinned BOOLEAN DEFAULT false",
        "UPDATE results SET pinned = false",
    ],
    2: [
        "CREATE TABLE transitions (run VARCHAR, metric_group VARCHAR, step DOUBLE, low DOUBLE, high DOUBLE, "
        "width DOUBLE, width_low DOUBLE, width_high DOUBLE, verdict VARCHAR, method VARCHAR, channels VARCHAR, "
        "alarm_step BIGINT, delay DOUBLE, score DOUBLE, threshold DOUBLE, size DOUBLE, artefact VARCHAR, "
        "exogenous VARCHAR, detector INTEGER, metrics_offset BIGINT, created TIMESTAMP)",
        "CREATE TABLE transitions_seen (run VARCHAR, detector INTEGER, metrics_offset BIGINT, created TIMESTAMP)",
    ],
}


def schema_version(con: Any) -> int | None:
    """Return the schema version of an open file, 0 where it holds no table at all, None where it is not ours."""
    tables = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return 0
    if "meta" not in tables:
        return None
    try:
        meta = dict(con.execute("SELECT name, value FROM meta").fetchall())
        return int(meta["schema"]) if meta.get("app") == APP else None
    except Exception as error:  # a stranger's table of the same name may hold anything
        if is_damage(error):
            raise
        return None


def bring_up_to_date(con: Any) -> list[str]:
    """Create the schema in an empty file, or lead an older one to `SCHEMA`. Returns what was done, in words."""
    found = schema_version(con)
    if found == 0:
        _in_transaction(con, [SCHEMA_SQL.read_text(), *_meta(SCHEMA)])
        return []
    assert found is not None and found <= SCHEMA
    for version in range(found, SCHEMA):
        _in_transaction(con, [*MIGRATIONS[version], *_meta(version + 1)])
    return [f"The cache was brought from schema {found} to {SCHEMA}"] if found < SCHEMA else []


def _meta(version: int) -> list[str]:
    return ["DELETE FROM meta", f"INSERT INTO meta VALUES ('app', '{APP}'), ('schema', '{version}')"]


def _in_transaction(con: Any, statements: list[str]) -> None:
    con.execute("BEGIN")
    try:
        for sql in statements:
            con.execute(sql)
        con.execute("COMMIT")
    except BaseException:
        con.execute("ROLLBACK")
        raise
