"""The transition table: every (state, event) pair, and what each leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from backend.errors import Broken, NotFound
from backend.jobs.state import EVENTS, STATES, TRANSITIONS, Job, error_record, new_job, step
from backend.settings import ROOT

# the whole promise, written out once more by hand: state -> {event: where a fresh job lands}
EXPECTED = {
    "queued": {"start": "running", "cancel": "cancelled", "interrupt": "interrupted", "note": "queued"},
    "running": {"report": "running", "stop": "running", "finish": "done", "fail": "failed", "cancel": "cancelled",
                "died": "queued", "interrupt": "interrupted", "note": "running"},
    "done": {"note": "done"},
    "failed": {"retry": "queued", "note": "failed"},
    "cancelled": {"retry": "queued", "note": "cancelled"},
    "interrupted": {"retry": "queued", "note": "interrupted"},
}


def job_in(state: str, **facts: object) -> Job:
    return new_job("analysis", "k", "Title", {"a": 1}, now=1.0).model_copy(update={"state": state, **facts})


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_every_pair(state: str, event: str) -> None:
    job = job_in(state)
    if event not in EXPECTED[state]:
        with pytest.raises(Broken, match=f"it is {state}"):
            step(job, event)
        return
    after = step(job, event, "words", now=5.0)
    assert after.state == EXPECTED[state][event]
    assert after.state in TRANSITIONS[state, event]
    assert after.story[-1] == {"time": 5.0, "text": "words"}
    assert job.state == state and len(job.story) == 1  # the old value is untouched
    assert (after.finished == 5.0) == (after.ended and event != "note")


def test_table_names_only_known_states_and_events() -> None:
    assert {(s, e) for s, by in EXPECTED.items() for e in by} == set(TRANSITIONS)
    assert {t for targets in TRANSITIONS.values() for t in targets} == set(STATES)


def test_one_death_is_forgiven_the_second_is_not() -> None:
    once = step(step(job_in("running", attempts=1, progress=0.7, worker="w"), "died"), "start")
    assert (once.state, once.attempts, once.deaths, once.progress) == ("running", 2, 1, 0.0)
    twice = step(once, "died", now=9.0)
    assert twice.state == "failed" and twice.deaths == 2 and twice.finished == 9.0
    assert twice.error is not None and "died 2 times" in twice.error["found"]


def test_a_death_after_a_stop_is_a_cancel() -> None:
    assert step(step(job_in("running"), "stop"), "died").state == "cancelled"


def test_retry_forgets_deaths_and_error_but_not_the_story() -> None:
    failed = job_in("failed", attempts=2, deaths=2, error={"error": "Broken"}, worker="w", finished=3.0)
    again = step(failed, "retry", "Queued again")
    assert (again.attempts, again.deaths, again.error, again.worker, again.finished) == (0, 0, None, "", None)
    assert [line["text"] for line in again.story] == ["Queued", "Queued again"]
    assert step(step(again, "start"), "died").state == "queued"


def test_record_is_json_and_reads_back() -> None:
    job = step(job_in("running"), "fail", "it broke", error=error_record(NotFound("a", "b", "c")))
    assert Job(**json.loads(json.dumps(job.record()))) == job


def test_errors_travel_as_three_parts() -> None:
    assert error_record(NotFound("a", "b", "c")) == {"error": "NotFound", "asked": "a", "found": "b", "todo": "c"}
    foreign = error_record(KeyError("x"), "Traceback ...")
    assert foreign["error"] == "Broken" and "KeyError" in foreign["found"] and foreign["details"] == "Traceback ..."


def test_the_room_loads_neither_dask_nor_torch() -> None:
    code = ("import sys; from backend.jobs import engine, dask_driver, inline, worker\n"
            "print([m for m in ('torch', 'distributed', 'dask', 'duckdb', 'streamlit') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
