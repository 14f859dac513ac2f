"""One head large: query rows by key columns, tokens on both axes, the exact value on hover."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from app.components.frame import envelope, max_pool, mount, pending, visible

#: cells per side sent at most (512 x 512 float16 = 0.5 MB)
SIDE = 512


def pattern(
    values: np.ndarray, tokens: Sequence[str], limits: tuple[float, float] = (0.0, 1.0), key: str = "pattern",
    title: str = "", *, unit: str = "", scale: str = "sequential", selected: int | None = None,
    key_tokens: Sequence[str] | None = None, max_height: int = 620, on_pick: Callable[[], None] | None = None,
) -> dict[str, int] | None:
    """Draw values [query, key] and return {"query": i, "key": j} of the cell just clicked, else None.

    uint8 is read as a display copy over `limits`, anything else is sent as float16. More than 512 cells per side
    are max-pooled and the picture says "n of N"; a click then gives the first token of the pooled cell.
    `scale` is sequential (viridis) or diverging (blue-white-red over symmetric limits). `selected` is a query.
    Raises ValueError where tokens and values do not fit.
    """
    values = np.asarray(values)
    columns = list(tokens if key_tokens is None else key_tokens)
    if values.ndim != 2 or not values.size or values.shape != (len(tokens), len(columns)):
        raise ValueError(f"values {values.shape} for {len(tokens)} query and {len(columns)} key tokens")
    if scale not in ("sequential", "diverging") or not limits[0] < limits[1]:
        raise ValueError(f"scale {scale!r} with limits {limits}")
    before = _cell(pending(key), values.shape)
    chosen = before["query"] if before else selected
    sent = np.ascontiguousarray(max_pool(exact(values, limits), SIDE))
    header = {
        "n": list(values.shape), "m": list(sent.shape), "limits": [float(v) for v in limits],
        "unit": unit, "scale": scale, "title": title, "queries": [visible(t) for t in tokens],
        "keys": [visible(t) for t in columns],
        "selected": chosen if chosen is not None and 0 <= chosen < len(tokens) else None, "max_height": max_height,
        "digest": hashlib.blake2b(sent.tobytes(), digest_size=8).hexdigest(),
    }
    return _cell(mount("pattern", envelope(header, sent.tobytes()), key, on_pick), values.shape)


def exact(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return the values as little-endian float16; uint8 is scaled back from 0..255 to `limits`."""
    if values.dtype == np.uint8:
        values = limits[0] + values.astype(np.float32) / 255 * (limits[1] - limits[0])
    return np.clip(values, -65504, 65504).astype("<f2")


def _cell(value: Any, shape: tuple[int, ...]) -> dict[str, int] | None:
    """Read what the browser sent; anything but a cell of this map is None."""
    if not isinstance(value, dict) or {type(value.get("query")), type(value.get("key"))} != {int}:
        return None
    query, column = value["query"], value["key"]
    return {"query": query, "key": column} if 0 <= query < shape[0] and 0 <= column < shape[1] else None
