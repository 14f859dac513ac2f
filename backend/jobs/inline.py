"""A driver without other processes: calls run in this one, for unit tests and the command line without a dashboard."""

from __future__ import annotations

import os
import queue
import socket
import threading
from typing import Any

from backend.jobs import task
from backend.jobs.driver import Call, Listener, Worker
from backend.settings import Settings


class InlineDriver:
    """One worker named "inline": a background thread (`threads=1`), or the caller's own (`threads=0`: submit returns
    when the job has ended). A call cannot be ended by force here."""

    def __init__(self, settings: Settings, threads: int = 1):
        self.settings, self.synchronous = settings, threads == 0
        self.notices: list[str] = []
        self._cancelled: set[str] = set()
        self._calls: queue.Queue[Call | None] = queue.Queue()
        self._listener: Any = None

    def start(self, listener: Listener) -> None:
        """Announce the one worker."""
        self._listener = listener
        if not self.synchronous:
            threading.Thread(target=self._loop, name="phasescope-inline", daemon=True).start()
        listener.worker_up(Worker("inline", os.getpid(), socket.gethostname()))

    def run(self, call: Call, worker: Worker) -> None:
        """Run the call, here or on the thread."""
        self._perform(call) if self.synchronous else self._calls.put(call)

    def _loop(self) -> None:
        while (call := self._calls.get()) is not None:
            self._perform(call)

    def _perform(self, call: Call) -> None:
        def send(fraction: float, words: str) -> None:
            self._listener.reported(call.attempt, fraction, words)

        report = task.Reporter(send, lambda: call.attempt in self._cancelled)
        self._listener.returned(call.attempt, task.perform(call.target, call.kind, call.payload, call.settings, report))
        self._cancelled.discard(call.attempt)

    def ask_cancel(self, call: Call, worker: Worker) -> None:
        """Let the next progress() raise Cancelled."""
        self._cancelled.add(call.attempt)

    def kill(self, call: Call, worker: Worker) -> None:
        """Say that this cannot be done here, and ask again."""
        self.ask_cancel(call, worker)
        self._listener.noted(call.attempt, "It runs in this very process: it ends at its next report")

    def memory(self) -> dict[str, int]:
        """Return this process's peak."""
        return {"inline": task.peak_memory()}

    def room(self) -> int | None:
        """Return what the machine has left."""
        return task.free_memory()

    def close(self) -> None:
        """End the thread after the call that it runs."""
        self._calls.put(None)
