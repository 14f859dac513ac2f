"""The one Backend of this process. The server's lifespan sets it; pages and API routes ask for it."""

from __future__ import annotations

import threading

from backend import Backend

_lock = threading.Lock()
_backend: Backend | None = None


def settle(backend: Backend | None) -> None:
    """Set (or with None forget) the process' Backend."""
    global _backend
    with _lock:
        _backend = backend


def backend() -> Backend:
    """Return the Backend; outside the server (`streamlit run app/main.py`, AppTest) open one on first use."""
    global _backend
    with _lock:
        if _backend is None:
            _backend = Backend()
        return _backend
