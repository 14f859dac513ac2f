"""Hard days of a run folder: nothing is lost, nothing breaks, and the record says what was seen."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from backend.errors import Broken, Busy
from backend.runs import follow, layout
from backend.runs.folder import RunFolder
from backend.runs.follow import Follower
from backend.runs.recorder import Recorder
from backend.runs.saw import Seen
from backend.store.store import Store


@pytest.fixture
def store(tmp_path):
    with_file = Store.open(tmp_path / "cache", 1 << 30)
    yield with_file
    with_file.close()


def raw(folder, *records):
    with open(folder / layout.METRICS, "ab") as file:
        for r in records:
            file.write((r if isinstance(r, str) else json.dumps(r)).encode() + b"\n")


def at(step, when=1.0, **values):
    return {"step": step, "time": when, "values": values or {"loss": step}}


def followed(tmp_path, store):
    follower = Follower([tmp_path / "runs"], store)
    follower.poll()
    return follower.runs()[0]


def test_everything_odd_is_kept_counted_and_said_in_whatever_chunks(tmp_path, store):
    folder = tmp_path / "runs" / "r"
    Recorder(folder).stop()
    raw(folder, at(1, 100.0, loss="NaN", acc=1), at(2, 50.0, loss="Infinity"), at(2, 51.0, loss=2),
        at(2, 51.0, acc=2), at(0, 52.0), at(3, "late"), at(4, 53.0, **{"a b/ü/L1H2": 1, "x/L99999999999": 2}),
        at(2**70), at(5, loss=10**400), '{"step": 6, "val')  # fmt: skip
    record = followed(tmp_path, store)
    assert record["saw"] == [
        "3 lines or values could not be read", "1 value was not a number (NaN): gaps in the curves",
        "1 value was infinite: gaps in the curves", "the clock went backwards once",
        "the step went backwards once without a word of a resume; the later value of a step is shown",
        "1 value was logged again for the same step; the later is shown",
    ]  # fmt: skip
    for size in (1, 60, 200):
        reader, seen, offset = RunFolder(folder), Seen(), 0
        while (chunk := reader.read(offset, size)).offset != offset:
            seen.note(chunk)
            offset = chunk.offset
        assert seen.record() == {**record["counts"]}
    again = Follower([tmp_path / "runs"], store)  # another process knows it without reading anew
    assert again.poll() == 0 and again.runs()[0]["saw"] == record["saw"]
    frame = store.metrics("r")
    assert math.isnan(frame[frame["step"] == 1].set_index("metric")["value"]["loss"])
    assert set(frame["metric"]) == {"loss", "acc", "a b/ü", "x/L99999999999"}


def test_a_value_repeated_after_others_of_its_step_is_counted_in_whatever_chunks(tmp_path):
    folder = tmp_path / "r"
    Recorder(folder).stop()
    raw(folder, at(1, loss=1), at(1, acc=1), at(1, other=1), at(1, loss=2), at(2, loss=3))
    for size in (1, 1 << 20):
        reader, seen, offset = RunFolder(folder), Seen(), 0
        while (chunk := reader.read(offset, size)).offset != offset:
            seen.note(chunk)
            offset = chunk.offset
        assert seen.record()["n_repeated"] == 1, size
        assert seen.sentences() == ["1 value was logged again for the same step; the later is shown"]


def test_two_scripts_that_started_one_run_are_said_and_one_is_not(tmp_path, store):
    folder = tmp_path / "runs" / "r"
    Recorder(folder).stop()
    assert followed(tmp_path, store)["saw"] == []
    raw(folder, {"event": "started", "step": 0, "time": 2.0}, at(1))
    assert followed(tmp_path, store)["saw"] == ["2 scripts started it; their lines are shown together"]


def test_two_writers_the_second_is_told_also_on_another_machine_with_another_clock(tmp_path, monkeypatch):
    run = Recorder(tmp_path / "r")
    with pytest.raises(Busy, match="is writing to it"):
        Recorder(tmp_path / "r", resume=True)
    run.log(1, loss=1)
    fd = os.dup(run._fd)
    run._let_go()
    # the same folder seen from elsewhere: no kernel lock there, and a clock five minutes ahead
    (tmp_path / "r" / layout.LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere", "born": "1"}))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 300)
    with pytest.raises(Busy, match="process 1 on elsewhere"):
        Recorder(tmp_path / "r", resume=True)
    os.utime(tmp_path / "r" / layout.METRICS, (real() - 120, real() - 120))
    Recorder(tmp_path / "r", resume=True).stop()
    os.close(fd)


WRITER = """
import os, sys, time
from backend.runs import layout
class Free:
    def __init__(self, *a): pass
    def release(self): pass
layout.Lock = Free  # a file system without locks
from backend.runs.recorder import Recorder
run = Recorder(sys.argv[1], resume=True)
for step in range(300):
    run.log(step, {sys.argv[2]: step, **{f"x/L{i}": i for i in range(40)}})
