"""A text as chips, coloured by a quantity; click one to choose it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from app.components.frame import mount, pending, visible


def token_strip(
    tokens: Sequence[str], values: Sequence[float] | None = None, limits: tuple[float, float] = (0.0, 1.0),
    selected: int | None = None, key: str = "tokens", *, name: str = "", unit: str = "", scale: str = "sequential",
    on_pick: Callable[[], None] | None = None,
) -> int | None:
    """Draw tokens as wrapping chips and return the position just clicked, else None.

    `values` (one per token; NaN or None: no colour) are coloured over `limits`; `name` and `unit` are said on hover.
    Raises ValueError where values and tokens differ in number.
    """
    if values is not None and len(values) != len(tokens):
        raise ValueError(f"{len(values)} values for {len(tokens)} tokens")
    before = _position(pending(key), len(tokens))
    data = {
        "tokens": [visible(t) for t in tokens], "values": None if values is None else [_plain(v) for v in values],
        "limits": [float(v) for v in limits], "selected": selected if before is None else before,
        "name": name, "unit": unit, "scale": scale,
    }
    return _position(mount("tokens", data, key, on_pick), len(tokens))


def _plain(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _position(value: Any, n: int) -> int | None:
    return value if type(value) is int and 0 <= value < n else None
