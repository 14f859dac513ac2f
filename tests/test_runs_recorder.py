"""The recorder: three lines from a user's own loop, one whole line per call, one live writer."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from backend.errors import BadInput, Broken, Busy, Cancelled, NotFound
from backend.runs import layout, provenance
from backend.runs.folder import RunFolder, find_runs
from backend.runs.recorder import Recorder


def values(folder):
    rows = RunFolder(folder).read().rows
    return [(r.step, r.metric, None if r.layer is None else r.layer, r.value) for r in rows.itertuples()]


def child(code, *args, **more):
    """Start a Python process that has this repository on its path."""
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, **more)


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    asked = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_is_that_of_the_code_and_changes_to_it_are_said(tmp_path, monkeypatch):
    code, elsewhere = tmp_path / "repo" / "package", tmp_path / "elsewhere"
    code.mkdir(parents=True)
    elsewhere.mkdir()
    assert provenance.revision(code) == {}
    git(tmp_path / "repo", "init", "-q")
    (code / "a.py").write_text("1")
    assert provenance.revision(code) == {}  # somebody's repository, but not of this code
    git(code, "add", "a.py")
    git(code, "commit", "-qm", "a")
    monkeypatch.chdir(elsewhere)
    clean = {"git": git(code, "rev-parse", "HEAD")}
    (code / "new.txt").write_text("not tracked")
    assert provenance.revision(code) == clean
    (code / "a.py").write_text("2")
    assert provenance.revision(code) == {**clean, "dirty": True}


def test_a_resume_says_with_which_code_it_goes_on(tmp_path, monkeypatch):
    with Recorder(tmp_path / "r") as run:
        run.log(1, loss=1)
    monkeypatch.chdir(tmp_path)  # no repository
    with Recorder(tmp_path / "r", resume=True):
        pass
    events = [json.loads(line) for line in (tmp_path / "r" / layout.METRICS).read_text().splitlines()]
    (resumed,) = [e for e in events if e.get("event") == "resumed"]
    told = json.loads((tmp_path / "r" / layout.RUN).read_text())
    assert resumed["versions"] == told["versions"] and "python" in told["versions"]
    here = provenance.revision()
    assert {k: v for k, v in resumed.items() if k in ("git", "dirty")} == here == {k: told[k] for k in here}
    assert resumed["step"] == 1 and list(RunFolder(tmp_path / "r").read().rows["step"]) == [1]


def test_three_lines_from_a_loop_of_ones_own(tmp_path):
    run = Recorder(tmp_path / "mine")
    run.log(3, loss=torch.tensor(0.5), **{"induction_score/L1H2": 0.3, "norm/L0": 2, "train/acc": True})
    run.checkpoint(3, torch.nn.Linear(2, 3))
    assert RunFolder(tmp_path / "mine").state() == "running"
    run.finish()
    found = RunFolder(tmp_path / "mine")
    chunk = found.read()
    plain = chunk.rows.astype(object).where(chunk.rows.notna(), None)
    got = {(r.metric, r.layer, r.head): r.value for r in plain.itertuples()}
    assert got == {("loss", None, None): 0.5, ("induction_score", 1, 2): 0.3, ("norm", 0, None): 2.0,
                   ("train/acc", None, None): 1.0}  # fmt: skip
    assert [e["event"] for e in chunk.events] == ["started", "checkpoint", "finished"]
    assert found.state() == "finished" and found.checkpoints() == [3] and found.info()["name"] == "mine"
    assert not (found.path / layout.LOCK).exists()
    assert found.info()["versions"]["torch"] == torch.__version__


def test_logging_imports_no_torch(tmp_path):
    code = ("import sys; from backend.runs.recorder import Recorder; r = Recorder(sys.argv[1]);"
            "r.log(0, loss=1.0); r.finish();"
            "print(sorted({'torch', 'safetensors', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)))")  # fmt: skip
    process = child(code, tmp_path / "light")
    assert process.communicate()[0].strip() == "[]" and process.returncode == 0


def test_nan_and_infinities_survive_as_strict_json(tmp_path):
    with Recorder(tmp_path / "r") as run:
        run.log(0, a=math.nan, b=math.inf, c=-math.inf, d=-0.0, e=1e-300, f=0.1)
    strict = (tmp_path / "r" / layout.METRICS).read_text().splitlines()
    for line in strict:
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    got = {r.metric: r.value for r in RunFolder(tmp_path / "r").read().rows.itertuples()}
    assert math.isnan(got["a"]) and got["b"] == math.inf and got["c"] == -math.inf
    assert math.copysign(1, got["d"]) == -1 and got["e"] == 1e-300 and got["f"] == 0.1


def test_every_log_call_is_one_write(tmp_path, monkeypatch):
    run = Recorder(tmp_path / "r")
    written, real = [], os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (written.append(data), real(fd, data))[1])
    run.log(1, {f"m/L{i}": i for i in range(500)})
    assert len(written) == 1 and written[0].endswith(b"\n") and written[0].count(b"\n") == 1
    run.stop()


def test_bad_names_numbers_and_steps_are_refused_in_words(tmp_path):
    run = Recorder(tmp_path / "r")
    with pytest.raises(BadInput, match="'loss': Tensor is not one number"):
        run.log(1, loss=torch.zeros(3))
    with pytest.raises(BadInput, match="list is not one number"):
        run.log(1, loss=[1, 2])
    with pytest.raises(BadInput, match="Step -1"):
        run.log(-1, loss=1)
    with pytest.raises(BadInput, match="Step 1.5"):
        run.log(1.5, loss=1)
    with pytest.raises(BadInput, match="1 to 200"):
        run.log(1, {"": 1.0})
    run.finish()
    with pytest.raises(BadInput, match="finished already"):
        run.log(2, loss=1)
    assert values(tmp_path / "r") == []


def test_a_name_already_taken_and_nothing_to_resume(tmp_path):
    Recorder(tmp_path / "r").finish()
    with pytest.raises(BadInput, match="a run of this name is there already"):
        Recorder(tmp_path / "r")
    with pytest.raises(NotFound, match="no run.json"):
        Recorder(tmp_path / "other", resume=True)
    assert not (tmp_path / "other").exists()


def test_endings_by_context(tmp_path):
    cancelled = Cancelled("Job", "a person stopped it", "Resume")
    for name, error, state in [("a", None, "finished"), ("b", cancelled, "stopped"),
                               ("c", KeyboardInterrupt(), "stopped"), ("d", ValueError("boom"), "failed")]:  # fmt: skip
        try:
            with Recorder(tmp_path / name):
                if error:
                    raise error
        except BaseException as raised:
            assert raised is error
        assert RunFolder(tmp_path / name).state() == state
    assert RunFolder(tmp_path / "d").status()["error"] == "boom"


def test_two_live_writers_are_refused_and_the_first_goes_on(tmp_path):
    code = ("import sys; from backend.runs.recorder import Recorder; r = Recorder(sys.argv[1]); r.log(1, loss=1.0);"
            "print('ready', flush=True); sys.stdin.readline(); r.log(2, loss=2.0); r.finish()")  # fmt: skip
    first = child(code, tmp_path / "r", stdin=subprocess.PIPE)
    assert first.stdout.readline() == "ready\n"
    with pytest.raises(Busy, match=f"process {first.pid} on .* is writing to it"):
        Recorder(tmp_path / "r", resume=True)
    assert RunFolder(tmp_path / "r").state() == "running"
    first.communicate("go\n")
    assert first.returncode == 0 and [v[3] for v in values(tmp_path / "r")] == [1.0, 2.0]


def test_second_recorder_in_the_same_process_is_refused(tmp_path):
    first = Recorder(tmp_path / "r")
    with pytest.raises(Busy, match=f"process {os.getpid()}"):
        Recorder(tmp_path / "r", resume=True)
    first.finish()
    Recorder(tmp_path / "r", resume=True).finish()


def test_a_forgotten_recorder_lets_go(tmp_path):
    run = Recorder(tmp_path / "r")
    run.log(1, loss=1)
    del run
    assert RunFolder(tmp_path / "r").state() == "interrupted"
    Recorder(tmp_path / "r", resume=True).finish()


def test_a_writer_that_ends_between_two_looks_is_not_taken_for_dead(tmp_path, monkeypatch):
    run = Recorder(tmp_path / "r")
    run.log(1, loss=1)
    holder = layout.holder

    def late(folder):
        run.finish()
        return holder(folder)

    monkeypatch.setattr(layout, "holder", late)
    assert RunFolder(tmp_path / "r").state() == "finished"


def test_a_dead_writers_lock_is_taken_over(tmp_path):
    code = ("import sys, os, signal; from backend.runs.recorder import Recorder; r = Recorder(sys.argv[1]);"
            "r.log(7, loss=1.0); os.kill(os.getpid(), signal.SIGKILL)")  # fmt: skip
    process = child(code, tmp_path / "r")
    assert process.wait(30) == -signal.SIGKILL
    assert (tmp_path / "r" / layout.LOCK).exists() and RunFolder(tmp_path / "r").state() == "interrupted"
    run = Recorder(tmp_path / "r", resume=True)
    assert run.step == 7 and RunFolder(tmp_path / "r").state() == "running"
    run.finish()


def test_a_writer_on_another_host_counts_while_its_last_line_is_young(tmp_path):
    Recorder(tmp_path / "r").stop()
    away = tmp_path / "r"
    (away / layout.LOCK).write_text(json.dumps({"pid": 1, "host": "another-host.invalid", "born": "1"}))
    log = away / layout.METRICS
    log.write_text(json.dumps({"event": "started", "step": 0, "time": time.time()}) + "\n")
    assert RunFolder(away).state() == "running"
    with pytest.raises(Busy, match="another-host.invalid"):
        Recorder(away, resume=True)
    log.write_text(json.dumps({"event": "started", "step": 0, "time": time.time() - layout.FRESH - 1}) + "\n")
    os.utime(log, (0, 0))
    assert RunFolder(away).state() == "interrupted"
    Recorder(away, resume=True).finish()


def test_a_pid_given_to_another_process_does_not_keep_a_run_alive(tmp_path):
    Recorder(tmp_path / "r").stop()
    with open(tmp_path / "r" / layout.METRICS, "a") as file:
        file.write('{"step":1,"time":0,"values":{"a":1}}\n')
    held = {"pid": os.getpid(), "host": socket.gethostname(), "born": layout.born(os.getpid())}
    for born, state in [(held["born"], "running"), ("1", "interrupted")]:
        (tmp_path / "r" / layout.LOCK).write_text(json.dumps({**held, "born": born}))
        assert RunFolder(tmp_path / "r").state() == state


def test_a_torn_line_is_closed_kept_and_never_read(tmp_path):
    run = Recorder(tmp_path / "r")
    run.log(1, loss=1.0)
    del run
    log = tmp_path / "r" / layout.METRICS
    with open(log, "ab") as file:
        file.write(b'{"step":2,"time":5,"values":{"loss":9')
    before = log.read_bytes()
    run = Recorder(tmp_path / "r", resume=True)
    run.log(2, loss=2.0)
    run.finish()
    assert log.read_bytes().startswith(before + b"\n")
    chunk = RunFolder(tmp_path / "r").read()
    assert [v[3] for v in values(tmp_path / "r")] == [1.0, 2.0] and chunk.bad == 1


def test_a_full_disk_is_said_and_the_run_goes_on_after_room_is_made(tmp_path):
    """The kernel itself tears the line: the process may write no file beyond 4 kB."""
    code = """
