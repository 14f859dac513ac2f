"""The engine through the inline driver: order, joining, endings, the promise that results come before "done"."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.errors import BadInput, Busy, NotFound
from backend.jobs.driver import Call, Worker
from backend.jobs.engine import Engine
from backend.jobs.inline import InlineDriver
from backend.jobs.state import Job, new_job
from backend.settings import Settings
from tests.jobs_targets import until

TARGET = "tests.jobs_targets:execute"


class Ears:
    """Keeps what an engine tells."""

    def __init__(self) -> None:
        self.changes: list[Job] = []
        self.results: dict[str, Any] = {}
        self.states_at_result: list[str] = []

    def change(self, job: Job) -> None:
        self.changes.append(job)

    def result(self, job: Job, value: Any) -> None:
        self.states_at_result.append(job.state)
        self.results[job.id] = value

    def states(self, job_id: str) -> list[str]:
        seen = [j.state for j in self.changes if j.id == job_id]
        return [s for i, s in enumerate(seen) if i == 0 or seen[i - 1] != s]


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def engine(ears: Ears) -> Iterator[Engine]:
    made = Engine(InlineDriver(Settings()), TARGET, ears.change, ears.result, grace=0.2)
    yield made
    made.close(grace=0.2)


def gated(tmp_path: Path, name: str = "g") -> dict[str, str]:
    return {"gate": str(tmp_path / f"{name}.gate"), "mark": str(tmp_path / f"{name}.mark")}


def test_result_comes_before_done(engine: Engine, ears: Ears) -> None:
    job = engine.submit("echo", "k", "Echo", {"value": 7})
    done = engine.wait(job.id, 180)
    assert done.state == "done" and ears.results == {job.id: 7}
    assert ears.states_at_result == ["running"]
    assert ears.states(job.id) == ["queued", "running", "done"]
    assert done.progress == 1.0 and done.memory_bytes > 0 and done.finished >= done.started >= done.created


def test_synchronous_driver_has_ended_when_submit_returns(ears: Ears) -> None:
    engine = Engine(InlineDriver(Settings(), threads=0), TARGET, ears.change, ears.result)
    assert engine.submit("echo", "k", "Echo", {"value": 1}).state == "done"
    assert engine.submit("fails", "k2", "Fails", {}).state == "failed"
    engine.close()


def test_a_result_that_cannot_be_kept_fails_the_job() -> None:
    def refuse(job: Job, value: Any) -> None:
        raise Busy("The store", "it is held", "Wait")

    engine = Engine(InlineDriver(Settings(), threads=0), TARGET, on_result=refuse)
    job = engine.submit("echo", "k", "Echo", {})
    assert job.state == "failed" and job.error["error"] == "Busy"
    assert "could not be kept" in job.story[-1]["text"]
    engine.close()


def test_a_listener_that_raises_stops_nothing() -> None:
    def raises(job: Job) -> None:
        raise RuntimeError("ears closed")

    engine = Engine(InlineDriver(Settings()), TARGET, on_change=raises)
    assert engine.wait(engine.submit("echo", "k", "Echo", {}).id, 180).state == "done"
    engine.close()


@pytest.mark.parametrize(("kind", "error", "found"), [
    ("fails", "Broken", "ValueError: seven is not eight"), ("bad", "BadInput", "it is not eight"),
    ("exits", "Broken", "SystemExit: 3"), ("nosuch", "Broken", "KeyError")])
def test_failures_keep_their_story(engine: Engine, kind: str, error: str, found: str) -> None:
    job = engine.wait(engine.submit(kind, "k", "Fails", {}).id, 180)
    assert job.state == "failed" and job.error["error"] == error and found in job.error["found"]
    assert ("Traceback" in job.error.get("details", "")) == (error == "Broken")
    assert found in job.story[-1]["text"]


def test_queue_has_positions_and_order(engine: Engine, ears: Ears, tmp_path: Path) -> None:
    first = engine.submit("gated", "k0", "First", gated(tmp_path))
    rest = [engine.submit("echo", f"k{i}", "Echo", {"value": i}) for i in (1, 2, 3)]
    assert [engine.position(j.id) for j in (first, *rest)] == [None, 1, 2, 3]
    gone = engine.cancel(rest[0].id)
    assert gone.state == "cancelled" and [engine.position(j.id) for j in rest] == [None, 1, 2]
    (tmp_path / "g.gate").touch()
    until(lambda: engine.get(rest[2].id).ended, "the last job ends")
    assert list(ears.results) == [first.id, rest[1].id, rest[2].id]


def test_identical_requests_join_until_the_job_ends(engine: Engine, ears: Ears, tmp_path: Path) -> None:
    ask = gated(tmp_path)
    ids = {engine.submit("gated", "same", "Same", ask).id for _ in range(5)}
    assert len(ids) == 1 and len(engine.jobs()) == 1
    (tmp_path / "g.gate").touch()
    engine.wait(next(iter(ids)), 10)
    assert engine.submit("gated", "same", "Same", ask).id not in ids


def test_joining_is_exact_from_many_threads(engine: Engine, tmp_path: Path) -> None:
    ask, ids = gated(tmp_path), []

    def ask_once() -> None:
        ids.append(engine.submit("gated", "same", "S", ask).id)

    threads = [threading.Thread(target=ask_once) for _ in range(16)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(ids) == 16 and len(set(ids)) == 1


def test_a_job_being_stopped_is_not_joined(engine: Engine, tmp_path: Path) -> None:
    ask = gated(tmp_path)
    first = engine.submit("gated", "same", "S", ask)
    until(lambda: Path(ask["mark"]).exists(), "it runs")
    engine.cancel(first.id)
    second = engine.submit("gated", "same", "S", ask)
    assert second.id != first.id
    assert engine.wait(first.id, 180).state == "cancelled"
    (tmp_path / "g.gate").touch()
    assert engine.wait(second.id, 180).state == "done"


def test_cooperative_cancel(engine: Engine, tmp_path: Path) -> None:
    ask = gated(tmp_path)
    job = engine.submit("gated", "k", "Gated", ask)
    until(lambda: Path(ask["mark"]).exists(), "it runs")
    engine.cancel(job.id)
    ended = engine.wait(job.id, 180)
    assert ended.state == "cancelled" and not ended.stopping
    assert [line["text"] for line in ended.story][-2:] == ["Asked to stop", "Stopped as asked"]


def test_progress_is_told_at_most_ten_times_a_second(engine: Engine, ears: Ears, tmp_path: Path) -> None:
    ask = gated(tmp_path)
    job = engine.submit("gated", "k", "Gated", ask)
    until(lambda: sum(j.progress > 0 for j in ears.changes) >= 6, "progress is told")
    (tmp_path / "g.gate").touch()
    ended = engine.wait(job.id, 180)
    told = [j for j in ears.changes if j.words.startswith("turn")]
    assert len(told) <= 10 * (ended.finished - ended.started) + 2
    assert [j.progress for j in told] == sorted(j.progress for j in told)


def test_retry_keeps_id_and_story(engine: Engine) -> None:
    job = engine.wait(engine.submit("fails", "k", "Fails", {}).id, 180)
    again = engine.retry(job.id)
    assert again.id == job.id
    ended = engine.wait(job.id, 180)
    texts = [line["text"] for line in ended.story]
    assert ended.state == "failed" and texts.count("Queued again") == 1 and sum("Failed" in t for t in texts) == 2


@pytest.mark.parametrize("waits", [False, True])
def test_a_retry_joins_the_same_work_under_way(engine: Engine, tmp_path: Path, waits: bool) -> None:
    ask = gated(tmp_path)
    old = engine.submit("fails", "same", "Fails", ask)
    engine.wait(old.id, 180)
    if waits:
        engine.submit("gated", "other", "Other", gated(tmp_path, "other"))
    twin = engine.submit("gated", "same", "Twin", ask)
    until(lambda: engine.get(twin.id).state == ("queued" if waits else "running"), "the twin is under way")
    assert engine.retry(old.id).id == twin.id
    assert engine.get(old.id).state == "failed" and engine.position(old.id) is None
    [(tmp_path / f"{name}.gate").touch() for name in ("g", "other")]
    assert engine.wait(twin.id, 180).state == "done" and engine.get(old.id).attempts == 1


class HandDriver:
    """Two workers, a and b, in the test's hands: a call returns, or its worker dies, when the test says so."""

    synchronous, notices = False, ()

    def __init__(self) -> None:
        self.settings, self.listener, self.calls = Settings(), None, {}

    def start(self, listener: Any) -> None:
        self.listener = listener
        [self.come(address) for address in "ab"]

    def come(self, address: str) -> None:
        self.listener.worker_up(Worker(address, 1, "here"))

    def run(self, call: Call, worker: Worker) -> None:
        self.calls[worker.address] = call

    def finish(self, address: str, models: list[str]) -> None:
        call = self.calls.pop(address)
        self.listener.returned(call.attempt, {"ok": True, "value": 0, "models": models, "memory_bytes": 1})

    def die(self, address: str) -> None:
        self.calls.pop(address)
        self.listener.worker_down(address)

    def ask_cancel(self, call: Call, worker: Worker) -> None: ...

    def memory(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


@pytest.fixture
def hands() -> Iterator[tuple[Engine, HandDriver]]:
    driver = HandDriver()
    engine = Engine(driver, TARGET)
    yield engine, driver
    engine.close(grace=0)


def test_the_job_of_a_dead_worker_is_next(hands: tuple[Engine, HandDriver]) -> None:
    engine, driver = hands
    jobs = [engine.submit("echo", f"k{i}", "Echo", {}) for i in range(4)]
    assert driver.calls["a"].job_id == jobs[0].id
    driver.die("a")
    assert [engine.position(j.id) for j in jobs] == [1, None, 2, 3]
    driver.come("a")
    assert driver.calls["a"].job_id == jobs[0].id and engine.position(jobs[2].id) == 1


def test_training_leaves_one_worker_for_views(hands: tuple[Engine, HandDriver]) -> None:
    engine, driver = hands
    trains = [engine.submit("train", f"t{i}", "Train", {"run_dir": f"r{i}"}) for i in range(2)]
    assert [c.job_id for c in driver.calls.values()] == [trains[0].id], "the second worker stays free"
    view = engine.submit("echo", "v", "View", {})
    assert {c.job_id for c in driver.calls.values()} == {trains[0].id, view.id}, "a view passes the training that waits"
    driver.finish("b", [])
    assert engine.wait(view.id, 180).state == "done" and list(driver.calls) == ["a"]
    driver.come("c")  # a third worker: now two may train
    assert {c.job_id for c in driver.calls.values()} == {t.id for t in trains}


def test_jobs_go_where_their_model_lies(hands: tuple[Engine, HandDriver]) -> None:
    """Both workers hold one model each, so nothing but the affinity tells them apart."""
    engine, driver = hands
    for address, model in (("a", "one"), ("b", "two")):
        job = engine.submit("echo", f"open {model}", "Open", {}, model)
        assert driver.calls[address].job_id == job.id, "an empty worker is taken before one that holds a model"
        driver.finish(address, [model])
    for address, model in (("b", "two"), ("a", "one"), ("b", "two")):
        job = engine.submit("echo", f"use {model}", "Use", {}, model)
        assert list(driver.calls) == [address] and driver.calls[address].job_id == job.id
        driver.finish(address, [model])
        assert engine.wait(job.id, 180).state == "done"


def test_what_cannot_be_retried_or_resumed_says_why(engine: Engine) -> None:
    done = engine.wait(engine.submit("echo", "k", "Echo", {}).id, 180)
    with pytest.raises(BadInput, match="it is done"):
        engine.retry(done.id)
    with pytest.raises(BadInput, match="only training"):
        engine.resume(done.id)
    with pytest.raises(NotFound):
        engine.retry("nope")
    assert engine.get("nope") is None


def test_close_interrupts_and_a_new_engine_resumes(ears: Ears, tmp_path: Path) -> None:
    ask = gated(tmp_path)
    engine = Engine(InlineDriver(Settings()), TARGET, ears.change)
    training = engine.submit("train", "t", "Train", ask)
    waiting = engine.submit("echo", "e", "Echo", {"value": 1})
    until(lambda: Path(ask["mark"]).exists(), "it runs")
    engine.close()
    last = {j.id: j for j in ears.changes}
    assert last[training.id].state == last[waiting.id].state == "interrupted"

    again = Engine(InlineDriver(Settings()), TARGET, ears.change, ears.result)
    again.adopt([last[training.id].record(), last[waiting.id]])
    (tmp_path / "g.gate").touch()
    again.resume(training.id)
    assert again.wait(training.id, 180).state == "done" and ears.results[training.id] == "resume=True"
    assert again.wait(again.retry(waiting.id).id, 180).state == "done"
    again.close()
    again.close()  # twice is fine


def test_adopt_says_what_happened(engine: Engine, ears: Ears) -> None:
    left = [new_job("train", s, "Left", {}).model_copy(update={"state": s}) for s in ("queued", "running")]
    kept = new_job("echo", "kd", "Done", {}).model_copy(update={"state": "done"})
    adopted = engine.adopt([*(j.record() for j in left), kept])
    assert [j.state for j in adopted] == ["interrupted", "interrupted", "done"]
    assert all("ended before" in j.story[-1]["text"] for j in adopted[:2])
    assert {j.id for j in ears.changes} == {j.id for j in left}
    assert engine.wait(left[0].id, 1).state == "interrupted"


def test_affinity_without_a_report_is_remembered(ears: Ears) -> None:
    engine = Engine(InlineDriver(Settings(), threads=0), "tests.test_jobs_inline:plain", ears.change)
    engine.submit("any", "k", "Plain", {}, affinity="model-a")
    assert engine.workers()[0]["models"] == ["model-a"]
    engine.close()


def plain(kind: str, payload: dict, settings: dict, progress: Any) -> str:
    return kind


def test_what_somebody_waits_for_goes_before_what_nobody_looks_at(hands: tuple[Engine, HandDriver]) -> None:
    engine, driver = hands
    for name in ("busy", "busy too", "sweep 1", "sweep 2", "sweep 3"):
        engine.submit("echo", name, name, {})
    assert len(driver.calls) == 2
    first = engine.submit("echo", "looked at", "looked at", {}, urgent=True)
    second = engine.submit("echo", "second", "second", {}, urgent=True)
    again = engine.submit("echo", "sweep 2", "sweep 2", {}, urgent=True)  # it waits already: it moves up
    waiting = sorted((j for j in engine.jobs() if j.state == "queued"), key=lambda j: engine.position(j.id) or 0)
    assert [j.key for j in waiting] == ["looked at", "second", "sweep 2", "sweep 1", "sweep 3"]
    assert [engine.position(j.id) for j in (first, second, again)] == [1, 2, 3]
