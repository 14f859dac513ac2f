"""One thread that tells the outside of changes and results, in order, so that a slow store never delays the engine."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Keeper:
    """Runs actions one after the other; `later` runs one after a delay and forgets earlier ones of the same name."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], Any] | None] = queue.Queue()
        self._due: dict[str, tuple[float, Callable[[], Any]]] = {}
        self._thread = threading.Thread(target=self._loop, name="phasescope-keeper", daemon=True)
        self._thread.start()

    def put(self, action: Callable[[], Any]) -> None:
        """Run `action` after all that was put before."""
        self._queue.put(action)

    def later(self, name: str, action: Callable[[], Any], delay: float) -> None:
        """Run the last action of this name once, `delay` seconds after the first was asked for."""
        self._queue.put(lambda: self._plan(name, action, time.monotonic() + delay))

    def _plan(self, name: str, action: Callable[[], Any], due: float) -> None:
        self._due[name] = (self._due[name][0] if name in self._due else due, action)

    def flush(self) -> None:
        """Wait until everything put so far has run. From the keeper's own thread: returns at once."""
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            done = threading.Event()
            self._queue.put(done.set)
            while not done.wait(0.2) and self._thread.is_alive():
                pass

    def close(self) -> None:
        """Run what is left, then end."""
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _loop(self) -> None:
        while True:
            wait = min((due for due, _ in self._due.values()), default=None)
            try:
                action = self._queue.get(timeout=None if wait is None else max(0.0, wait - time.monotonic()))
            except queue.Empty:
                action = _nothing
            if action is None:
                return
            self.safely(action)
            self._run_due()

    def _run_due(self) -> None:
        now = time.monotonic()
        for name in [n for n, (due, _) in self._due.items() if due <= now]:
            self.safely(self._due.pop(name)[1])

    def safely(self, action: Callable[[], Any]) -> None:
        """Run it here and now; what it raises is logged, not raised."""
        try:
            action()
        except Exception:
            log.exception("A listener of the job engine failed")


def _nothing() -> None:
    pass
