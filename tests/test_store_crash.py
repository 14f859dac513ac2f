"""Killed at any moment: what was acknowledged is there, nothing is half there. And 16 threads at once."""

import random
import signal
import threading

import pandas as pd
import pytest

from backend.store.store import Store
from tests.store_kit import ROOMY, attention, attention_frame, child, put, request, same, whole

WRITE = """
import sys
from pathlib import Path
import pandas as pd
from backend.store.store import Store
from tests.store_kit import ROOMY, attention, put
store, first = Store.open(Path(sys.argv[1]), ROOMY), int(sys.argv[2])
for i in range(first, first + 100000):
    key = put(store, attention("float64"), i, length=96)
    store.append_metrics("r", pd.DataFrame({"step": [i] * 50, "metric": "loss", "layer": None, "head": None,
                                            "value": 0.5, "time": 0.0}), 50 * (i + 1))
    store.put_job({"id": f"j{i % 7}", "state": "running", "created": 1.0, "i": i})
    print(i, flush=True)
"""

#: dies (or meets a full disk) at the moment when a large array's bytes are to be made durable
LARGE = """
import os, signal, sys
from pathlib import Path
from backend.store import blobs
from backend.store.store import Store
from tests.store_kit import ROOMY, attention, put

def end(fd):
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(28, "No space left on device")

store = Store.open(Path(sys.argv[1]), ROOMY)
blobs.INLINE_BYTES, blobs.os.fsync = 100, end
try:
    put(store, attention(), 1)
except OSError as error:
    print(error, store.count_results(), flush=True)
    os._exit(0)  # no close: what lies there lies there
"""


def written_before_a_kill(cache, first, patience):
    """Run the writer until it has acknowledged `patience` rounds, kill it, return the last round it acknowledged."""
    process = child(WRITE, str(cache), str(first))
    last = first - 1
    for _ in range(patience):
        line = process.stdout.readline()
        assert line, process.stderr.read()
        last = int(line)
    process.send_signal(signal.SIGKILL)
    rest = process.communicate(timeout=60)[0].split()
    return int(rest[-1]) if rest else last


def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half(tmp_path):
    """Each round writes about 0.5 MB, so that DuckDB's own checkpoints fall between the kills as well."""
    analysis, next_round = attention("float64"), 0
    draw = random.Random(0)
    for _ in range(5):
        last = written_before_a_kill(tmp_path, next_round, draw.randrange(5, 45))
        store = Store.open(tmp_path, ROOMY)
        assert store.notices == []
        kept = store.count_results()
        assert kept in (last + 1, last + 2)  # the one under way may or may not have been committed
        for i in {0, max(0, last - 1), last, kept - 1, draw.randrange(kept)}:
            assert same(whole(store, analysis, request(analysis, i).key), attention_frame(i, length=96))
        rows = store.query(
            "SELECT (SELECT count(*) FROM arrays) AS blobs, (SELECT count(*) FROM toy_attention_v1) AS cells,"
            " (SELECT count(*) FROM metrics) AS metrics"
        ).iloc[0]
        assert (rows["blobs"], rows["cells"]) == (kept * 8, kept * 4 * 96)
        assert rows["metrics"] == store.run_offset("r") and rows["metrics"] in (50 * (last + 1), 50 * (last + 2))
        assert {j["i"] for j in store.jobs()} >= {last} and len(store.jobs()) == min(7, last + 1)
        next_round = kept
        _level(store, kept)
        store.close()


def _level(store, rounds):
    """Bring the metrics to the number of kept results, as a follower would go on from its offset."""
    missing = 50 * rounds - store.run_offset("r")
    if missing > 0:
        rows = pd.DataFrame(
            {"step": [rounds - 1] * missing, "metric": "loss", "layer": None, "head": None, "value": 0.5, "time": 0.0}
        )
        store.append_metrics("r", rows, 50 * rounds)


