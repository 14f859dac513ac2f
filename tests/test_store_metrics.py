"""Metrics: rows and offset together, thinned so that no spike is lost."""

import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from backend.errors import Broken
from backend.store.store import Store
from tests.store_kit import ROOMY


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path, ROOMY)
    yield opened
    opened.close()


def rows(values, metric="loss", layer=None, head=None, steps=None):
    steps = range(len(values)) if steps is None else steps
    return pd.DataFrame({"step": steps, "metric": metric, "layer": layer, "head": head, "value": values, "time": 0.5})


def test_rows_and_offset_survive_a_restart_together(tmp_path):
    store = Store.open(tmp_path, ROOMY)
    assert store.run_offset("r") == 0 and store.last_step("r") is None and store.metric_names("r") == []
    store.put_run("r", "/somewhere", {"seed": 1})
    store.append_metrics("r", rows([3.0, 2.0]), 40)
    store.append_metrics("r", rows([1.0], "acc", steps=[7]), 55)
    store.append_metrics("r", rows([]), 60)  # a line without metrics still moves the offset
    store.close()
    store = Store.open(tmp_path, ROOMY)
    assert (store.run_offset("r"), store.last_step("r"), store.metric_names("r")) == (60, 7, ["acc", "loss"])
    assert store.run("r") == {"name": "r", "folder": "/somewhere", "info": {"seed": 1}, "offset": 60}
    store.put_run("r", "/elsewhere", {"seed": 2})
    assert store.runs()[["name", "folder", "info", "offset"]].to_numpy().tolist() == [
        ["r", "/elsewhere", {"seed": 2}, 60]
    ]
    assert store.run("none") is None
    store.reset_run("r")
    assert (store.run_offset("r"), len(store.metrics("r"))) == (0, 0)
    store.close()


def test_short_series_come_whole_and_in_order(store):
    store.append_metrics("r", rows([1.0, 2.0], "b", layer=1, head=0, steps=[5, 3]), 1)
    store.append_metrics("r", rows([4.0], "b"), 1)
    store.append_metrics("r", rows([9.0], "a", layer=2), 1)
    store.append_metrics("other", rows([0.0], "a"), 1)
    found = store.metrics("r")
    expected = [["a", 2, None, 0, 9.0], ["b", 1, 0, 3, 2.0], ["b", 1, 0, 5, 1.0], ["b", None, None, 0, 4.0]]
    got = [
        [None if pd.isna(v) else v for v in r]
        for r in found[["metric", "layer", "head", "step", "value"]].to_numpy().tolist()
    ]
    assert got == expected
    assert found.attrs["thinned"] == {}
    assert store.metrics("r", names=["a"])["metric"].tolist() == ["a"]
    assert store.metrics("r", names=["none"]).empty and store.metrics("none").empty
    assert list(store.metrics("none").columns) == ["step", "metric", "layer", "head", "value"]


@pytest.mark.parametrize("seed", range(6))
def test_thinning_keeps_ends_and_extremes_of_every_bucket(store, seed):
    rng = np.random.default_rng(seed)
    n, points = int(rng.integers(500, 5000)), int(rng.integers(8, 200))
    steps = np.sort(rng.choice(10 * n, n, replace=False))
    values = rng.normal(size=n).cumsum()
    store.append_metrics("r", rows(values, steps=steps).sample(frac=1, random_state=seed), 1)
    found = store.metrics("r", points=points)
    assert len(found) <= points and store.metrics("r", points=n).shape[0] == n
    assert found.attrs["thinned"] == {"loss": (len(found), n)}
    kept = dict(zip(found["step"], found["value"], strict=True))
    truth = dict(zip(steps.tolist(), values, strict=True))
    assert kept.items() <= truth.items() and found["step"].is_monotonic_increasing and found["step"].is_unique
    assert {steps[0], steps[-1]} <= kept.keys()
    buckets = (points - 2) // 2
    bucket = (steps - steps[0]) * buckets // (steps[-1] - steps[0] + 1)
    inner = slice(1, -1)
    for b in np.unique(bucket[inner]):
        here = values[inner][bucket[inner] == b]
        assert {here.min(), here.max()} <= set(kept.values())


def test_nan_and_infinities_survive_and_are_never_thinned_away(store):
    values = np.zeros(3000)
    values[[100, 101, 1500, 2900]] = [np.inf, -np.inf, np.nan, 7.0]
    store.append_metrics("r", rows(values), 1)
    found = store.metrics("r", points=50).set_index("step")["value"]
    assert len(found) <= 50
    assert found[100] == np.inf and found[101] == -np.inf and np.isnan(found[1500]) and found[2900] == 7.0
    store.append_metrics("all", rows(np.full(500, np.nan)), 1)
    assert store.metrics("all", points=20)["value"].isna().all() and len(store.metrics("all", points=20)) >= 8
    counts = store.query(
        "SELECT count(*) FILTER (isnan(value)) AS nan, count(*) - count(value) AS missing FROM metrics"
    )
    assert counts.iloc[0].tolist() == [501, 0]


def test_a_step_written_again_counts_once_with_its_last_value(store):
    store.append_metrics("r", rows([1.0, 2.0, 3.0]), 1)
    store.append_metrics("r", rows([20.0, 30.0, 40.0], steps=[1, 2, 3]), 2)
    assert store.metrics("r")["value"].tolist() == [1.0, 20.0, 30.0, 40.0]


def test_series_are_thinned_each_by_itself(store):
    store.append_metrics("r", rows(np.arange(1000.0), "score", 0, 1), 1)
    store.append_metrics("r", rows(np.arange(10.0), "score", 0, 2), 1)
    found = store.metrics("r", points=100)
    assert found.attrs["thinned"].keys() == {"score L0H1"} and (found["head"] == 2).sum() == 10


def test_arrow_and_frame_are_the_same(store):
    frame = rows([1.0, float("nan")], layer=[1, None])
    table = pa.table(
        {
            **{n: frame[n].tolist() for n in ("step", "metric", "value", "time")},
            "layer": pa.array([1, None], pa.int64()),
            "head": pa.nulls(2),
        }
    )
    store.append_metrics("one", frame, 1)
    store.append_metrics("two", table, 1)
    pd.testing.assert_frame_equal(store.metrics("one"), store.metrics("two"))
    with pytest.raises(Broken, match="Columns are"):
        store.append_metrics("r", frame.drop(columns="time"), 1)
    with pytest.raises(Broken):
        store.append_metrics("r", frame.assign(step="x"), 1)
    assert store.run_offset("r") == 0


def test_batches_that_wait_together_keep_their_order(store):
    """The writer is held while 40 appends queue up: they become one transaction, offsets end at the last."""
    held, go = threading.Event(), threading.Event()
    holder = threading.Thread(target=lambda: store._writer.run(lambda cursor: (held.set(), go.wait(30))))
    holder.start()
    assert held.wait(30)
    appends = []
    for i in range(40):
        done = threading.Thread(target=store.append_metrics, args=(f"r{i % 2}", rows([float(i)], steps=[i]), i + 1))
        done.start()
        appends.append(done)
        while store._writer._queue.qsize() <= i:
            assert done.is_alive()
    go.set()
    for thread in [holder, *appends]:
        thread.join(timeout=30)
    assert (store.run_offset("r0"), store.run_offset("r1")) == (39, 40)
    assert store.metrics("r0")["value"].tolist() == [float(i) for i in range(0, 40, 2)]
    order = store.query("SELECT run, step FROM metrics ORDER BY rowid")
    assert order["run"].is_monotonic_increasing  # a run's rows lie together
