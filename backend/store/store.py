"""The store: results, models, runs, metrics and jobs in one DuckDB file, large arrays beside it.

One process opens it. One thread writes, each write a transaction that is durable when the method returns; readers
take a cursor each and see whole results only. It computes nothing on a miss.
"""

from __future__ import annotations

import threading
from pathlib import Path

import duckdb

from backend.errors import Broken
from backend.store import blobs
from backend.store.damage import FOUND, Damage, is_damage
from backend.store.locking import Lock
from backend.store.metrics import Metrics
from backend.store.opening import NAME, open_file
from backend.store.readonly import ReadOnly
from backend.store.records import Records
from backend.store.results import Results
from backend.store.tokenizers import sweep_tokenizers
from backend.store.transitions import Transitions
from backend.store.writer import Writer


class Store(Results, Records, Metrics, Transitions, ReadOnly):
    """Open it with `Store.open`; close it when done (a crash loses nothing that was acknowledged)."""

    def __init__(self, cache: Path, budget_bytes: int, lock: Lock, con: duckdb.DuckDBPyConnection, notices: list[str]):
        self.cache, self.tensors, self.budget_bytes = cache, cache / "tensors", budget_bytes
        self.notices = notices
        self._lock, self._con = lock, con
        self._damage = Damage(cache, notices)
        self._writer = Writer(con, self._damage)
        self._touched, self._tokenizers = {}, {}
        self._closing = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, settings_cache: Path, budget_bytes: int) -> Store:
        """Open (or make) the cache in a folder; `notices` says what a person should know of it.

        Raises Busy where another process, or this one, has it open; Broken where the system refuses it.
        """
        cache = Path(settings_cache)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            lock = Lock(cache)
        except OSError as error:
            raise Broken(f"Open the cache {cache}", str(error), "Correct the folder or set PHASESCOPE_CACHE") from None
        try:
            for _ in range(2):  # at most one file is set aside for what the sweep finds
                store = cls._swept(cache, budget_bytes, lock)
                if store is not None:
                    return store
            raise Broken(f"Open the cache {cache}", f"{FOUND}, and so is the new one", "Check the disk")
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _swept(cls, cache: Path, budget_bytes: int, lock: Lock) -> Store | None:
        """Return the store, swept; None where sweeping met damage, which is marked: the next try sets it aside."""
        con, notices = open_file(cache)
        try:
            store = cls(cache, budget_bytes, lock, con, notices)
        except BaseException:
            con.close()
            raise
        try:
            store._sweep()
        except BaseException:
            store._disconnect()
            if not store._damage.noticed:
                raise
            return None
        return store

    def close(self) -> None:
        """Finish waiting writes and let the next process in. Safe to call twice."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            try:
                self._finish()
            finally:
                self._disconnect()
                self._lock.release()

    def _finish(self) -> None:
        """Write what waits and fold the log into the file; a damaged file is left as it is."""
        if self._damage.noticed:
            return
        try:
            self._flush_touched()
            self._writer.close()
            self._con.execute("CHECKPOINT")
        except duckdb.Error as error:  # the log is whole: the next open reads it
            if is_damage(error):
                self._damage.notice(error)
        except Broken:
            if not self._damage.noticed:
                raise

    def _disconnect(self) -> None:
        self._writer.close()
        self._con.close()

    def disk_bytes(self) -> int:
        """Return the bytes on disk: the DuckDB file, its log and the tensors."""
        files = [*self.cache.glob(f"{NAME}*"), *self.tensors.glob("*")]
        return sum(f.stat().st_size for f in files if f.is_file())

    def _sweep(self) -> None:
        kept = {path for (path,) in self._rows("SELECT path FROM arrays WHERE path IS NOT NULL")}
        self._writer.run(sweep_tokenizers)
        blobs.sweep(self.tensors, kept)  # last: a file that proves damaged keeps all its tensors
