"""Following run folders: whole lines only, no row lost or doubled, replaced and resumed files start anew."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from backend.runs import layout
from backend.runs.follow import Follower, RunFolder
from backend.runs.recorder import Recorder
from backend.store.store import Store


@pytest.fixture
def store(tmp_path):
    with_file = Store.open(tmp_path / "cache", 1 << 30)
    yield with_file
    with_file.close()


def steps(store, run="r", metric="loss"):
    """Every row that the store holds, unthinned and undeduplicated, in the order written."""
    rows = store.query(f"SELECT step FROM metrics WHERE run = '{run}' AND metric = '{metric}' ORDER BY rowid")
    return [int(s) for s in rows["step"]]


def raw(folder, text):
    with open(folder / layout.METRICS, "ab") as file:
        file.write(text.encode())


def line(step, **values):
    return json.dumps({"step": step, "time": 1.0, "values": values or {"loss": step}}) + "\n"


def until(true, seconds=10):
    """Wait for a condition; fail when it does not come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def test_no_torch_in_the_follower():
    code = "import sys, backend.runs.follow, backend.runs.recipes as r; r.registry(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_restart_from_the_stored_offset_loses_and_doubles_nothing(tmp_path, store):
    run = Recorder(tmp_path / "runs" / "r")
    for step in range(50):
        run.log(step, loss=step)
        if step % 7 == 3:  # a new follower each time: the app was restarted
            Follower([tmp_path / "runs"], store).poll()
    run.finish()
    follower = Follower([tmp_path / "runs"], store)
    assert follower.poll() > 0 and follower.poll() == 0
    assert steps(store) == list(range(50)) and not follower.problems
    assert store.run_offset("r") == (tmp_path / "runs" / "r" / layout.METRICS).stat().st_size


def test_every_cut_of_a_file_gives_the_same_rows(tmp_path):
    with Recorder(tmp_path / "r") as run:
        for step in range(20):
            run.log(step, loss=step, **{"induction_score/L0H1": step / 3})
    whole = RunFolder(tmp_path / "r").read()
    for size in (1, 50, 90, 200, 10_000):
        folder, offset, parts, events = RunFolder(tmp_path / "r"), 0, [], []
        while (chunk := folder.read(offset, size)).offset != offset:
            offset, parts, events = chunk.offset, [*parts, chunk.rows], events + chunk.events
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole.rows)
        assert events == whole.events and offset == whole.offset


def test_a_torn_last_line_is_waited_for(tmp_path, store):
    Recorder(tmp_path / "runs" / "r").stop()
    folder, follower = tmp_path / "runs" / "r", Follower([tmp_path / "runs"], store)
    full = line(1)
    for cut in range(len(full) + 1):
        raw(folder, full[cut : cut + 1])
        follower.poll()
        assert steps(store) == ([1] if cut >= len(full) - 1 else [])


def test_bad_complete_lines_are_skipped_counted_and_said(tmp_path, store):
    Recorder(tmp_path / "runs" / "r").stop()
    bad = ["{half", "[1]", '{"values":{"loss":1}}', '{"step":"x","values":{}}', '{"step":9,"values":3}',
           '{"step":true,"values":{"loss":1}}', '{"step":9,"values":{"loss":"low"}}',
           '{"step":9,"values":{"loss":null}}']  # fmt: skip
    raw(tmp_path / "runs" / "r", line(1) + "\n".join(bad) + "\n\n\xff\n" + line(2))
    follower = Follower([tmp_path / "runs"], store)
    follower.poll()
    assert steps(store) == [1, 2] and follower.runs()[0]["bad_lines"] == len(bad) + 1
    assert store.run("r")["info"]["bad_lines"] == len(bad) + 1


@pytest.mark.parametrize("how", ["shrunk", "replaced by a longer one", "replaced while the app was down", "same bytes"])
def test_a_replaced_file_starts_anew(tmp_path, store, how):
    folder = tmp_path / "runs" / "r"
    with Recorder(folder) as run:
        for step in range(10):
            run.log(step, loss=step)
    follower = Follower([tmp_path / "runs"], store)
    follower.poll()
    shutil.rmtree(folder)
    if how in ("replaced while the app was down", "same bytes"):
        follower = Follower([tmp_path / "runs"], store)
    want = list(range(100, 103 if how == "shrunk" else 140))
    with Recorder(folder) as run:
        for step in want:
            run.log(step, loss=step)
    if how == "same bytes":  # only what lies before the old offset differs, and not in length
        lines = [line(s) for s in want]
        (folder / layout.METRICS).write_text("".join(lines))
        store.append_metrics("r", RunFolder(folder).read().rows.head(0), len("".join(lines[:20])))
    follower.poll()
    assert steps(store) == want


