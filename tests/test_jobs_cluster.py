"""Clusters as a whole: they end with their owner however it ends, survive their scheduler, and may be remote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.jobs.cluster import Cluster, _parse_gpus, gpus
from backend.jobs.dask_client import _client_class, connect
from backend.jobs.dask_driver import DaskDriver
from backend.jobs.engine import Engine
from backend.settings import ROOT, Settings
from tests.jobs_targets import process_ended, until
from tests.test_jobs_inline import TARGET, Ears, gated

OWNER = """
import json, os, sys, tempfile
tempfile.tempdir = {folder!r}
from backend.jobs.dask_driver import DaskDriver
from backend.jobs.engine import Engine
from backend.settings import Settings
engine = Engine(DaskDriver(Settings(workers=2, device="cpu"), warm=False), "tests.jobs_targets:execute")
from tests.jobs_targets import until
until(lambda: len(engine.workers()) == 2, "workers")
job = engine.submit("stuck_in_c", "k", "Stuck", {ask!r})
until(lambda: os.path.exists({ask!r}["mark"]) and open({ask!r}["mark"]).read(), "it runs")
print(json.dumps([w["pid"] for w in engine.workers()]), flush=True)
sys.stdin.read()
engine.close()
"""


def children(pid: int) -> list[int]:
    """Every process below this one."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    found = [p for p, parent in pairs if parent == pid]
    return found + [c for p in found for c in children(p)]


def test_no_orphans(tmp_path: Path) -> None:
    """One worker is stuck in C holding the interpreter lock, so only a signal from outside can end it."""
    owners = {ending: owner_in(tmp_path / ending) for ending in ("close", "kill -9")}  # side by side
    for ending, owner in owners.items():
        leaves_nothing(tmp_path / ending, ending, owner)


def owner_in(folder: Path) -> subprocess.Popen:
    """Start a process that owns a cluster and keeps its private files in this folder."""
    folder.mkdir()
    code = OWNER.format(folder=str(folder), ask=gated(folder))
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def leaves_nothing(folder: Path, ending: str, owner: subprocess.Popen) -> None:
    """End the owner in this way and see that its whole family and its files are gone."""
    workers = json.loads(owner.stdout.readline())
    family = [p for p in children(owner.pid) if not process_ended(p)]
    assert len(workers) == 2 and set(workers) < set(family) and len(family) >= 5
    if ending == "close":
        owner.stdin.close()
    else:
        owner.send_signal(signal.SIGKILL)
    owner.wait(120)
    until(lambda: all(process_ended(p) for p in family), f"all of {family} end", timeout=60)
    until(lambda: not list(folder.glob("phasescope-*")), "the private folder is gone", timeout=60)


def test_closing_before_the_workers_are_up_leaves_nothing() -> None:
    others = set(children(os.getpid()))  # a browser of an earlier test, say
    engine = Engine(DaskDriver(Settings(workers=1, device="cpu"), warm=False), TARGET)
    until(lambda: set(children(os.getpid())) - others, "the first process starts")
    job = engine.submit("echo", "k", "Echo", {})
    before = set(children(os.getpid())) - others
    engine.close()
    assert engine.get(job.id).state == "interrupted"
    until(lambda: all(process_ended(p) for p in before), "its processes end", timeout=60)


def test_a_lost_scheduler_is_started_again(tmp_path: Path) -> None:
    ears = Ears()
    driver = DaskDriver(Settings(workers=1, device="cpu"), warm=False)
    engine = Engine(driver, TARGET, ears.change, ears.result)
    ask = gated(tmp_path)
    job = engine.submit("gated", "k", "Gated", ask)
    until(lambda: Path(ask["mark"]).exists(), "it runs")
    os.kill(driver._cluster._scheduler.pid, signal.SIGKILL)
    until(lambda: engine.get(job.id).attempts == 2, "it runs on a worker of the new cluster")
    Path(ask["gate"]).touch()
    done = engine.wait(job.id, 180)
    assert done.state == "done" and done.deaths == 1 and "died with the scheduler" in done.story[2]["text"]
    engine.close()


def test_a_killed_nanny_is_replaced() -> None:
    driver = DaskDriver(Settings(workers=1, device="cpu"), warm=False)
    engine = Engine(driver, TARGET)
    pid = until(engine.workers, "a worker is up")[0]["pid"]
    driver._cluster._nannies[0].kill()
    until(lambda: [w["pid"] for w in engine.workers()] not in ([], [pid]), "another worker is up")
    assert engine.wait(engine.submit("echo", "k", "Echo", {}).id, 180).state == "done"
    assert process_ended(pid)
    engine.close()


