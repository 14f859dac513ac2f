"""Our own scheduler and workers as subprocesses on the loopback address. No Dask import: only command lines.

Never LocalCluster or multiprocessing here: under Streamlit a spawned child runs the app's script again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from backend.errors import Broken
from backend.jobs.lifeline import PRIVATE
from backend.settings import ROOT, Settings

log = logging.getLogger(__name__)
START_TIMEOUT = 180.0  # of a scheduler that lives: on a cold disk its imports alone may take a minute
#: how Dask must behave for us: a death is told at once, memory ends a worker rather than pausing it for ever
DASK = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1 hour",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "0.95",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__DIAGNOSTICS__NVML": "False",
}
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Dask's nanny asks malloc to give memory back at once (64 KiB), and then every tensor is mapped anew: attention of a
# GPT-2-small took 0.58 instead of 0.41 s, the lens 3.5 instead of 2.1 s. Keep up to 256 MB, map only above 32 MiB.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
PLAIN = ("openssl is missing or failed, so the workers' connections are plain: other users of this machine could run "
         "code through them. Install openssl and restart Phasescope")
QUIET = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]


def gpus(settings: Settings) -> list[str]:
    """Return CUDA_VISIBLE_DEVICES for each GPU (or MIG slice) that may be used, without loading torch."""
    if settings.device == "cpu":
        return []
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [d for d in allowed.split(",") if d.strip() and d.strip() != "-1"]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _parse_gpus(listing)


def _parse_gpus(listing: str) -> list[str]:
    """Read `nvidia-smi -L`: a GPU that is cut into MIG slices counts as its slices."""
    found: list[str] = []
    for prefix, uuid in re.findall(r"^(\s*)\S.*\(UUID: ([^)]+)\)", listing, re.MULTILINE):
        if prefix and found and found[-1].startswith("GPU-"):
            found.pop()
        found.append(uuid)
    return found


class Cluster:
    """A scheduler, and one worker (behind its nanny) per GPU, else per core; each computes one job at a time.

    CPU workers advertise GPU=1 like the others, so that exclusive use is one mechanism, not two.
    """

    def __init__(self, settings: Settings, warm: bool = True):
        self._settings, self._warm = settings, warm
        self.notices: list[str] = []
        self._scheduler: subprocess.Popen | None = None
        self._nannies: dict[int, subprocess.Popen] = {}
        self._folder = Path()
        self._tls: tuple[str, str] | None = None
        self._devices: list[str] = []
        self._lock, self._closed = threading.RLock(), False

    def start(self) -> str:
        """Start everything; returns the scheduler's address. Raises Broken with the last words of its log."""
        self._folder = Path(tempfile.mkdtemp(prefix="phasescope-"))  # 0700: only the owner reads it
        self._tls = _certificate(self._folder)
        if self._tls is None:
            self._say_plain()
        self._scheduler = self._spawn("scheduler", [
            "distributed.cli.dask_scheduler", *QUIET, *self._tls_options(), "--port", "0",
            "--scheduler-file", str(self._file), "--preload", "backend.jobs.lifeline"], {})
        self._devices = gpus(self._settings)
        for number in range(self._count()):
            self._start_worker(number)
        return self._address()

    @property
    def _file(self) -> Path:
        return self._folder / "scheduler.json"

    def tls(self) -> tuple[str, str] | None:
        """Return the files (certificate, key) that a client needs, or None where the connection is plain."""
        return self._tls

    def _say_plain(self) -> None:
        """Once, in the log and as a notice: without a certificate others on this machine can reach the workers."""
        if not self.notices:
            self.notices.append(PLAIN)
            log.warning(PLAIN)

    def _tls_options(self) -> list[str]:
        if self._tls is None:
            return []
        certificate, key = self._tls
        return ["--protocol", "tls", "--tls-ca-file", certificate, "--tls-cert", certificate, "--tls-key", key]

    def alive(self) -> bool:
        """True while the scheduler runs."""
        return self._scheduler is not None and self._scheduler.poll() is None

    def mend(self) -> int:
        """Start nannies again that have ended; returns how many."""
        gone = [n for n, p in self._nannies.items() if p.poll() is not None]
        for number in gone:
            _end(self._nannies[number])
            self._start_worker(number)
        return len(gone)

    def stop(self) -> None:
        """End all of it at once; the engine has asked running jobs to stop before."""
        with self._lock:
            for process in (*self._nannies.values(), self._scheduler):
                if process is not None:
                    _end(process)
            self._nannies, self._scheduler = {}, None
            if self._folder.name:
                shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """End all of it for good: a start that is under way in another thread gives up."""
        self._closed = True
        self.stop()

    def _start_worker(self, number: int) -> None:
        env = {"CUDA_VISIBLE_DEVICES": self._devices[number % len(self._devices)]} if self._devices else {}
        self._nannies[number] = self._spawn(f"worker-{number}", [
            "distributed.cli.dask_worker", *QUIET, *self._tls_options(), "--scheduler-file", str(self._file),
            "--nthreads", "1", "--nworkers", "1", "--nanny", "--memory-limit", self._memory_limit(),
            "--resources", "GPU=1", "--local-directory", str(self._folder),
            "--preload", "backend.jobs.dask_worker", "--preload-nanny", "backend.jobs.lifeline"], env)

    def _count(self) -> int:
        """One per GPU, or one per core and one more: training leaves it to the views."""
        return self._settings.workers or len(self._devices) or (os.cpu_count() or 1) + 1

    def _memory_limit(self) -> str:
        """Bytes per worker, or a fraction of what this machine (or container) has, which Dask knows better than we."""
        if self._settings.worker_memory_gb:
            return str(int(self._settings.worker_memory_gb * 1e9))
        return f"{0.8 / self._count():.6f}"

    def _spawn(self, name: str, command: list[str], env: dict[str, str]) -> subprocess.Popen:
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
        environ = {**os.environ, **DASK, **THREADS, **MALLOC, "PYTHONPATH": path, PRIVATE: str(self._folder),
                   "PHASESCOPE_WARM": "1" if self._warm else "0", "TOKENIZERS_PARALLELISM": "false", **env}
        with self._lock:
            if self._closed:
                raise Broken(f"Starting the {name}", "Phasescope is closing", "Nothing to do")
            with open(self._folder / f"{name}.log", "ab") as log:
                return subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=log, stderr=log,
                                        env=environ, cwd=self._folder, start_new_session=True)

    def _address(self) -> str:
        end = time.monotonic() + START_TIMEOUT
        while self.alive() and time.monotonic() < end:
            with suppress(OSError, ValueError, KeyError):
                return json.loads(self._file.read_text())["address"]
            time.sleep(0.02)
        last = self._last_words("scheduler")
        raise Broken("The scheduler", f"did not start: {last}", "Look at `python -m backend doctor`")

    def _last_words(self, name: str) -> str:
        with suppress(OSError):
            lines = (self._folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
            return lines[-1][:300] if lines else "no word"
        return "no log"


def _certificate(folder: Path) -> tuple[str, str] | None:
    """Make a certificate that signs itself, so that nobody else on this machine can hand our workers code.

    Dask runs whatever a client sends; the key lies in a folder that only the owner reads. None without `openssl`.
    """
    certificate, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-batch", "-subj", "/CN=phasescope", "-days", "3650", "-keyout", key, "-out", certificate]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return certificate, key


def _end(process: subprocess.Popen) -> None:
    """Kill the process and its group: a nanny and its worker, also one that is stuck in C."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()
