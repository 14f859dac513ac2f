"""The Dask worker's side: preload, the task that Dask runs, and what the engine asks through `client.run`.

These functions travel by name, so a remote worker needs this repository on its PYTHONPATH and nothing else.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
from contextlib import suppress
from typing import Any

from backend.jobs import task

WARM = "PHASESCOPE_WARM"
NICE = 7  # behind the dashboard, which shares the machine
_cancelled: set[str] = set()
_warming: list[threading.Thread] = []


def dask_setup(worker: Any) -> None:
    """Preload: step behind the dashboard, then import what every job needs in the background."""
    with suppress(OSError, AttributeError):
        os.nice(NICE)
    if os.environ.get(WARM, "1") == "1":
        _warming.append(threading.Thread(target=_warm, name="phasescope-warm", daemon=True))
        _warming[0].start()


def _warm() -> None:
    for name in ("torch", "transformer_lens"):
        with suppress(Exception):  # where it cannot be imported the job that needs it will say so
            importlib.import_module(name)
            if name == "torch":
                importlib.import_module(name).set_num_threads(1)


def facts(dask_worker: Any = None) -> dict[str, Any]:
    """Return {pid, host, gpu} of this worker."""
    resources = dask_worker.state.total_resources if dask_worker is not None else {}
    return {"pid": os.getpid(), "host": socket.gethostname(), "gpu": bool(resources.get("GPU"))}


def run_call(call: dict[str, Any], topic: str) -> dict[str, Any]:
    """The Dask task: perform one call and return its envelope. Progress goes out as events of `topic`."""
    from distributed import get_worker

    worker, attempt = get_worker(), call["attempt"]
    key = worker.get_current_task()

    def send(fraction: float, words: str) -> None:
        worker.log_event(topic, {"attempt": attempt, "fraction": fraction, "words": words})

    def cancelled() -> bool:
        return attempt in _cancelled or _released(worker, key)

    report = task.Reporter(send, cancelled)
    for thread in _warming:  # two threads in one tangle of imports may see a module half made
        if thread.is_alive():
            send(0.0, "loading libraries")
            thread.join()
    try:
        return task.perform(call["target"], call["kind"], call["payload"], call["settings"], report)
    finally:
        _cancelled.discard(attempt)


def _released(worker: Any, key: Any) -> bool:
    """True when nobody waits for this task any more: its engine or its scheduler is gone."""
    known = worker.state.tasks.get(key)
    return known is None or known.state == "cancelled"


def cancel_call(attempt: str) -> None:
    """Let the next progress() of this attempt raise Cancelled."""
    _cancelled.add(attempt)


def kill_process(pid: int) -> None:
    """Run in the nanny: end its worker; the nanny starts a fresh one."""
    os.kill(pid, signal.SIGKILL)


def kill_self() -> None:
    """Run in a worker that has no nanny."""
    os.kill(os.getpid(), signal.SIGKILL)
