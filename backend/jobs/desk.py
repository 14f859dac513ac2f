"""What the engine knows, and how it tells: jobs, the queue, who runs what. All of it lives under one lock.

`on_change` and `on_result` run on the keeper's thread, in order, so a slow store never delays a worker.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from backend.errors import NotFound
from backend.jobs.driver import Call, Driver, Worker
from backend.jobs.keeper import Keeper
from backend.jobs.state import Job

TELL_EVERY = 0.1  # seconds between two on_change calls for progress alone
KEPT = 500  # ended jobs remembered here; the store remembers all


class Desk:
    """State and telling; nothing here starts or ends anything."""

    def __init__(self, driver: Driver, target: str, on_change: Callable[[Job], Any] | None = None,
                 on_result: Callable[[Job, Any], Any] | None = None, grace: float = 3.0):
        self._driver, self._target, self._grace = driver, target, grace
        self._on_change, self._on_result = on_change or (lambda job: None), on_result or (lambda job, value: None)
        self._settings = driver.settings.model_dump(mode="json")
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._settled: dict[str, threading.Event] = {}
        self._queue: list[str] = []
        self._urgent: set[str] = set()  # queued before all others, first come first served among themselves
        self._calls: dict[str, tuple[Call, Worker]] = {}
        self._workers: dict[str, Worker] = {}
        self._attempt = itertools.count(1)
        self._words, self._closing = "The workers are starting", False
        self._keeper = Keeper()

    def get(self, job_id: str) -> Job | None:
        """Return the job as it is now, or None."""
        with self._lock:
            return self._jobs.get(job_id)

    def _need(self, job_id: str) -> Job:
        with self._lock:
            if job_id not in self._jobs:
                raise NotFound(f"Job {job_id}", "no such job here", "Look at the list of jobs")
            return self._jobs[job_id]

    def _active(self, key: str) -> Job | None:
        """The job of this key that is under way and not being stopped."""
        return next((j for j in self._jobs.values() if j.key == key and not j.ended and not j.stopping), None)

    def _attempt_of(self, job_id: str) -> str:
        return next((a for a, (call, _) in self._calls.items() if call.job_id == job_id), "")

    def _put(self, job: Job) -> None:
        """Remember a change and tell it."""
        self._jobs[job.id] = job
        self._keeper.put(partial(self._tell, job))

    def _tell(self, job: Job) -> None:
        try:
            self._on_change(job)
        finally:
            with self._lock:
                if self._jobs.get(job.id, job).ended and job.ended:
                    self._settled.get(job.id, threading.Event()).set()
                    self._forget()

    def _tell_latest(self, job_id: str) -> None:
        job = self.get(job_id)
        if job is not None and not job.ended:
            self._on_change(job)

    def _forget(self) -> None:
        ended = [j for j in self._jobs.values() if j.ended and self._settled[j.id].is_set()]
        for job in sorted(ended, key=lambda j: j.finished or 0.0)[:-KEPT]:
            del self._jobs[job.id], self._settled[job.id]
            self._urgent.discard(job.id)
