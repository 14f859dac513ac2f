"""Event files as runs: TensorBoard's own EventAccumulator says what must be read from what its own writer wrote."""

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util

from backend.runs.follow import Follower
from backend.runs.tensorboard import EventFolder
from backend.store.store import Store


@pytest.fixture
def store(tmp_path):
    with_file = Store.open(tmp_path / "cache", 1 << 30)
    yield with_file
    with_file.close()


def scalar(step, time, plugin="", tensor=None, **values):
    event = event_pb2.Event(step=step, wall_time=time)
    for tag, value in values.items():
        one = event.summary.value.add(tag=tag)
        if tensor is None:
            one.simple_value = value
        else:
            one.tensor.CopyFrom(tensor_util.make_tensor_proto(np.array(value, dtype=tensor)))
            one.metadata.plugin_data.plugin_name = plugin
    return event


def start(step, time):
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return event_pb2.Event(step=step, wall_time=time, session_log=log)


def write(folder, *events, suffix=""):
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    for event in events:
        writer.add_event(event)
    writer.close()
    return sorted(folder.glob("*tfevents*"))[-1]


def oracle(folder):
    """{tag: [(step, value, wall time)]} as TensorBoard itself reads the folder."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    found = {t: [(e.step, e.value, e.wall_time) for e in read.Scalars(t)] for t in read.Tags()["scalars"]}
    for tag in read.Tags()["tensors"]:
        if read.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            found[tag] = [(e.step, float(tensor_util.make_ndarray(e.tensor_proto)), e.wall_time) for e in
                          read.Tensors(tag)]  # fmt: skip
    return found


def ours(source, max_bytes=4 << 20):
    found, offset = {}, 0
    while (chunk := source.read(offset, max_bytes)).offset != offset or chunk.reset:
        found, offset = ({} if chunk.reset else found), chunk.offset
        for r in chunk.rows.itertuples():
            found.setdefault(r.metric, []).append((r.step, r.value, r.time))
    return found


@pytest.mark.parametrize("size", [1, 200, 4 << 20])
def test_scalars_old_and_new_several_files_and_a_restart_read_as_tensorboard_does(tmp_path, size):
    old = [scalar(s, 10.0 + s, **{"train/loss": 1 / (s + 1), "odd name é": s}) for s in range(20)]
    write(tmp_path, *old, suffix=".0")
    kinds = ["float32", "float64", "float16", "int32", "int64", "bool", "uint8"]
    new = [scalar(s, 40.0 + s, "scalars", k, **{f"new/{k}": s % 2}) for s in range(15, 20) for k in kinds]
    write(tmp_path, start(15, 39.0), *new, scalar(15, 60.0, **{"train/loss": 9.0}), suffix=".1")
    got = ours(EventFolder(tmp_path), size)
    assert got == oracle(tmp_path)
    assert [s for s, *_ in got["train/loss"]] == list(range(16)) and got["train/loss"][-1][1] == 9.0


def test_a_restart_at_the_last_step_that_was_read_supersedes_its_value(tmp_path):
    # names of their own: the library's end in a counter, and .10 stands before .9
    write(tmp_path, *[scalar(s, 1.0 + s, loss=s) for s in range(6)]).rename(tmp_path / "events.out.tfevents.1")
    source = EventFolder(tmp_path)
    first = source.read()
    assert first.rows["step"].tolist() == list(range(6))
    with tempfile.TemporaryDirectory() as other:
        write(Path(other), start(5, 20.0), scalar(5, 21.0, loss=9.0)).rename(tmp_path / "events.out.tfevents.2")
    assert source.read(first.offset).reset
    got = ours(source)
    assert got == oracle(tmp_path) and sorted(v for _, v, _ in got["loss"]) == [0, 1, 2, 3, 4, 9]


def test_what_is_no_scalar_is_left_out(tmp_path):
    image = event_pb2.Event(step=1, wall_time=1.0)
    picture = summary_pb2.Summary.Image(height=1, width=1, encoded_image_string=b"x")
    image.summary.value.add(tag="picture", image=picture)
    text = scalar(1, 1.0, "text", "float32", words=1.0)
    write(tmp_path, image, text, scalar(1, 1.0, "scalars", "float32", wrong=[1.0, 2.0]), scalar(2, 2.0, loss=0.5))
    source = EventFolder(tmp_path)
    chunk = source.read()
    assert chunk.rows["metric"].tolist() == ["loss"] and chunk.bad == 1  # a scalar of two numbers


def test_a_growing_file_is_followed_at_every_cut_and_across_a_restart_of_the_app(tmp_path, store):
    whole = write(tmp_path / "other", *[scalar(s, 1.0 + s, "scalars" if s == 0 else "", "float64", loss=s / 3)
                                        for s in range(6)])  # fmt: skip
    data, logs = whole.read_bytes(), tmp_path / "runs" / "logs" / "deep"
    logs.mkdir(parents=True)
    growing, follower = logs / whole.name, Follower([tmp_path / "runs"], store)
    for end in range(0, len(data) + 1, 7):
        with growing.open("ab") as file:
            file.write(data[max(0, end - 7) : end])
        if end % 5 == 0:
            follower = Follower([tmp_path / "runs"], store)
        follower.poll()
    with growing.open("ab") as file:
        file.write(data[end:])
    follower.poll()
    rows = store.query("SELECT step, value FROM metrics WHERE run = 'logs.deep' ORDER BY rowid")
    assert rows["step"].tolist() == list(range(6)) and rows["value"].tolist() == [s / 3 for s in range(6)]
    (record,) = follower.runs()
    assert record["kind"] == "tensorboard" and record["state"] == "running" and record["last_step"] == 5
    assert record["checkpoints"] == [] and record["saw"] == [] and record["host"]
    os.utime(growing, (1, 1))
    fresh = Follower([tmp_path / "runs"], store)
    assert fresh.runs()[0]["state"] == "finished" and fresh.poll() == 0
    assert sorted(p.name for p in logs.iterdir()) == [whole.name]  # nothing was written there


def test_damage_keeps_what_can_be_read_and_says_so(tmp_path, store):
    events = [scalar(s, 1.0 + s, loss=s) for s in range(10)]
    file = write(tmp_path / "runs" / "hurt", *events)
    data = bytearray(file.read_bytes())
    starts, at = [], 0
    while at < len(data):
        starts.append(at)
        at += struct.unpack("<Q", data[at : at + 8])[0] + 16
    data[starts[4] + 14] ^= 0xFF  # inside the record of step 3
    data[starts[9]] ^= 0x01  # the length of the record of step 8
    file.write_bytes(data)
    follower = Follower([tmp_path / "runs"], store)
    follower.poll()
    assert store.metrics("hurt")["step"].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert follower.runs()[0]["saw"] == ["1 line or value could not be read",
                                         "1 event file is damaged; it is read up to the damage"]  # fmt: skip


@pytest.mark.parametrize("size", [1, 4 << 20])
def test_a_damaged_record_is_one_record_also_where_reading_stops_behind_it(tmp_path, size):
    file = write(tmp_path, *[scalar(s, 1.0 + s, loss=s) for s in range(4)])
    data, at = bytearray(file.read_bytes()), 0
    for _ in range(2):
        at += struct.unpack("<Q", data[at : at + 8])[0] + 16
    data[at + 14] ^= 0xFF  # inside the record of step 1 (the first is the version)
    file.write_bytes(data)
    source, steps, bad, offset = EventFolder(tmp_path), [], 0, 0
    while (chunk := source.read(offset, size)).offset != offset:
        steps, bad, offset = steps + chunk.rows["step"].tolist(), bad + chunk.bad, chunk.offset
    assert (steps, bad, source.damaged, offset) == ([0, 2, 3], 1, 0, len(data))


def test_a_kept_position_of_another_place_is_not_taken_up(tmp_path):
    """The numbers are gone (offset 0) and the file was written anew without a restart: the old restart is no more."""
    nine = [scalar(s, 1.0 + s, loss=s) for s in range(9)]
    first = write(tmp_path / "a", *nine, start(3, 50.0), scalar(3, 51.0, loss=7))
    source = EventFolder(tmp_path / "a")
    assert [s for s, *_ in ours(source)["loss"]] == [0, 1, 2, 3]
    kept = source.position()
    first.write_bytes(write(tmp_path / "b", *nine).read_bytes())
    fresh = EventFolder(tmp_path / "a")
    fresh.restore(kept, 0)
    assert fresh.position() == EventFolder(tmp_path / "a").position()
    assert [s for s, *_ in ours(fresh)["loss"]] == list(range(9))


def test_reading_event_files_loads_no_torch(tmp_path):
    write(tmp_path / "logs", scalar(1, 1.0, "scalars", "float32", loss=1.0))
    code = ("import sys; from backend.runs.tensorboard import EventFolder; early = 'tensorboard' in sys.modules;"
            "n = len(EventFolder(sys.argv[1]).read().rows);"
            "print(early, n, {'torch', 'tensorflow'} & set(sys.modules))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "logs")], capture_output=True, text=True)
    assert done.stdout.strip() == "False 1 set()"
