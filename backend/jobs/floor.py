"""Where jobs meet workers: hands jobs out, hears what the driver tells, writes each ending into the story."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

from backend.jobs.desk import TELL_EVERY, Desk
from backend.jobs.driver import Call, Worker
from backend.jobs.state import Job, error_record, step


class Floor(Desk):
    """The listener of a driver (driver.Listener). Safe from any thread."""

    # ------------------------------------------------------------ what the driver tells

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
                self._line_up(job_id)
        self._pump()

    def _line_up(self, job_id: str) -> None:
        """Put a job at the end of the queue, an urgent one at the end of the urgent ones."""
        ahead = sum(i in self._urgent for i in self._queue) if job_id in self._urgent else len(self._queue)
        self._queue.insert(ahead, job_id)

    def _hurry(self, job_id: str) -> None:
        """Let a job that waits go before all that nobody looks at."""
        if job_id in self._queue and job_id not in self._urgent:
            self._urgent.add(job_id)
            self._queue.remove(job_id)
            self._line_up(job_id)

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
        """Match waiting jobs and idle workers; a key whose earlier attempt is still stopping waits for its end.

        Training never takes the last of several workers: it would keep every view waiting for minutes.
        """
        idle = [w for w in self._workers.values() if not w.job]
        busy_keys = {call.key for call, _ in self._calls.values()}
        training = max(len(self._workers) - 1, 1) - sum(call.kind == "train" for call, _ in self._calls.values())
        pairs = []
        for job in (self._jobs[i] for i in self._queue if self._jobs[i].key not in busy_keys):
            if not idle:
                break
            if job.kind == "train" and training <= 0:
                continue
            training -= job.kind == "train"
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


def _resumed(job: Job) -> dict[str, Any]:
    """Training whose worker died goes on from its last checkpoint; anything else starts anew."""
    return {**job.payload, "resume": True} if job.kind == "train" else job.payload
