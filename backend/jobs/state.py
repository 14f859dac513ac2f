r"""The life of a job as a pure table: no clock but the one passed in, no I/O, no threads.

    queued --start--> running --finish--> done
       ^  \              |  \--fail-----> failed
       |   \--cancel--\  |--cancel------> cancelled
       |               \ |--stop--------> running (asked to stop)
       |                \|--interrupt---> interrupted
       |                 `--died--------> queued once, then failed; cancelled where a person had asked to stop
       `--retry-- failed, cancelled, interrupted
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.errors import Broken, PhasescopeError

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled", "interrupted")
ENDED: frozenset[str] = frozenset({"done", "failed", "cancelled", "interrupted"})
EVENTS = ("start", "report", "stop", "finish", "fail", "cancel", "died", "interrupt", "retry", "note")
MAX_DEATHS = 2

#: (state, event) -> the states it may lead to; a pair that is not here is forbidden
TRANSITIONS: dict[tuple[str, str], tuple[State, ...]] = {
    ("queued", "start"): ("running",),
    ("queued", "cancel"): ("cancelled",),
    ("queued", "interrupt"): ("interrupted",),
    ("running", "report"): ("running",),
    ("running", "stop"): ("running",),
    ("running", "finish"): ("done",),
    ("running", "fail"): ("failed",),
    ("running", "cancel"): ("cancelled",),
    ("running", "died"): ("queued", "failed", "cancelled"),
    ("running", "interrupt"): ("interrupted",),
    ("failed", "retry"): ("queued",),
    ("cancelled", "retry"): ("queued",),
    ("interrupted", "retry"): ("queued",),
    **{(s, "note"): (s,) for s in STATES},
}


class Job(BaseModel):
    """One computation asked for. Frozen: every change is a new value. Times are seconds since 1970 (UTC)."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str
    key: str = Field(description="same key, same work: a job under way is joined")
    kind: str = Field(description="analysis, open or train")
    title: str = Field(description="words for people")
    payload: dict[str, Any] = Field(default_factory=dict)
    affinity: str = Field(default="", description="what a worker should already hold, e.g. a model's fingerprint")
    state: State = "queued"
    stopping: bool = Field(default=False, description="a person asked a running job to stop")
    progress: float = Field(default=0.0, description="0..1")
    words: str = ""
    worker: str = ""
    worker_pid: int = 0
    attempts: int = Field(default=0, description="times it was started since it was last queued by a person")
    deaths: int = Field(default=0, description="workers that died under it since then")
    story: list[dict[str, Any]] = Field(default_factory=list, description="[{time, text}]")
    error: dict[str, Any] | None = Field(default=None, description="its three parts, and `details` to fold away")
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    memory_bytes: int = Field(default=0, description="peak resident memory of the worker's process")

    def record(self) -> dict[str, Any]:
        """Return the JSON form, which `Job(**record)` reads back."""
        return self.model_dump(mode="json")

    @property
    def ended(self) -> bool:
        """True when nothing more happens unless a person asks."""
        return self.state in ENDED


def new_job(kind: str, key: str, title: str, payload: dict[str, Any], affinity: str = "",
            now: float | None = None) -> Job:
    """Return a queued job with a fresh id."""
    at = time.time() if now is None else now
    return Job(id=uuid.uuid4().hex[:16], key=key, kind=kind, title=title, payload=payload, affinity=affinity,
               created=at, story=[{"time": at, "text": "Queued"}])


def step(job: Job, event: str, text: str = "", now: float | None = None, **facts: Any) -> Job:
    """Return the job after `event`; `text` becomes a line of its story, `facts` fields that the event may set.

    Raises Broken where TRANSITIONS does not list (job.state, event).
    """
    if (job.state, event) not in TRANSITIONS:
        raise Broken(f"Job {job.id}: {event}", f"it is {job.state}", "This is a defect; please report it")
    at = time.time() if now is None else now
    changes: dict[str, Any] = {**facts, **_effects(job, event, at)}
    if text:
        changes["story"] = [*job.story, {"time": at, "text": text}]
    return job.model_copy(update=changes)


def _effects(job: Job, event: str, at: float) -> dict[str, Any]:
    """Return the fields that the event itself sets, whatever the caller says."""
    if event in ("report", "note"):
        return {}
    if event == "stop":
        return {"stopping": True}
    if event == "start":
        return {"state": "running", "attempts": job.attempts + 1, "started": at, "progress": 0.0, "words": "starting"}
    if event == "died":
        return _after_death(job, at)
    if event == "retry":
        return {"state": "queued", "attempts": 0, "deaths": 0, **_cleared(), "error": None}
    ends = {"finish": "done", "fail": "failed", "cancel": "cancelled", "interrupt": "interrupted"}
    done = {"progress": 1.0} if event == "finish" else {}
    return {"state": ends[event], "finished": at, "stopping": False, **done}


def _after_death(job: Job, at: float) -> dict[str, Any]:
    if job.stopping:
        return {"state": "cancelled", "finished": at, "stopping": False}
    deaths = job.deaths + 1
    if deaths < MAX_DEATHS:
        return {"state": "queued", "deaths": deaths, **_cleared()}
    story = Broken(job.title, f"its worker died {deaths} times", "Look at the story; a smaller input may fit in memory")
    return {"state": "failed", "deaths": deaths, "finished": at, "error": story.record()}


def _cleared() -> dict[str, Any]:
    return {"progress": 0.0, "words": "", "worker": "", "worker_pid": 0, "started": None, "finished": None,
            "stopping": False}


def error_record(error: BaseException, details: str = "") -> dict[str, Any]:
    """Return what travels of an error: its three parts, and the traceback where it is not one of ours."""
    if isinstance(error, PhasescopeError):
        return dict(error.record())
    found = f"{type(error).__name__}: {error}".strip().rstrip(".:") or type(error).__name__
    return {**Broken("The computation", found[:500], "Read the details; this is a defect").record(), "details": details}
