"""Phasescope's backend. `from backend import Backend` is the facade; importing this package alone loads nothing else,
so that worker processes never load the store and the app process never loads torch."""

from typing import Any

__all__ = ["Backend"]


def __getattr__(name: str) -> Any:
    if name == "Backend":
        from backend.facade import Backend

        return Backend
    raise AttributeError(name)
