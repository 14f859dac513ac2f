"""Calls on Dask workers: our own cluster (cluster.py), or a remote scheduler by the same code.

One thread keeps the connection; a lost scheduler counts as the death of every worker, then our own is started
again, a remote one is tried until it answers. What Dask says reaches the engine through one thread, in order.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from backend.errors import Broken
from backend.jobs import dask_worker, task
from backend.jobs.cluster import Cluster
from backend.jobs.dask_client import connect
from backend.jobs.driver import Call, Listener, Worker
from backend.jobs.state import error_record
from backend.settings import Settings

log = logging.getLogger(__name__)
WATCH = 0.5  # seconds between two looks at the connection
PATIENCE = 5.0  # seconds that one attempt to connect to a remote scheduler may take
PATIENCE_HERE = 60.0  # to our own: it lives, or we know; on a busy machine giving up early would restart it for ever


class DaskDriver:
    """Brings workers up in the background; `settings.scheduler` attaches to a remote scheduler instead.

    `warm=False` leaves out the import of torch at a worker's start.
    """

    synchronous = False

    def __init__(self, settings: Settings, warm: bool = True):
        self.settings = settings
        self._cluster = None if settings.scheduler else Cluster(settings, warm)
        self._client: Any = None
        self._listener: Any = None
        self._closing = threading.Event()
        self._topic = f"phasescope-{uuid.uuid4().hex}"
        self._known: set[str] = set()
        self._pids: dict[str, int] = {}
        self._troubles: dict[str, str] = {}
        self._memory: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._futures: dict[str, Any] = {}
        self._mouth = ThreadPoolExecutor(1, "phasescope-dask-events")
        self._hands = ThreadPoolExecutor(16, "phasescope-dask-calls")
        self._keeper = threading.Thread(target=self._live, name="phasescope-dask", daemon=True)

    def start(self, listener: Listener) -> None:
        """Begin to bring the workers up."""
        self._listener = listener
        self._keeper.start()

    @property
    def notices(self) -> list[str]:
        """What a person should know of our own cluster; nothing of a remote one."""
        return list(self._cluster.notices) if self._cluster else []

    # ------------------------------------------------------------ the connection

    def _live(self) -> None:
        while not self._closing.is_set():
            try:
                self._connect()
                while not self._closing.wait(WATCH) and self._connected():
                    self._look_around()
            except Exception as error:
                log.debug("The connection to the scheduler failed", exc_info=True)
                self._tell("said", f"{self._where()} does not answer ({_short(error)}); trying again")
            if not self._closing.is_set():
                self._lose()
                self._closing.wait(WATCH)

    def _where(self) -> str:
        return f"The scheduler at {self.settings.scheduler}" if self.settings.scheduler else "Our scheduler"

    def _connect(self) -> None:
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is told by `said`
        address = self._cluster.start() if self._cluster else self.settings.scheduler
        patience = PATIENCE_HERE if self._cluster else PATIENCE
        self._client = connect(address, patience, self._security())
        if self._closing.is_set():  # `close` did not wait for us
            _quietly(self._client.close, timeout=1)
            return
        self._client.subscribe_topic("all", self._on_cluster_event)
        self._client.subscribe_topic(self._topic, self._on_progress)
        self._look_around()

    def _security(self) -> Any:
        """Our own scheduler takes only who has its key; a remote one is as Dask's configuration says."""
        from distributed import Security

        files = self._cluster.tls() if self._cluster else None
        if files is None:
            return None
        certificate, key = files
        return Security(tls_ca_file=certificate, tls_client_cert=certificate, tls_client_key=key,
                        require_encryption=True)

    def _connected(self) -> bool:
        return self._client.status == "running" and (self._cluster is None or self._cluster.alive())

    def _look_around(self) -> None:
        """Compare what we know with what the scheduler knows: an event may have been missed."""
        if self._cluster:
            self._cluster.mend()
        before = set(self._known)  # one that comes while we ask is not in the answer, yet it is there
        try:
            # not client.scheduler_info: it returns a field that Dask's own refresh overwrites with no workers at all
            workers = self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"]
        except OSError:  # busy, or gone: which of the two `_connected` knows
            return
        self._memory = {a: int(w.get("metrics", {}).get("memory", 0)) for a, w in workers.items()}
        self._limits = {a: int(w.get("memory_limit") or 0) for a, w in workers.items()}
        for address in set(workers) - self._known:
            self._up(address)
        for address in before - set(workers):
            self._down(address)
        waiting = "" if workers else "Waiting for workers"
        self._tell("said", next(iter(dict(self._troubles).values()), waiting))

    def _lose(self) -> None:
        """Forget the connection: every worker counts as dead."""
        if self._known:
            self._tell("said", f"{self._where()} was lost; connecting again")
        for address in set(self._known):
            self._down(address, " with the scheduler")
        client, self._client, self._futures = self._client, None, {}
        if self._cluster:
            self._cluster.stop()
        if client is not None:
            self._hands.submit(_quietly, client.close, timeout=1)

    # ------------------------------------------------------------ what Dask says

    def _on_cluster_event(self, event: tuple) -> None:
        """On the event loop: a worker came or went."""
        message = event[1]
        if isinstance(message, dict) and message.get("action") == "add-worker":
            self._up(message["worker"])
        elif isinstance(message, dict) and message.get("action") == "remove-worker":
            self._down(message["worker"])

    def _on_progress(self, event: tuple) -> None:
        message = event[1]
        self._tell("reported", message["attempt"], message["fraction"], message["words"])

    def _up(self, address: str) -> None:
        if address not in self._known:
            self._known.add(address)
            self._hands.submit(self._greet, address)

    def _greet(self, address: str) -> None:
        try:
            facts = self._ask(address, dask_worker.facts)
            self._pids[address] = facts["pid"]
            self._tell("worker_up", Worker(address, facts["pid"], facts["host"], gpu=facts["gpu"]))
            if address not in self._known:  # it went while it said hello
                self._tell("worker_down", address, "")
        except Exception as error:
            if address in self._known and not self._closing.is_set():
                self._troubles[address] = f"Worker {address} cannot be used: {_short(error)}"

    def _down(self, address: str, why: str = "") -> None:
        self._known.discard(address)
        self._troubles.pop(address, None)
        if self._cluster and (pid := self._pids.pop(address, 0)):
            with suppress(OSError):  # what the scheduler gave up may compute on, and hold a run that goes on elsewhere
                os.kill(pid, signal.SIGKILL)
        self._tell("worker_down", address, why)

    def _tell(self, what: str, *args: Any) -> None:
        with suppress(RuntimeError):  # the thread has ended: so has the engine
            self._mouth.submit(_logged, getattr(self._listener, what), *args)

    # ------------------------------------------------------------ what the engine asks

    def run(self, call: Call, worker: Worker) -> None:
        """Submit the call to that very worker. Raises Broken where the connection is gone."""
        client = self._client
        if client is None:
            raise Broken("A job", "the scheduler is gone", "It starts again by itself")
        future = client.submit(
            dask_worker.run_call, asdict(call), self._topic, key=f"phasescope-{call.key}-{call.attempt}", pure=False,
            retries=0, workers=[worker.address], allow_other_workers=False,
            resources={"GPU": 1} if worker.gpu else None)
        self._futures[call.attempt] = future
        future.add_done_callback(lambda f: self._hands.submit(self._collect, call.attempt, worker.address, f))

    def _collect(self, attempt: str, address: str, future: Any) -> None:
        from distributed import KilledWorker

        try:
            self._tell("returned", attempt, future.result(timeout=600))
        except KilledWorker:
            self._down(address)
        except BaseException as error:  # also CancelledError, which is no Exception
            if self._client is future.client and self._client.status == "running" and address in self._known:
                record = error_record(error, traceback.format_exc())
                self._tell("returned", attempt, {"ok": False, "error": {**record, "error": "Broken"}})
        finally:
            self._futures.pop(attempt, None)

    def ask_cancel(self, call: Call, worker: Worker) -> None:
        """Ask in the background: the worker may be too busy to answer."""
        self._hands.submit(_logged, self._ask, worker.address, dask_worker.cancel_call, call.attempt)

    def kill(self, call: Call, worker: Worker) -> None:
        """End the worker's process through its nanny, in the background."""
        self._hands.submit(self._kill, call, worker)

    def _kill(self, call: Call, worker: Worker) -> None:
        try:
            if not self._client.run(dask_worker.kill_process, worker.pid, nanny=True, workers=[worker.address]):
                self._client.run(dask_worker.kill_self, workers=[worker.address], on_error="ignore")
        except Exception as error:
            self._tell("noted", call.attempt, f"Process {worker.pid} could not be ended: {_short(error)}")

    def _ask(self, address: str, function: Any, *args: Any) -> Any:
        return self._client.run(function, *args, workers=[address])[address]

    def memory(self) -> dict[str, int]:
        """Return the resident bytes that workers last told."""
        return dict(self._memory)

    def room(self) -> int | None:
        """Return what the roomiest worker has left below its limit, and of our own machine what there is at all."""
        memory, limits = self._memory, self._limits
        left = [max(0, limit - memory.get(a, 0)) for a, limit in limits.items() if limit]
        here = [task.free_memory()] if self._cluster else []
        return min([max(left), *here]) if left else min(here, default=None)

    def close(self) -> None:
        """Let go of a remote cluster, end our own."""
        self._closing.set()
        self._keeper.join(timeout=WATCH)
        if self._client is not None:
            _quietly(self._client.close, timeout=1)
        if self._cluster:
            self._cluster.close()
        self._mouth.shutdown(wait=False, cancel_futures=True)
        self._hands.shutdown(wait=False, cancel_futures=True)


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _logged(function: Any, *args: Any) -> None:
    try:
        function(*args)
    except Exception:
        log.debug("A message of the Dask driver was lost", exc_info=True)


def _quietly(function: Any, **kwargs: Any) -> None:
    with suppress(Exception):
        function(**kwargs)