KILL_INSIDE = """
import os, sys
from pathlib import Path
from backend.store import statements
from backend.store.store import Store
from tests.store_kit import CARD, ROOMY, attention, put, request
from tests.test_store_results import big
store = Store.open(Path(sys.argv[1]), ROOMY)
print(put(store, attention(), 1), flush=True)
insert = statements.insert
def dies(*arguments):
    if sys.argv[2] == "after":
        insert(*arguments)
    os.kill(os.getpid(), 9)
statements.insert = dies
store.put(attention(), request(attention(), 2), big(2), card=CARD)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_between_the_tensor_file_and_its_row(tmp_path, moment):
    """Just before the row's transaction, and inside it with every row written but not committed."""
    key = child(KILL_INSIDE, str(tmp_path), moment).communicate(timeout=60)[0].strip()
    assert len(list((tmp_path / "tensors").glob("*.safetensors"))) == 1
    store = Store.open(tmp_path, ROOMY)
    lost = request(attention(), 2).key
    assert not store.has(lost) and store.arrays(lost, "pattern") == []
    assert list((tmp_path / "tensors").iterdir()) == []
    assert same(whole(store, attention(), key), attention_frame(1))
    assert len(store.query("SELECT * FROM toy_attention_v1")) == 32
    store.close()


def test_sixteen_threads_put_and_read(tmp_path):
    """Every thread keeps its own results and some that all keep, reads any it knows, appends metrics to two runs."""
    store, analysis, known, errors = Store.open(tmp_path, ROOMY), attention(), [], []
    start = threading.Barrier(16)

    def work(me):
        draw = random.Random(me)
        start.wait()
        for n in range(6):
            for i in (100 + me * 10 + n, n):
                known.append((i, put(store, analysis, i)))
            rows = pd.DataFrame({"step": [n], "metric": f"m{me}", "layer": 0, "head": None, "value": 1.0, "time": 0.0})
            store.append_metrics(f"run{me % 2}", rows, me * 10 + n)
            i, key = draw.choice(known)
            assert same(whole(store, analysis, key), attention_frame(i))
            store.put_job({"id": f"{me}-{n % 2}", "state": "done", "created": float(n), "n": n})
            assert store.results(limit=5).shape[0] >= 1

    def guarded(me):
        try:
            work(me)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(me,)) for me in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert errors == [] and not any(t.is_alive() for t in threads)
    assert store.count_results() == 16 * 6 + 6
    assert len(store.query("SELECT * FROM toy_attention_v1", limit=10**6)) == 102 * 32
    assert store.query("SELECT run, count(*) AS n FROM metrics GROUP BY run ORDER BY run")["n"].tolist() == [48, 48]
    assert {(j["id"], j["n"]) for j in store.jobs()} == {(f"{me}-{i}", 4 + i) for me in range(16) for i in range(2)}
    store.close()


def test_readers_never_see_a_half_result_while_others_evict(tmp_path):
    """A budget of about three results under constant puts: a read gives the whole result or says it is gone."""
    store, analysis = Store.open(tmp_path, ROOMY), attention()
    put(store, analysis, 0)
    store.budget_bytes = int(store.size_bytes() * 3.5)
    done, seen, wrong = threading.Event(), [], []

    def read():
        while not done.is_set():
            for key in store.results()["key"]:
                blobs = len(store.arrays(key, "pattern"))
                (seen if blobs in (0, 4) else wrong).append(blobs)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1, 60):
        put(store, analysis, i)
    done.set()
    reader.join(timeout=60)
    assert wrong == [] and seen.count(4) > 3
    assert store.count_results() == 3
    store.close()


@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_large_array_is_whole_or_not_there_under_its_name(tmp_path, how):
    process = child(LARGE, str(tmp_path), how)
    said, failed = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if how == "kill" else 0), failed
    assert how == "kill" or said == "[Errno 28] No space left on device 0\n"
    left = list((tmp_path / "tensors").iterdir())
    assert [p.suffix for p in left] == [".part"], "begun, and under no name that a row could mean"
    store = Store.open(tmp_path, ROOMY)
    assert store.notices == [] and not list((tmp_path / "tensors").iterdir())
    store.close()
