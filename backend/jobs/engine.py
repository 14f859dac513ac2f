"""The queue of jobs: joins identical ones, gives each idle worker one job, tells every change, retries a death once.

Jobs wait here, never in the scheduler, so a place in the queue is known and cancelling a waiting job is instant.
All state lives under one lock; `on_change` and `on_result` run on the keeper's thread, in order. The record that
the outside keeps is the truth after a restart: `adopt` turns what was unfinished into `interrupted`.
"""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from backend.errors import BadInput, NotFound
from backend.jobs.driver import Call, Driver, Worker
from backend.jobs.keeper import Keeper
from backend.jobs.state import Job, error_record, new_job, step

TARGET = "backend.jobs.worker:execute"
GRACE = 3.0  # seconds between asking a job to stop and ending its worker
TELL_EVERY = 0.1  # seconds between two on_change calls for progress alone
KEPT = 500  # ended jobs remembered here; the store remembers all


class Engine:
    """Owns the queue and, through its driver, the workers. Close it when done.

    `on_change(job)` hears every change (progress at most 10 times a second per job); `on_result(job, value)` is
    called before the job turns done, and where it raises the job fails with that story. The constructor returns at
    once; jobs wait until the first worker is up.
    """

    def __init__(self, driver: Driver, target: str = TARGET, on_change: Callable[[Job], Any] | None = None,
                 on_result: Callable[[Job, Any], Any] | None = None, grace: float = GRACE):
        self._driver, self._target, self._grace = driver, target, grace
        self._on_change, self._on_result = on_change or (lambda job: None), on_result or (lambda job, value: None)
        self._settings = driver.settings.model_dump(mode="json")
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._settled: dict[str, threading.Event] = {}
        self._queue: list[str] = []
        self._calls: dict[str, tuple[Call, Worker]] = {}
        self._workers: dict[str, Worker] = {}
        self._attempt = itertools.count(1)
        self._words, self._closing = "The workers are starting", False
        self._keeper = Keeper()
        driver.start(self)

    # ------------------------------------------------------------ what people ask for

    def submit(self, kind: str, key: str, title: str, payload: dict[str, Any], affinity: str = "") -> Job:
        """Queue a job and return it; one with the same key that is queued or running is joined instead."""
        with self._lock:
            twin = self._active(key)
            if twin is not None:
                return twin
            job = new_job(kind, key, title, payload, affinity)
            self._jobs[job.id], self._settled[job.id] = job, threading.Event()
        self._keeper._safely(partial(self._on_change, job))  # here and now, so that its record is found at once
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

    def get(self, job_id: str) -> Job | None:
        """Return the job as it is now, or None."""
        with self._lock:
            return self._jobs.get(job_id)

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

    def status(self) -> str:
        """Return one sentence on the workers, '' when all is well."""
        return self._words

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

    # ------------------------------------------------------------ what the driver tells (driver.Listener)

    def worker_up(self, worker: Worker) -> None:
        """A worker is ready for a job."""
        with self._lock:
            self._workers.setdefault(worker.address, worker)
            self._words = ""
        self._pump()

    def worker_down(self, address: str, why: str = "") -> None:
        """A worker is gone; the job that it ran is queued again in front, once."""
        with self._lock:
            worker = self._workers.pop(address, None)
            for attempt in [a for a, (_, w) in self._calls.items() if w.address == address]:
                self._died(self._calls.pop(attempt)[0], worker, why)
        self._pump()

    def reported(self, attempt: str, fraction: float, words: str) -> None:
        """A running job says how far it is."""
        with self._lock:
            if attempt not in self._calls:
                return
            job = self._jobs[self._calls[attempt][0].job_id]
            self._jobs[job.id] = step(job, "report", progress=fraction, words="stopping" if job.stopping else words)
        self._keeper.later(job.id, partial(self._tell_latest, job.id), TELL_EVERY)

    def returned(self, attempt: str, envelope: dict[str, Any]) -> None:
        """A call came back, with a value or with an error."""
        with self._lock:
            if attempt not in self._calls:
                return
            call, worker = self._calls.pop(attempt)
            self._free(worker, self._jobs[call.job_id], envelope)
            if envelope["ok"]:
                self._keeper.put(partial(self._keep, call.job_id, envelope["value"]))
            else:
                self._fail(call.job_id, envelope["error"])
        self._pump()

    def noted(self, attempt: str, text: str) -> None:
        """Something worth a line in the story."""
        with self._lock:
            if attempt in self._calls:
                self._put(step(self._jobs[self._calls[attempt][0].job_id], "note", text))

    def said(self, words: str) -> None:
        """The driver speaks about all workers."""
        self._words = words

    # ------------------------------------------------------------ handing out

    def _enqueue(self, job_id: str) -> None:
        with self._lock:
            if self._jobs[job_id].state == "queued" and not self._closing:
                self._queue.append(job_id)
        self._pump()

    def _pump(self) -> None:
        """Give idle workers the jobs that wait, first come first served."""
        with self._lock:
            started = [] if self._closing else [self._start(*pair) for pair in self._pairs()]
        for call, worker in started:
            try:
                self._driver.run(call, worker)
            except Exception as error:
                self.worker_down(worker.address, f" before it took the job ({error})")
        if started and self._driver.synchronous:
            self._keeper.flush()

    def _pairs(self) -> list[tuple[str, Worker]]:
        """Match waiting jobs and idle workers; a key whose earlier attempt is still stopping waits for its end."""
        idle = [w for w in self._workers.values() if not w.job]
        busy_keys = {call.key for call, _ in self._calls.values()}
        pairs = []
        for job in (self._jobs[i] for i in self._queue if self._jobs[i].key not in busy_keys):
            if not idle:
                break
            best = min(idle, key=lambda w: (job.affinity not in w.models, len(w.models)))
            idle.remove(best)
            pairs.append((job.id, best))
        return pairs

    def _start(self, job_id: str, worker: Worker) -> tuple[Call, Worker]:
        self._queue.remove(job_id)
        worker.job = job_id
        text = f"Started on worker {worker.address} (process {worker.pid} on {worker.host})"
        job = step(self._jobs[job_id], "start", text, worker=worker.address, worker_pid=worker.pid)
        attempt = f"{job.id}-{next(self._attempt)}"
        call = Call(job.id, attempt, job.key, self._target, job.kind, job.payload, self._settings)
        self._calls[call.attempt] = (call, worker)
        self._put(job)
        return call, worker

    def _free(self, worker: Worker, job: Job, envelope: Mapping[str, Any]) -> None:
        worker.job = ""
        said = envelope.get("models")
        if said is not None:
            worker.models = set(said)
        elif job.affinity and envelope["ok"]:
            worker.models.add(job.affinity)
        self._jobs[job.id] = job.model_copy(update={"memory_bytes": envelope.get("memory_bytes", 0)})

    # ------------------------------------------------------------ endings

    def _keep(self, job_id: str, value: Any) -> None:
        """On the keeper's thread: hand the result over, then the job is done (or has failed)."""
        try:
            self._on_result(self._need(job_id), value)
        except Exception as error:
            self._fail(job_id, error_record(error, traceback.format_exc()), "Its result could not be kept")
            return
        with self._lock:
            job = self._jobs[job_id]
            if job.state == "running":
                self._put(step(job, "finish", f"Done in {time.time() - (job.started or job.created):.2f} s", words=""))

    def _fail(self, job_id: str, error: dict[str, Any], text: str = "Failed") -> None:
        with self._lock:
            job = self._jobs[job_id]
            if error["error"] == "Cancelled" and self._closing and not job.stopping:
                self._put(step(job, "interrupt", "Stopped because Phasescope was closed"))
            elif error["error"] == "Cancelled":
                self._put(step(job, "cancel", "Stopped as asked" if job.stopping else "It stopped itself", words=""))
            else:
                self._put(step(job, "fail", f"{text}: {error['asked']}: {error['found']}", error=error))

    def _died(self, call: Call, worker: Worker | None, why: str) -> None:
        job = self._jobs[call.job_id]
        after = step(job, "died", f"Worker {job.worker} (process {job.worker_pid}) died{why}")
        ends = {"queued": "Queued again", "failed": "The second death: given up", "cancelled": "Stopped as asked"}
        if after.state == "queued":
            self._queue.insert(0, job.id)
            after = after.model_copy(update={"payload": _resumed(job)})
        self._put(step(after, "note", ends[after.state]))

    def _end_worker(self, attempt: str, why: str) -> None:
        with self._lock:
            if attempt in self._calls:
                call, worker = self._calls[attempt]
                self._put(step(self._jobs[call.job_id], "note", f"{why}: ending process {worker.pid}"))
                self._driver.kill(call, worker)

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

    # ------------------------------------------------------------ small things

    def _active(self, key: str) -> Job | None:
        """The job of this key that is under way and not being stopped."""
        return next((j for j in self._jobs.values() if j.key == key and not j.ended and not j.stopping), None)

    def _attempt_of(self, job_id: str) -> str:
        return next((a for a, (call, _) in self._calls.items() if call.job_id == job_id), "")

    def _need(self, job_id: str) -> Job:
        with self._lock:
            if job_id not in self._jobs:
                raise NotFound(f"Job {job_id}", "no such job here", "Look at the list of jobs")
            return self._jobs[job_id]

    def _settle(self, job_id: str) -> Job:
        if self._driver.synchronous:
            self._keeper.flush()
        return self._need(job_id)

    def _worker_state(self, worker: Worker) -> str:
        job = self._jobs.get(worker.job)
        return "idle" if job is None else "stopping" if job.stopping else "busy"

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
                    self._settled[job.id].set()
                    self._forget()

    def _tell_latest(self, job_id: str) -> None:
        job = self.get(job_id)
        if job is not None and not job.ended:
            self._on_change(job)

    def _forget(self) -> None:
        ended = [j for j in self._jobs.values() if j.ended and self._settled[j.id].is_set()]
        for job in sorted(ended, key=lambda j: j.finished or 0.0)[:-KEPT]:
            del self._jobs[job.id], self._settled[job.id]

    def _after(self, seconds: float, action: Callable[..., Any], *args: Any) -> None:
        timer = threading.Timer(seconds, action, args)
        timer.daemon = True
        timer.start()

    def _until(self, condition: Callable[[], bool], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)


def _resumed(job: Job) -> dict[str, Any]:
    """Training whose worker died goes on from its last checkpoint; anything else starts anew."""
    return {**job.payload, "resume": True} if job.kind == "train" else job.payload
