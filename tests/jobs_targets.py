"""What the jobs tests run in workers, and how they wait: for conditions, never for a time."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend.errors import BadInput

MODELS: set[str] = set()


def held() -> list[str]:
    """Models that this process pretends to have loaded."""
    return list(MODELS)


def execute(kind: str, payload: dict[str, Any], settings: dict[str, Any], progress: Callable) -> Any:
    """The target of these tests' engines."""
    return globals()[f"_{kind}"](payload, progress)


def _echo(payload: dict, progress: Callable) -> Any:
    return payload.get("value")


def _large(payload: dict, progress: Callable) -> bytes:
    return bytes(range(250)) * (payload["size"] // 250)


def _pid(payload: dict, progress: Callable) -> int:
    MODELS.update([payload["model"]] if "model" in payload else [])
    return os.getpid()


def _gated(payload: dict, progress: Callable) -> str:
    """Report progress until the gate opens; leave a mark (this process's id) that it runs."""
    Path(payload["mark"]).write_text(str(os.getpid()))
    n = 0
    while not Path(payload["gate"]).exists():
        n += 1
        progress(min(0.99, n / 100), f"turn {n}")
        time.sleep(0.01)
    return f"resume={payload.get('resume', False)}"


_train = _gated


def _deaf(payload: dict, progress: Callable) -> None:
    """Hear nothing: sleep without ever reporting."""
    Path(payload["mark"]).write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def _stuck_in_c(payload: dict, progress: Callable) -> None:
    """Hold the interpreter lock inside C for ever: even the worker's own event loop stands still."""
    Path(payload["mark"]).write_text(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 60 + "b")


def _fails(payload: dict, progress: Callable) -> None:
    raise ValueError("seven is not eight")


def _bad(payload: dict, progress: Callable) -> None:
    raise BadInput("Seven", "it is not eight", "Say eight")


def _exits(payload: dict, progress: Callable) -> None:
    raise SystemExit(3)


def _unpicklable(payload: dict, progress: Callable) -> Any:
    import threading

    return threading.Lock()


def until(condition: Callable[[], Any], what: str, timeout: float = 150.0) -> Any:
    """Wait until `condition()` is true and return it; fails with `what` after `timeout` s."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"Not within {timeout} s: {what}")


def process_ended(pid: int) -> bool:
    """True when no such process runs (a zombie has ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def _environment(payload: dict, progress: Callable) -> Any:
    return {name: os.environ.get(name, "") for name in payload["names"]}
