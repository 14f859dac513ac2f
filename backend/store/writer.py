"""One thread writes, in transactions; everyone else waits for their own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import duckdb

from backend.errors import Broken
from backend.store.damage import Damage


class Item:
    """Work for one transaction. Neighbours in the queue with the same `merge` work become one."""

    def __init__(self, work: Callable[[Any, list[Any]], Any], payload: Any, merge: bool):
        self.work, self.payload, self.merge = work, payload, merge
        self.done: Future = Future()


class Writer:
    """Drain a queue of writes into transactions on a cursor of its own."""

    def __init__(self, con: duckdb.DuckDBPyConnection, damage: Damage):
        self._cursor, self._damage = con.cursor(), damage
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._drain, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[Any], Any]) -> Any:
        """Do `work(cursor)` in a transaction and return its answer once it is committed."""
        return self._send(Item(lambda cursor, _: work(cursor), None, merge=False))

    def append(self, work: Callable[[Any, list[Any]], Any], payload: Any) -> None:
        """Do `work(cursor, payloads)` with all payloads that wait side by side; return once they are committed."""
        self._send(Item(work, payload, merge=True))

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._cursor.close()

    def _send(self, item: Item) -> Any:
        with self._gate:
            if self._closed:
                raise Broken("Write to the cache", "it is closed", "Start Phasescope again")
            self._queue.put(item)
        return item.done.result()

    def _drain(self) -> None:
        following: Item | None = self._queue.get()
        while following is not None:
            batch, following = self._batch(following)
            self._commit(batch)
            following = following or self._queue.get()

    def _batch(self, first: Item) -> tuple[list[Item], Item | None]:
        """Return the items of the next transaction and the item after them, if it was already taken.

        An end mark met here is put back: nothing comes after it.
        """
        batch = [first]
        while first.merge:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            if not (item.merge and item.work == first.work):
                return batch, item
            batch.append(item)
        return batch, None

    def _commit(self, batch: list[Item]) -> None:
        try:
            self._cursor.execute("BEGIN")
            answer = batch[0].work(self._cursor, [i.payload for i in batch])
            self._cursor.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            for item in batch:
                item.done.set_exception(self._damage.said(error, "Write to the cache"))
            return
        for item in batch:
            item.done.set_result(answer)

    def _roll_back(self) -> None:
        with contextlib.suppress(duckdb.Error):  # a failed COMMIT has already rolled back
            self._cursor.execute("ROLLBACK")
