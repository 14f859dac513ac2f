"""The store under load: `python -m benchmarks.store [rows ...]` (default 1e6 1e7). Prints one table.

A run here has 4 scalar series of 20 000 steps and 120 head scores of 1 000 steps: 200 000 rows. Each look-up and
chart is asked REPEATS times of runs drawn at random; nothing is warmed on purpose.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from backend import tables
from backend.contract import Analysis, Axis, Params, Prompt, Request, Result, Value
from backend.store.store import Store
from benchmarks.table import head, line

REPEATS = 40
BATCH = 10_000  # rows of one append: what a follower finds in a busy run
SCALARS, LONG = ("loss", "acc", "lr", "grad_norm"), 20_000
HEADS, SHORT = [(layer, head) for layer in range(12) for head in range(10)], 1_000
ROWS_PER_RUN = len(SCALARS) * LONG + len(HEADS) * SHORT


def main() -> None:
    sizes = [int(float(a)) for a in sys.argv[1:]] or [1_000_000, 10_000_000]
    head("what", "p50 ms", "p95 ms", "note")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            metrics(Path(folder), max(1, rows // ROWS_PER_RUN))
    with tempfile.TemporaryDirectory() as folder:
        results(Path(folder))


def one_run(rng: np.random.Generator) -> pd.DataFrame:
    """The metrics of one run in the order a training loop writes them, roughly: scalars, then heads."""
    scalars = [_series(name, None, None, LONG, rng) for name in SCALARS]
    return pd.concat(
        scalars + [_series("induction", layer, head, SHORT, rng) for layer, head in HEADS], ignore_index=True
    )


def _series(name: str, layer: int | None, head: int | None, n: int, rng: np.random.Generator) -> pd.DataFrame:
    ints = {"layer": pd.array([layer] * n, "Int32"), "head": pd.array([head] * n, "Int32")}
    return pd.DataFrame(
        {
            "step": np.arange(n),
            "metric": name,
            **ints,
            "value": rng.normal(size=n).cumsum(),
            "time": np.arange(n) * 0.013,
        }
    )


def metrics(folder: Path, n_runs: int) -> None:
    """Fill the store with runs batch by batch, then ask."""
    store, rng = Store.open(folder, 10**12), np.random.default_rng(0)
    rows, spent = one_run(rng).sort_values("step", kind="stable"), []
    for i in range(n_runs):
        for at in range(0, len(rows), BATCH):
            batch = rows.iloc[at : at + BATCH]
            spent.append(seconds(lambda b=batch, a=at, i=i: store.append_metrics(f"run{i:04d}", b, a)))
    total = n_runs * ROWS_PER_RUN
    shown(f"{total:.0e} metric rows: append of {BATCH} (durable)", spent, f"{total / sum(spent) / 1e6:.2f} M rows/s")
    store.close()
    line("on disk", "", "", f"{store.disk_bytes() / 1e6:.0f} MB")
    store = Store.open(folder, 10**12)
    ask(store, n_runs, rng, f"{total:.0e}")
    store.close()


def ask(store: Store, n_runs: int, rng: np.random.Generator, size: str) -> None:
    def run() -> str:
        return f"run{rng.integers(n_runs):04d}"

    def point() -> None:
        where = f"run = '{run()}' AND metric = 'induction' AND layer = {rng.integers(12)} AND head = 3 AND step = 500"
        assert len(store.query(f"SELECT value FROM metrics WHERE {where}")) == 1

    def chart(names: list[str] | None, expected: int) -> Callable[[], None]:
        def work() -> None:
            assert len(store.metrics(run(), names, points=2000)) >= expected

        return work

    for name, work in {
        "point look-up": point,
        "chart: loss, 20 000 -> 2 000 points": chart(["loss"], 1000),
        "chart: 4 scalars, 80 000 -> 8 000": chart(list(SCALARS), 4000),
        "chart: 120 heads, 120 000 rows whole": chart(["induction"], 120_000),
        "last step of a run": lambda: store.last_step(run()),
        "offset of a run": lambda: store.run_offset(run()),
    }.items():
        shown(f"{size}: {name}", [seconds(work) for _ in range(REPEATS)])


def results(folder: Path) -> None:
    """Keep attention results of GPT-2 small's shape at 128 tokens, 12 x 12 x 128 rows and 288 blobs each."""
    analysis, result, store = attention(), attention_result(), Store.open(folder, 10**12)
    keys = [request(analysis, i) for i in range(REPEATS)]
    shown(
        "put of 12x12x128 rows and 288 blobs",
        [seconds(lambda r=r: store.put(analysis, r, result, card={"spec": r.spec})) for r in keys],
        f"{store.size_bytes() / REPEATS / 1e6:.1f} MB each",
    )
    part = {"layer": 3, "head": 4}
    for name, work in {
        "one head [128, 128] of 144": lambda k: store.arrays(k, "pattern", part),
        "all heads": lambda k: store.arrays(k, "pattern"),
        "144 display copies": lambda k: store.arrays(k, "pattern@display"),
        "table, 18 432 rows": lambda k: store.table(analysis, k),
        "table of one head": lambda k: store.table(analysis, k, part),
        "has": store.has,
        "record": store.record,
    }.items():
        shown(f"{REPEATS} results: {name}", [seconds(lambda r=r, w=work: w(r.key)) for r in keys])
    shown("list of results", [seconds(store.results) for _ in range(REPEATS)])
    shown("delete of one", [seconds(lambda r=r: store.delete([r.key])) for r in keys])
    store.close()


def attention() -> Analysis:
    values = (Value("entropy", ""), Value("previous", ""), Value("pattern", "", kind="array", limits=(0.0, 1.0)))
    axes = (Axis("layer", ""), Axis("head", ""), Axis("query_pos", ""))
    return Analysis("bench_attention", 1, "Attention", "?", Prompt, Params, axes, values, lambda *_: None)


def attention_result(layers: int = 12, heads: int = 12, length: int = 128) -> Result:
    rng = np.random.default_rng(0)
    layer, head, query = np.indices((layers, heads, length)).reshape(3, -1)
    scores = np.where(np.arange(length) <= query[:, None], rng.normal(size=(layer.size, length)) * 3, -np.inf)
    pattern = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    frame = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "query_pos": query,
            "entropy": rng.random(layer.size),
            "previous": rng.random(layer.size),
            "pattern": list(pattern),
        }
    )
    table, arrays = tables.pack(attention(), frame)
    return Result(table, arrays, {"seconds": 1.0})


def request(analysis: Analysis, i: int) -> Request:
    return Request(
        analysis=analysis.name,
        version=1,
        spec="run:bench",
        step=1,
        fingerprint="f",
        dtype="float32",
        device="cpu",
        subject=Prompt(tokens=(1, i)).model_dump(),
        params={},
    )


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def shown(name: str, spent: list[float], note: str = "") -> None:
    p50, p95 = np.percentile(np.array(spent) * 1e3, [50, 95])
    line(name, f"{p50:.2f}", f"{p95:.2f}", note)


if __name__ == "__main__":
    main()
