"""The engine: joins identical jobs, keeps the queue, tells every change, retries a worker's death once.

Jobs wait here, never in the scheduler, so a place in the queue is known and cancelling a waiting job is instant.
State and telling are in desk.py, handing out and endings in floor.py. The record that the outside keeps is the
truth after a restart: `adopt` turns what was unfinished into `interrupted`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from backend.errors import BadInput, Cancelled
from backend.jobs.driver import Driver, Worker
from backend.jobs.floor import Floor
from backend.jobs.state import Job, new_job, step

TARGET = "backend.jobs.worker:execute"
GRACE = 3.0  # seconds between asking a job to stop and ending its worker


class Engine(Floor):
    """Owns the queue and, through its driver, the workers. Close it when done.

    `on_change(job)` hears every change (progress at most 10 times a second per job); `on_result(job, value)` is
    called before the job turns done, and where it raises the job fails with that story. The constructor returns at
    once; jobs wait until the first worker is up.
    """

    def __init__(self, driver: Driver, target: str = TARGET, on_change: Callable[[Job], Any] | None = None,
                 on_result: Callable[[Job, Any], Any] | None = None, grace: float = GRACE):
        super().__init__(driver, target, on_change, on_result, grace)
        driver.start(self)

    def submit(
        self, kind: str, key: str, title: str, payload: dict[str, Any], affinity: str = "", urgent: bool = False
    ) -> Job:
        """Queue a job and return it; one with the same key that is queued or running is joined.

        `urgent` (somebody looks at it) goes before all that is not, also where it waits already.
        """
        with self._lock:
            if self._closing:
                raise Cancelled(title, "Phasescope is closing", "Start it again afterwards")
            twin = self._active(key)
            if twin is not None:
                if urgent:
                    self._hurry(twin.id)
                return twin
            job = new_job(kind, key, title, payload, affinity)
            if urgent:
                self._urgent.add(job.id)
            self._jobs[job.id], self._settled[job.id] = job, threading.Event()
        self._keeper.safely(partial(self._on_change, job))  # here and now, so that its record is found at once
        self._enqueue(job.id)
        return self._need(job.id)

    def cancel(self, job_id: str, force: bool = False) -> Job:
        """Stop a job: at once where it waits, else at its next report; its worker ends by `force` or after GRACE."""
        with self._lock:
            job = self._need(job_id)
            attempt = self._attempt_of(job_id)
            if job.state == "queued":
                self._queue = [i for i in self._queue if i != job_id]
                self._put(step(job, "cancel", "Cancelled while it waited"))
            elif job.state == "running" and not job.stopping:
                self._put(step(job, "stop", "Asked to stop", words="stopping"))
                if attempt and not force:
                    self._driver.ask_cancel(*self._calls[attempt])
                    self._after(self._grace, self._end_worker, attempt, f"It did not stop within {self._grace:g} s")
            if force and attempt:
                self._end_worker(attempt, "Stopped by force")
        return self._settle(job_id)

    def retry(self, job_id: str) -> Job:
        """Queue an ended job again under its id. Raises BadInput for one that is done, NotFound."""
        return self._again(job_id, "Queued again", {})

    def resume(self, job_id: str) -> Job:
        """Queue a training job again from its last checkpoint. Raises BadInput for other kinds, NotFound."""
        if self._need(job_id).kind != "train":
            raise BadInput(f"Resume {self._need(job_id).title}", "only training can be resumed", "Retry the job")
        return self._again(job_id, "Queued again, from the last checkpoint", {"resume": True})

    def jobs(self) -> list[Job]:
        """Return every job this engine knows, oldest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda j: j.created)

    def position(self, job_id: str) -> int | None:
        """Return the place in the queue (1 is next), or None for a job that does not wait."""
        with self._lock:
            return self._queue.index(job_id) + 1 if job_id in self._queue else None

    def wait(self, job_id: str, timeout: float) -> Job:
        """Wait until a job has ended and its last change was told, at most `timeout` s; returns it either way."""
        with self._lock:
            self._need(job_id)
            settled = self._settled[job_id]
        settled.wait(timeout)
        return self._need(job_id)

    def workers(self) -> list[dict[str, Any]]:
        """Return {address, pid, host, memory_bytes, state, models, job, gpu} per worker."""
        memory = self._driver.memory()
        with self._lock:
            return [{"address": w.address, "pid": w.pid, "host": w.host, "memory_bytes": memory.get(w.address, 0),
                     "state": self._worker_state(w), "models": sorted(w.models), "job": w.job, "gpu": w.gpu}
                    for w in self._workers.values()]

    def room(self) -> int | None:
        """Return the bytes that a worker has left for a job, None where it is not known."""
        return self._driver.room()

    def status(self) -> str:
        """Return one sentence on the workers, '' when all is well."""
        return self._words

    @property
    def notices(self) -> list[str]:
        """What a person should know of the workers as long as this engine lives, e.g. plain connections."""
        return list(self._driver.notices)

    def adopt(self, jobs: Iterable[Job | Mapping[str, Any]]) -> list[Job]:
        """Take over records of an earlier life: what was queued or running becomes interrupted."""
        adopted = [j if isinstance(j, Job) else Job(**j) for j in jobs]
        with self._lock:
            for job in adopted:
                self._settled[job.id] = threading.Event()
                if job.ended:
                    self._jobs[job.id] = job
                    self._settled[job.id].set()
                else:
                    self._put(step(job, "interrupt", "Phasescope ended before this job did"))
        self._keeper.flush()
        return [self._need(j.id) for j in adopted]

    def close(self, grace: float = 1.0) -> None:
        """Stop what runs (it becomes interrupted), end the workers, tell the last changes. Safe to call twice."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            for call, worker in self._calls.values():
                self._driver.ask_cancel(call, worker)
        self._until(lambda: not self._calls, grace)
        self._keeper.flush()
        with self._lock:
            self._calls.clear()
            for job in [j for j in self._jobs.values() if not j.ended]:
                self._put(step(job, "interrupt", "Phasescope was closed"))
        self._driver.close()
        self._keeper.close()

    def _again(self, job_id: str, text: str, changes: dict[str, Any]) -> Job:
        with self._lock:
            job = self._need(job_id)
            twin = self._active(job.key)
            if twin is not None:
                return twin
            if job.state == "done":
                raise BadInput(f"Retry {job.title}", "it is done", "Its result is kept; ask again to compute it anew")
            self._settled[job_id] = threading.Event()
            self._put(step(job, "retry", text, payload={**job.payload, **changes}))
        self._enqueue(job_id)
        return self._settle(job_id)

    def _settle(self, job_id: str) -> Job:
        if self._driver.synchronous:
            self._keeper.flush()
        return self._need(job_id)

    def _worker_state(self, worker: Worker) -> str:
        job = self._jobs.get(worker.job)
        return "idle" if job is None else "stopping" if job.stopping else "busy"

    def _after(self, seconds: float, action: Callable[..., Any], *args: Any) -> None:
        timer = threading.Timer(seconds, action, args)
        timer.daemon = True
        timer.start()

    def _until(self, condition: Callable[[], bool], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
