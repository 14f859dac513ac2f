"""What recording costs a training loop, and how soon a logged line can be read: `python -m benchmarks.recorder`.

Overhead: seconds per `log()` call (5, 21 and 200 metrics), per checkpoint with and without optimiser state, and the
share of a step of the induction recipe, where steps with and without logging alternate in one process.
Latency: from the return of `log()` in another process to the moment when the row can be queried in the store,
through a Follower at its usual pace.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from backend.runs.follow import Follower, RunFolder
from backend.runs.recorder import Recorder
from backend.store.store import Store
from benchmarks.table import head, line

WRITER = """
import sys, time
from backend.runs.recorder import Recorder
run = Recorder(sys.argv[1])
for step in range(int(sys.argv[2])):
    run.log(step, logged=time.time())
    time.sleep(float(sys.argv[3]))
run.finish()
"""


def row(what: str, seconds: list[float], unit: float = 1e6, name: str = "us") -> None:
    """Print one line: p50, p95 and the largest."""
    p50, p95 = np.percentile(seconds, [50, 95]) * unit
    line(what, *(f"{v:.1f} {name}" for v in (p50, p95, max(seconds) * unit)))


def timed(work, times: int) -> list[float]:
    """Return the seconds of every call."""
    found = []
    for i in range(times):
        began = time.perf_counter()
        work(i)
        found.append(time.perf_counter() - began)
    return found


def overhead(folder: Path) -> None:
    """Time log calls alone."""
    with Recorder(folder / "calls") as run:
        for n in (5, 21, 200):
            values = {f"induction_score/L{i // 8}H{i % 8}": i / 7 for i in range(n)}
            row(f"log(), {n} metrics", timed(lambda i, values=values: run.log(i, values), 2000))


def steps(folder: Path) -> None:
    """Time training steps of the induction recipe with and without recording, alternating."""
    import torch

    from backend.runs.recipes import induction

    torch.set_num_threads(1)
    training = induction.make_training(induction.InductionParams())
    with Recorder(folder / "steps") as run:
        for _ in range(20):
            training.update()
        values = training.measure()
        bare, logged = [], []
        for i in range(300):
            bare += timed(lambda _: training.update(), 1)
            logged += timed(lambda _, i=i: (training.update(), run.log(i, values)), 1)
        row("training step, bare", bare, 1e3, "ms")
        row("training step + log() of 21 metrics", logged, 1e3, "ms")
        calls = timed(lambda i: run.log(1000 + i, values), 300)
        share = np.median(calls) / np.median(bare)
        line("log() at every step, share of a step (medians)", f"{share:.2%}", "", "")
        line("log() every 20 steps, as the recipe does", f"{share / 20:.3%}", "", "")
        row("measuring the 21 metrics (the recipe itself)", timed(lambda _: training.measure(), 30), 1e3, "ms")
        row("checkpoint(), weights (186 kB, fsync)", timed(lambda i: run.checkpoint(i, training.model), 30), 1e3, "ms")
        row("checkpoint(), weights + optimiser + random state", timed(lambda i: training.keep(run, i), 30), 1e3, "ms")


def latency(folder: Path, every: float, count: int) -> None:
    """Log from another process and poll the store until each row is there."""
    store = Store.open(folder / f"cache-{every}", 1 << 30)
    follower = Follower([folder / "live"], store)
    name = f"r{every}"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder / "live" / name), str(count), str(every)])
    follower.start()
    seen: dict[int, float] = {}
    while len(seen) < count:
        found = store.query(f"SELECT step, value FROM metrics WHERE run = '{name}' AND metric = 'logged'")
        now = time.time()
        for step, logged in zip(found["step"], found["value"], strict=True):
            seen.setdefault(int(step), now - logged)
        time.sleep(0.005)
    process.wait()
    follower.stop()
    store.close()
    row(f"logged to queryable, a line every {every * 1e3:.0f} ms, {count} lines", list(seen.values()), 1e3, "ms")


def reading(folder: Path) -> None:
    """Time reading a long file and a pass over idle runs."""
    with Recorder(folder / "long" / "r") as run:
        for step in range(20_000):
            run.log(step, {f"m/L{i}": i / 3 for i in range(20)})
    began, offset, n, reader = time.perf_counter(), 0, 0, RunFolder(folder / "long" / "r")
    while (chunk := reader.read(offset)).offset != offset:
        offset, n = chunk.offset, n + len(chunk.rows)
    seconds = time.perf_counter() - began
    line(f"reading metrics.jsonl ({offset / 1e6:.0f} MB, {n} rows)", f"{n / seconds / 1e3:.0f} k rows/s", "", "")
    for i in range(100):
        Recorder(folder / "many" / f"r{i}").finish()
    store = Store.open(folder / "cache-many", 1 << 30)
    follower = Follower([folder / "many"], store)
    follower.poll()
    row("a pass of the follower over 100 idle runs", timed(lambda _: follower.poll(), 50), 1e3, "ms")
    store.close()


def main() -> None:
    """Print the table."""
    head("what", "p50", "p95", "max")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        overhead(folder)
        steps(folder)
        latency(folder, 0.1, 100)
        latency(folder, 0.01, 500)
        reading(folder)


if __name__ == "__main__":
    main()
