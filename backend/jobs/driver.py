"""What the engine asks of a driver, and what a driver tells the engine. Drivers run one call on one worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from backend.settings import Settings


@dataclass(frozen=True)
class Call:
    """One attempt of one job: `target` is "module:function" called as (kind, payload, settings, progress)."""

    job_id: str
    attempt: str
    key: str
    target: str
    kind: str
    payload: dict[str, Any]
    settings: dict[str, Any]


@dataclass
class Worker:
    """A process that computes one job at a time. `models` is what it holds, by fingerprint or specification."""

    address: str
    pid: int
    host: str
    models: set[str] = field(default_factory=set)
    gpu: bool = False
    job: str = ""


class Listener(Protocol):
    """The engine as a driver sees it. Safe from any thread; `attempt` lets it ignore what came too late."""

    def worker_up(self, worker: Worker) -> None: ...
    def worker_down(self, address: str, why: str = "") -> None: ...
    def reported(self, attempt: str, fraction: float, words: str) -> None: ...
    def returned(self, attempt: str, envelope: dict[str, Any]) -> None: ...
    def noted(self, attempt: str, text: str) -> None: ...
    def said(self, words: str) -> None: ...


class Driver(Protocol):
    """Runs calls. Every method returns at once, except `close`."""

    settings: Settings
    synchronous: bool

    @property
    def notices(self) -> list[str]:
        """What a person should know of the workers."""

    def start(self, listener: Listener) -> None:
        """Bring the workers up in the background and tell the listener of each."""

    def run(self, call: Call, worker: Worker) -> None:
        """Start the call there; its envelope (task.perform) arrives through `returned`."""

    def ask_cancel(self, call: Call, worker: Worker) -> None:
        """Let the call's next progress() raise Cancelled."""

    def kill(self, call: Call, worker: Worker) -> None:
        """End the worker's process; a fresh one takes its place."""

    def memory(self) -> dict[str, int]:
        """Return resident bytes by worker address, where known."""

    def room(self) -> int | None:
        """Return the bytes that the roomiest worker has left, None where it is not known."""

    def close(self) -> None:
        """End everything that this driver started."""