def test_lines_after_the_checkpoint_that_a_resume_went_on_from_no_longer_count(tmp_path, store):
    folder = tmp_path / "runs" / "r"
    follower = Follower([tmp_path / "runs"], store)
    run = Recorder(folder)
    for step in range(8):
        run.log(step, loss=step)
    follower.poll()
    assert steps(store) == list(range(8))
    del run  # no word of an end: a crash
    run = Recorder(folder, resume=True, resume_from=4)
    run.log(5, loss=-5)
    follower.poll()
    want = [0, 1, 2, 3, 4, 5]
    assert steps(store) == want
    assert store.metrics("r", ["loss"])["value"].tolist() == [0, 1, 2, 3, 4, -5]
    run.log(6, loss=-6)
    run.finish()
    for following in (follower, Follower([tmp_path / "runs"], store)):
        following.poll()
        assert steps(store) == [*want, 6]
    assert RunFolder(folder).read().rows["value"].tolist() == [0, 1, 2, 3, 4, -5, -6]


def test_a_resume_while_the_app_was_down_is_found_from_the_stored_offset(tmp_path, store):
    run = Recorder(tmp_path / "runs" / "r")
    for step in range(8):
        run.log(step, loss=step)
    Follower([tmp_path / "runs"], store).poll()
    del run
    with Recorder(tmp_path / "runs" / "r", resume=True, resume_from=2) as run:
        run.log(3, loss=-3)
    Follower([tmp_path / "runs"], store).poll()
    assert steps(store) == [0, 1, 2, 3]


def test_a_clean_resume_is_read_on_without_starting_over(tmp_path, store):
    folder, resets = tmp_path / "runs" / "r", []
    follower = Follower([tmp_path / "runs"], store)
    with Recorder(folder) as run:
        for step in range(5):
            run.log(step, loss=step)
    follower.poll()
    offset = store.run_offset("r")
    with Recorder(folder, resume=True, resume_from=4) as run:
        run.log(5, loss=5)
    reader = RunFolder(folder)
    assert not reader.read().reset
    following = next(iter(follower._runs.values())).folder.read(offset)
    resets.append(following.reset)
    follower.poll()
    assert steps(store) == list(range(6)) and resets == [False]


def test_states_of_a_live_and_a_killed_writer(tmp_path, store):
    code = "import sys; from backend.runs.recorder import Recorder; r = Recorder(sys.argv[1]); r.log(5, loss=1.0);" \
           "print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "runs" / "r")], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert process.stdout.readline() == "ready\n"
    follower = Follower([tmp_path / "runs"], store)
    follower.poll()
    assert [(r["name"], r["state"], r["last_step"]) for r in follower.runs()] == [("r", "running", 5)]
    process.kill()
    process.wait()
    follower.poll()  # no file changed; the process did
    assert follower.runs()[0]["state"] == "interrupted" and store.run("r")["info"]["state"] == "interrupted"


def test_equal_names_keep_the_first_and_say_so(tmp_path, store):
    for folder, step in [("mine", 1), ("shipped", 2)]:
        with Recorder(tmp_path / folder / "r") as run:
            run.log(step, loss=step)
    follower = Follower([tmp_path / "mine", tmp_path / "shipped", tmp_path / "absent"], store)
    follower.poll()
    assert steps(store) == [1] and "already" in follower.problems[str(tmp_path / "shipped" / "r")]


def test_a_broken_run_does_not_stop_the_others_and_a_removed_one_leaves(tmp_path, store):
    for name in ("a", "b"):
        with Recorder(tmp_path / "runs" / name) as run:
            run.log(1, loss=1)
    (tmp_path / "runs" / "a" / layout.RUN).write_text("{")
    follower = Follower([tmp_path / "runs"], store)
    follower.poll()
    assert "cannot be read" in follower.problems["a"] and steps(store, "b") == [1]
    shutil.rmtree(tmp_path / "runs" / "b")
    follower.poll()
    (left,) = follower.runs()
    assert left["name"] == "a" and "run.json cannot be read" in left["saw"][0]  # its numbers stay in sight


def test_the_thread_carries_a_run_while_it_is_written(tmp_path, store):
    follower = Follower([tmp_path / "runs"], store, interval=0.02)
    follower.start()
    follower.start()
    try:
        run = Recorder(tmp_path / "runs" / "r")

        def write():
            for step in range(400):
                run.log(step, loss=step)
            run.finish()

        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
        until(lambda: follower.runs() and follower.runs()[0]["state"] == "finished" and len(steps(store)) == 400)
        assert steps(store) == list(range(400))
    finally:
        follower.stop()
        follower.stop()
