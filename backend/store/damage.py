"""Damage inside the file: told apart from other errors, said in plain words, remembered beside the file.

DuckDB checks a block when it reads it, so that a damaged block may show long after opening. The store that meets one
leaves a marker file; whoever opens next sets the file aside (opening.py). Nothing is deleted.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import duckdb

from backend.errors import Broken

MARKER = "phasescope.damaged"  # beside the file; no name that `set_aside` takes for one of its companions
#: what DuckDB says of a file whose bytes are not what it wrote. An internal error may be the fault of a person's SQL.
SIGNS = ("Corrupt database file", "read enough bytes", "Serialization Error", "Failed to deserialize")
#: what DuckDB says where the machine and not the file is at fault
MACHINE = ("No space left", "Permission denied", "Too many open files", "Out of Memory")
FOUND = "the cache file is damaged"
TODO = "Restart Phasescope: it is then set aside under a dated name"


def is_damage(error: BaseException) -> bool:
    """Say whether the file's own bytes are at fault."""
    words = str(error)
    return isinstance(error, duckdb.Error) and any(s in words for s in SIGNS) and not any(m in words for m in MACHINE)


def first_line(error: BaseException) -> str:
    """Return the first line of an error without its full stop."""
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def mark(cache: Path, error: BaseException) -> None:
    """Leave the marker, which holds what DuckDB said; a folder that refuses it is no further error."""
    with contextlib.suppress(OSError):
        (cache / MARKER).write_text(first_line(error))


def marked(cache: Path) -> str:
    """Return why the file is to be set aside, or '' without a marker."""
    path = cache / MARKER
    return f"is damaged ({path.read_text(errors='replace')})" if path.is_file() else ""


def unmark(cache: Path) -> None:
    """Remove the marker, if there is one."""
    (cache / MARKER).unlink(missing_ok=True)


class Damage:
    """What an open store has noticed; its sentence joins the store's notices, once."""

    def __init__(self, cache: Path, notices: list[str]):
        self._cache, self._notices, self.noticed = cache, notices, False

    def said(self, error: BaseException, asked: str) -> BaseException:
        """Return DuckDB's errors in the house's words, others as they are. Damage is marked."""
        if not isinstance(error, duckdb.Error):
            return error
        if is_damage(error):
            self.notice(error)
            return Broken(asked, FOUND, TODO)
        return Broken(asked, first_line(error), "Free disk space if it is full, else restart; deleting cache/ costs "
                      "only time")

    def notice(self, error: BaseException) -> None:
        """Remember the damage, here and beside the file."""
        if not self.noticed:
            self.noticed = True
            mark(self._cache, error)
            self._notices.append(f"{FOUND[0].upper()}{FOUND[1:]} ({first_line(error)}). {TODO}")