os._exit(0)
"""


def test_lines_of_two_processes_do_not_tear(tmp_path):
    Recorder(tmp_path / "r").stop()
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    both = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "r", n], env=env) for n in ("a", "b")]
    assert [p.wait() for p in both] == [0, 0]
    lines = (tmp_path / "r" / layout.METRICS).read_text().splitlines()
    assert len(lines) == 2 + 2 + 600 and all(json.loads(line) for line in lines)


def test_a_run_of_another_host_is_judged_by_change_not_by_clocks(tmp_path, monkeypatch):
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / layout.LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    now, mono = time.time(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: mono[0])

    def grows(step, skew):
        raw(folder, at(step, now + skew))
        os.utime(folder / layout.METRICS, (now + skew, now + skew + step / 1000))

    grows(1, -600.0)  # its clock is ten minutes behind ours
    reader = RunFolder(folder)
    assert reader.state() == "interrupted"  # the first look has clocks only
    grows(2, -600.0)
    assert reader.state() == "running"
    mono[0] += layout.FRESH - 1
    assert reader.state() == "running"
    mono[0] += 2
    assert reader.state() == "interrupted"
    grows(3, 0.0)
    other = RunFolder(folder)
    assert other.state() == "running"
    mono[0] += 3 * 600 + layout.FRESH  # by its own lines it needs minutes per step
    assert other.state() == "interrupted"
    raw(folder, at(4, now - 600), at(5, now - 300))
    assert other.state() == "running"
    mono[0] += 3 * 300 - 1
    assert other.state() == "running"


def test_a_metrics_file_deleted_while_open_comes_back_whole(tmp_path, store):
    run = Recorder(tmp_path / "runs" / "r")
    run.log(1, loss=1)
    follower = Follower([tmp_path / "runs"], store)
    follower.poll()
    (tmp_path / "runs" / "r" / layout.METRICS).unlink()
    follower.poll()
    assert store.metrics("r")["step"].tolist() == [1]
    assert follower.runs()[0]["saw"] == ["its metrics file is gone; what was read before is kept"]
    run.log(2, loss=2)
    run.finish()
    follower.poll()
    assert store.metrics("r")["step"].tolist() == [1, 2] and follower.runs()[0]["saw"] == []
    shutil.rmtree(tmp_path / "runs" / "r")
    follower.poll()
    assert follower.runs() == [] and not follower.problems


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": ' * 200_000, " " * (17 << 20)])
def test_a_broken_or_huge_run_json_hides_no_numbers(tmp_path, store, text):
    with Recorder(tmp_path / "runs" / "r") as run:
        run.log(1, loss=1)
    (tmp_path / "runs" / "r" / layout.RUN).write_text(text)
    assert "run.json cannot be read" in followed(tmp_path, store)["saw"][0]
    assert store.metrics("r")["step"].tolist() == [1]


def test_two_thousand_metrics_in_one_line(tmp_path, store):
    with Recorder(tmp_path / "runs" / "r") as run:
        for step in range(3):
            run.log(step, {f"m{i} ü/part": i + step for i in range(2000)})
    assert followed(tmp_path, store)["saw"] == []
    assert len(store.metric_names("r")) == 2000 and len(store.metrics("r")) == 6000


def test_a_long_file_gives_way_to_other_runs_and_is_read_whole(tmp_path, store, monkeypatch):
    for name in ("a-long", "b"):
        Recorder(tmp_path / "runs" / name).stop()
    line, n = json.dumps(at(7, loss=0.123456789)) + "\n", 130_000
    with open(tmp_path / "runs" / "a-long" / layout.METRICS, "a") as file:
        file.writelines(line.replace("7", str(i), 1) for i in range(n))
    raw(tmp_path / "runs" / "b", at(1))
    monkeypatch.setattr("backend.runs.follow.PART", 0.0)
    follower = Follower([tmp_path / "runs"], store)
    first = follower.poll()
    assert 0 < first < n and store.metrics("b")["step"].tolist() == [1]
    total = first
    while more := follower.poll():
        total += more
    assert total == n + 1 and store.last_step("a-long") == n - 1


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Broken, match="cannot be written"):
        Recorder(tmp_path / "file" / "r")


def test_many_runs_are_listed_before_all_their_lines_are_read(tmp_path, store, monkeypatch):
    for name in ("a", "b", "c"):
        with Recorder(tmp_path / "runs" / name) as run:
            run.log(0, loss=1.0)
    go_on, append = threading.Event(), store.append_metrics

    def waits(run, rows, offset):
        assert go_on.wait(20)
        append(run, rows, offset)

    monkeypatch.setattr(store, "append_metrics", waits)  # a store that is slow
    monkeypatch.setattr(follow, "PATIENCE", 0.05)
    follower = Follower([tmp_path / "runs"], store, interval=0.01)
    follower.start()
    try:
        listed = follower.runs()
        assert {r["name"] for r in listed} == {"a", "b", "c"} and {r["state"] for r in listed} == {"finished"}
        assert any(r["saw"] == [follow.UNREAD] for r in listed)
        go_on.set()
        end = time.monotonic() + 20
        while any(r["saw"] for r in follower.runs()):
            assert time.monotonic() < end
        assert len(store.metrics("a")) == 1
    finally:
        go_on.set()
        follower.stop()


def test_a_line_cut_in_the_middle_is_said_once_nobody_writes_any_more(tmp_path, store):
    folder = tmp_path / "runs" / "r"
    run = Recorder(folder)
    run.log(1, loss=1.0)
    with open(folder / layout.METRICS, "ab") as file:
        file.write(b'{"step": 2, "time": 2.0, "val')
    assert followed(tmp_path, store)["saw"] == []  # somebody writes: it is waited for
    whole = Recorder(tmp_path / "runs" / "whole")
    whole.log(1, loss=1.0)
    whole.finish()
    with open(tmp_path / "runs" / "whole" / layout.METRICS, "ab") as file:
        file.write(b'{"step": 2, "time": 2.0, "val')
    follower = Follower([tmp_path / "runs"], store)
    follower.poll()
    (said,) = [r["saw"] for r in follower.runs() if r["name"] == "whole"]
    assert said == ["its last line is not whole (its program ended in the middle of it) and is left out"]
