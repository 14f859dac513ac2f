"""Open the one DuckDB file, or set aside what cannot be read. `duckdb.connect` is called here and nowhere else."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from backend.errors import Broken
from backend.store.damage import MACHINE, first_line, is_damage, mark, marked, unmark
from backend.store.locking import busy, holder_in
from backend.store.migrations import SCHEMA, bring_up_to_date, schema_version

NAME = "phasescope.duckdb"
#: no file, no extension, no Python variable is reachable from SQL; a person's query cannot change that back
CONFIG: dict[str, Any] = {
    "enable_external_access": "false", "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
    "python_enable_replacements": "false", "memory_limit": "2GB",
    "threads": str(max(1, min(4, os.cpu_count() or 1))),
}


def open_file(cache: Path) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    """Return a connection to an up-to-date file and what a person should be told.

    A file that is corrupt, foreign, newer or marked as damaged is renamed to a dated name, byte for byte as it was;
    so are its companions and the tensors it refers to. Raises Busy where another process has it open, Broken where
    the system refuses the file.
    """
    try:
        return _open(cache)
    except duckdb.Error as error:
        if not is_damage(error):
            raise _refused(cache, error) from None
        mark(cache, error)
    try:
        return _open(cache)
    except duckdb.Error as error:
        raise _refused(cache, error) from None


def _refused(cache: Path, error: duckdb.Error) -> Broken:
    return Broken(f"Open {cache / NAME}", first_line(error), "Report it; renaming the file begins a new cache")


def _open(cache: Path) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    path, notices = cache / NAME, []
    reason = (_unreadable(path, cache) or marked(cache)) if path.exists() else ""
    if reason:
        notices.append(set_aside(cache, reason))
    unmark(cache)
    con = _connect(path, cache, read_only=False)
    try:
        con.execute("PRAGMA disable_checkpoint_on_shutdown")  # Store.close makes one: a damaged file stays as it is
        notices += bring_up_to_date(con)
        con.execute("SET lock_configuration = true")  # not before: DuckDB's own ALTER TABLE sets an option
    except BaseException:
        con.close()
        raise
    return con, notices


def _unreadable(path: Path, cache: Path) -> str:
    """Return why the file cannot be used, or ''. Looks read-only, so that a file set aside is left as it was.

    The header is read before DuckDB opens the file: closing any handle on it later would drop DuckDB's POSIX lock.
    """
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        raise Broken(f"Open {path}", "no file that may be read and written", "Correct its owner or permissions")
    with path.open("rb") as file:
        if file.read(12)[8:] != b"DUCK":
            return "is not a DuckDB file"
    try:
        con = _connect(path, cache, read_only=True)
    except duckdb.Error as error:
        return f"is damaged or made by another DuckDB ({first_line(error)})"
    try:
        version = schema_version(con)
    except duckdb.Error as error:
        return f"is damaged ({first_line(error)})"
    finally:
        con.close()
    if version is None:
        return "is another program's DuckDB file"
    return f"has schema {version}, newer than this Phasescope's {SCHEMA}" if version > SCHEMA else ""


def _connect(path: Path, cache: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(str(path), read_only=read_only, config=CONFIG)
    except duckdb.Error as error:
        holder = holder_in(str(error))
        if holder is not None:
            raise busy(cache, holder) from None
        if not (read_only or is_damage(error)) or any(words in str(error) for words in MACHINE):
            raise Broken(f"Open {path}", first_line(error), "Correct what it names and start again") from None
        raise


def set_aside(cache: Path, reason: str) -> str:
    """Rename the file, its companions (.wal ...) and its tensors to dated names; return the sentence that says so."""
    stamp = datetime.now().strftime("%Y-%m-%dT%H%M%S")
    n, aside = 0, f"set-aside-{stamp}"
    while any(cache.glob(f"*{aside}*")):
        n, aside = n + 1, f"set-aside-{stamp}-{n + 1}"
    tensors = cache / "tensors"  # first: were they left behind by a crash here, the new file's sweep would delete them
    if tensors.is_dir() and any(tensors.iterdir()):
        tensors.rename(cache / f"{aside}-tensors")
    for old in sorted(cache.glob(f"{NAME}*")):
        old.rename(cache / f"{aside}-{old.name}")
    return f"{NAME} {reason}; it was renamed to {aside}-{NAME} and a new cache was begun"
