"""The worker's side of a call, whichever driver brought it: find the target, run it, never lose the story."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import psutil

from backend.errors import Cancelled, PhasescopeError
from backend.jobs.state import error_record

THROTTLE = 0.05  # seconds between two reports of progress


class Reporter:
    """The `progress(fraction, words)` of one call: sends at most every 50 ms, raises Cancelled when asked to stop."""

    def __init__(self, send: Callable[[float, str], None], cancelled: Callable[[], bool]):
        self._send, self._cancelled, self._last = send, cancelled, 0.0

    def __call__(self, fraction: float, words: str = "") -> None:
        if self._cancelled():
            raise Cancelled("This job", "it was cancelled", "Start it again when you want it")
        now = time.monotonic()
        if now - self._last >= THROTTLE:
            self._last = now
            self._send(min(1.0, max(0.0, float(fraction))), str(words))


def resolve(target: str) -> Callable[..., Any]:
    """Return the function that "package.module:function" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def perform(target: str, kind: str, payload: dict, settings: dict,
            progress: Callable[[float, str], None]) -> dict[str, Any]:
    """Run the target and return an envelope {ok, value | error, models, memory_bytes, pid, host}. Raises nothing."""
    try:
        outcome: dict[str, Any] = {"ok": True, "value": resolve(target)(kind, payload, settings, progress)}
    except PhasescopeError as error:
        outcome = {"ok": False, "error": error_record(error)}
    except BaseException as error:  # also SystemExit and MemoryError: a worker goes on, the story is told
        outcome = {"ok": False, "error": error_record(error, traceback.format_exc())}
    return {**outcome, "models": _held(target), "memory_bytes": peak_memory(),
            "pid": os.getpid(), "host": socket.gethostname()}


def _held(target: str) -> list[str] | None:
    """Ask the target's module what it holds; None where it does not say."""
    module = sys.modules.get(target.partition(":")[0])
    held = getattr(module, "held", None)
    return sorted(held()) if held else None


def free_memory() -> int:
    """Return the bytes of memory that this machine can still give without swapping."""
    return int(psutil.virtual_memory().available)


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:  # not POSIX
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