# ---------------------------------------------------------------- a scheduler somebody else started


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A scheduler on a fixed file and one worker with a nanny, by hand, with Dask's own defaults."""
    file, running = tmp_path / "scheduler.json", {}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PHASESCOPE_WARM": "0"}

    def start(name: str, *command: str) -> None:
        running[name] = subprocess.Popen([sys.executable, "-m", *command], env=env, cwd=tmp_path,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    quiet = ("--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
    start("scheduler", "distributed.cli.dask_scheduler", *quiet, "--port", "0", "--scheduler-file", str(file))
    until(lambda: file.exists() and file.read_text().strip().endswith("}"), "the scheduler writes its address")
    address = json.loads(file.read_text())["address"]
    start("worker", "distributed.cli.dask_worker", address, *quiet[:2], "--nthreads", "1", "--no-dashboard")
    yield {"address": address, "start": start, "running": running, "quiet": quiet}
    for process in running.values():
        process.kill()  # a worker ends with its nanny
        process.wait(120)


def test_a_remote_scheduler_by_the_same_code(remote: dict, tmp_path: Path) -> None:
    """Its allowed-failures is Dask's 3 and it has no GPU resource: deaths and forced cancels work all the same."""
    ears = Ears()
    engine = Engine(DaskDriver(Settings(scheduler=remote["address"])), TARGET, ears.change, ears.result, grace=1.0)
    ask, deaf = gated(tmp_path), gated(tmp_path, "deaf")
    job = engine.submit("gated", "k", "Gated", ask)
    first = int(until(lambda: Path(ask["mark"]).exists() and Path(ask["mark"]).read_text(), "it runs"))
    os.kill(first, signal.SIGKILL)
    until(lambda: engine.get(job.id).attempts == 2 and engine.get(job.id).progress > 0, "it runs again")
    Path(ask["gate"]).touch()
    assert engine.wait(job.id, 180).state == "done" and engine.get(job.id).deaths == 1
    stuck = engine.submit("stuck_in_c", "s", "Stuck", deaf)
    until(lambda: Path(deaf["mark"]).exists(), "it is stuck")
    engine.cancel(stuck.id, force=True)
    assert engine.wait(stuck.id, 180).state == "cancelled"
    assert engine.wait(engine.submit("echo", "e", "Echo", {}).id, 180).state == "done"
    engine.close()
    assert all(p.poll() is None for p in remote["running"].values())  # what others started goes on


def test_a_lost_remote_scheduler_is_said_and_found_again(remote: dict, tmp_path: Path) -> None:
    ears = Ears()
    engine = Engine(DaskDriver(Settings(scheduler=remote["address"])), TARGET, ears.change, ears.result)
    until(engine.workers, "a worker is up")
    remote["running"]["scheduler"].kill()
    job = engine.submit("echo", "k", "Echo", {})
    until(lambda: "trying again" in engine.status(), "it says so")
    assert remote["address"] in engine.status() and engine.get(job.id).state in ("queued", "done")
    remote["running"]["worker"].kill()
    port = remote["address"].rsplit(":", 1)[1]
    remote["start"]("scheduler2", "distributed.cli.dask_scheduler", *remote["quiet"], "--port", port)
    worker = ("distributed.cli.dask_worker", remote["address"], *remote["quiet"][:3], "--nthreads", "1")
    remote["start"]("worker2", *worker)
    assert engine.wait(job.id, 180).state == "done" and engine.status() == ""
    engine.close()


def test_work_of_a_vanished_engine_stops_by_itself(remote: dict, tmp_path: Path) -> None:
    """A task on a remote worker whose engine was killed hears it at its next report; it would write on for ever."""
    ask = gated(tmp_path)
    code = (f"import sys; from backend.settings import Settings; from backend.jobs.engine import Engine\n"
            f"from backend.jobs.dask_driver import DaskDriver\n"
            f"e = Engine(DaskDriver(Settings(scheduler={remote['address']!r})), {TARGET!r})\n"
            f"e.submit('gated', 'k', 'Gated', {ask!r}); sys.stdin.read()")
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE)
    until(lambda: Path(ask["mark"]).exists(), "it runs")
    owner.kill()
    owner.wait(120)
    ears = Ears()
    engine = Engine(DaskDriver(Settings(scheduler=remote["address"])), TARGET, ears.change, ears.result)
    assert engine.wait(engine.submit("echo", "k", "Echo", {}).id, 180).state == "done"  # its one thread is free
    engine.close()


# ---------------------------------------------------------------- devices


def test_gpus_are_read_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = ("GPU 0: NVIDIA A100 (UUID: GPU-aaa)\n"
               "  MIG 1g.5gb Device 0: (UUID: MIG-b)\n  MIG 1g.5gb Device 1: (UUID: MIG-c)\n"
               "GPU 1: NVIDIA A100 (UUID: GPU-ddd)\n")
    assert _parse_gpus(listing) == ["MIG-b", "MIG-c", "GPU-ddd"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert gpus(Settings()) == ["2", "5"] and gpus(Settings(device="cpu")) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus(Settings()) == []


def test_a_cluster_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from backend.errors import Broken

    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / "__init__.py").write_text("raise ImportError('no such luck')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cluster = Cluster(Settings(workers=1, device="cpu"))
    with pytest.raises(Broken, match="no such luck"):
        cluster.start()
    cluster.stop()


def test_a_remote_worker_without_our_code_is_said(remote: dict) -> None:
    engine = Engine(DaskDriver(Settings(scheduler=remote["address"])), TARGET)
    until(lambda: len(engine.workers()) == 1, "the good worker is up")
    options = ("--nthreads", "1", "--no-dashboard", "--no-nanny")
    code = ("import sys; sys.modules['backend'] = None; from distributed.cli.dask_worker import main\n"
            f"main([{remote['address']!r}, *{options!r}])")
    bare = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    remote["running"]["bare"] = bare
    until(lambda: "cannot be used" in engine.status(), "it says so")
    assert len(engine.workers()) == 1
    assert engine.wait(engine.submit("echo", "k", "Echo", {}).id, 180).state == "done"
    bare.kill()
    until(lambda: engine.status() == "", "it no longer says so")
    engine.close()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9"])
def test_a_connection_that_fails_leaves_nothing_behind(address: str) -> None:
    """No thread, and no client for the garbage collector to close while the next one starts: they would wait for ever.

    Nobody answers the first; the second asks for a certificate that there is none of, which is no OSError.
    """
    with pytest.raises((OSError, TypeError)):
        connect(address, 0.2)
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises((OSError, TypeError)) as failed:
            connect(address, 0.2)
        frames = [frame.frame.f_locals.get("self") for frame in failed.traceback]
        assert {c.status for c in frames if isinstance(c, _client_class())} == {"closed"}
    assert threading.active_count() == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="without openssl the connection is plain")
def test_nobody_without_the_key_can_reach_the_scheduler() -> None:
    """Dask runs any code that a client sends, so a stranger on the same machine must not become one."""
    driver = DaskDriver(Settings(workers=1, device="cpu"), warm=False)
    engine = Engine(driver, TARGET)
    until(engine.workers, "a worker is up")
    address = json.loads(driver._cluster._file.read_text())["address"]
    assert address.startswith("tls://127.0.0.1:") and driver._cluster._folder.stat().st_mode & 0o077 == 0
    for stranger in (address, address.replace("tls://", "tcp://")):
        with pytest.raises((OSError, TypeError)):
            connect(stranger, 1)
    assert engine.wait(engine.submit("echo", "k", "Echo", {}).id, 180).state == "done"
    engine.close()


def test_without_openssl_the_plain_connection_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    driver = DaskDriver(Settings(workers=1, device="cpu"), warm=False)
    engine = Engine(driver, TARGET)
    first = until(engine.workers, "a worker is up")[0]["pid"]
    os.kill(driver._cluster._scheduler.pid, signal.SIGKILL)
    until(lambda: [w for w in engine.workers() if w["pid"] != first], "another worker is up, by a new scheduler")
    assert json.loads(driver._cluster._file.read_text())["address"].startswith("tcp://127.0.0.1:")
    assert len(engine.notices) == 1 and "openssl" in engine.notices[0] and "restart" in engine.notices[0]
    said = [r for r in caplog.records if "openssl" in r.getMessage()]
    assert [r.levelname for r in said] == ["WARNING"]
    engine.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="without openssl there is something to say")
def test_with_openssl_there_is_nothing_to_say(tmp_path: Path) -> None:
    cluster = Cluster(Settings(workers=1, device="cpu"), warm=False)
    assert cluster.start().startswith("tls://") and cluster.notices == []
    cluster.close()