import resource, sys
from backend.errors import Broken
from backend.runs.recorder import Recorder
run = Recorder(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
try:
    for step in range(1000): run.log(step, loss=step)
except Broken as error:
    print(step, error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for step in range(step, step + 3): run.log(step, loss=step)
run.finish()
"""
    process = child(code, tmp_path / "r")
    said = process.communicate()[0]
    assert process.returncode == 0 and "Make room or correct the rights" in said
    steps = [v[0] for v in values(tmp_path / "r")]
    assert steps == list(range(int(said.split()[0]) + 3)) and RunFolder(tmp_path / "r").state() == "finished"


def test_checkpoints_are_whole_tied_weights_kept_and_last_two_resume_states(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    with Recorder(tmp_path / "r") as run:
        for step in (1, 5, 9):
            run.checkpoint(step, model, optimizer, {"g": torch.Generator().get_state()})
        path = run.checkpoint(11, {"only": torch.ones(2).expand(3, 2).T})
    assert layout.steps_in(run.folder) == [1, 5, 9, 11] and layout.steps_in(run.folder, layout.RESUME) == [5, 9]
    assert load_file(path)["only"].shape == (2, 3)
    kept = load_file(layout.file_of(run.folder, layout.CHECKPOINTS, 9))
    assert torch.equal(kept["1.weight"], model[0].weight) and kept.keys() == model.state_dict().keys()
    assert not list(run.folder.rglob("*.tmp"))
    RunFolder(run.folder).checkpoint_path(9)
    with pytest.raises(NotFound, match="nearest are 1, 5, 9"):
        RunFolder(run.folder).checkpoint_path(4)


def test_left_over_temporary_files_go_on_resume_and_are_no_checkpoints(tmp_path):
    Recorder(tmp_path / "r").stop()
    left = tmp_path / "r" / layout.CHECKPOINTS / ".step_00000004.safetensors.17.tmp"
    left.write_bytes(b"half")
    assert RunFolder(tmp_path / "r").checkpoints() == []
    Recorder(tmp_path / "r", resume=True).finish()
    assert not left.exists()


def test_broken_and_absent_run_json(tmp_path):
    (tmp_path / "r").mkdir()
    with pytest.raises(NotFound):
        RunFolder(tmp_path / "r").info()
    (tmp_path / "r" / layout.RUN).write_text('{"name": ')
    with pytest.raises(Broken, match="run.json cannot be read"):
        RunFolder(tmp_path / "r").info()
    assert [r.name for r in find_runs([tmp_path, tmp_path / "absent"])] == ["r"]


def test_the_last_line_is_found_however_long_it_is(tmp_path):
    run = Recorder(tmp_path / "r")
    run.log(41, {f"m/L{i}": i / 7 for i in range(20_000)})
    assert layout.last_line(run.folder / layout.METRICS).line["step"] == 41
    assert RunFolder(run.folder).status()["last_step"] == 41
    first = RunFolder(run.folder).read(max_bytes=100)
    assert len(first.rows) == 0 and first.events[0]["event"] == "started"
    assert len(RunFolder(run.folder).read(first.offset, max_bytes=100).rows) == 20_000
    run.stop()
