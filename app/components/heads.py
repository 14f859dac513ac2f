"""All heads at a glance: a canvas of thumbnails, layer rows by head columns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from app.components.frame import envelope, max_pool, mount, pending

#: pixels sent at most; above, thumbnails are pooled further (2 MB per interaction is the house's limit)
BUDGET = 1_500_000
Head = tuple[int, int]


def head_grid(
    thumbs: np.ndarray, n_layers: int, n_heads: int, selected: Head | None, labels: Mapping[Head, str] | None = None,
    key: str = "heads", *, hover: Mapping[Head, str] | None = None, max_height: int = 560,
    on_pick: Callable[[], None] | None = None,
) -> Head | None:
    """Draw thumbnails uint8 [n_layers * n_heads, height, width] and return the head just clicked, else None.

    `labels` border a head and name it on hover ("induction 0.94"); `hover` names without a border. `selected` is
    the caller's (outside the model: none). A click is returned on one run only, so that the caller's state stays
    the one truth; arrow keys move the choice.
    Raises ValueError where the shape does not fit.
    """
    thumbs = np.asarray(thumbs)
    if thumbs.dtype != np.uint8 or thumbs.ndim != 3 or len(thumbs) != n_layers * n_heads or not thumbs.size:
        raise ValueError(f"thumbs {thumbs.dtype} {thumbs.shape} for {n_layers} layers x {n_heads} heads")
    chosen = _head(pending(key), n_layers, n_heads) or _head(selected, n_layers, n_heads)
    pixels = fit(thumbs)
    header = {
        "n_layers": n_layers, "n_heads": n_heads, "h": pixels.shape[1], "w": pixels.shape[2],
        "selected": chosen, "labels": _by_index(labels, n_heads), "hover": _by_index(hover, n_heads),
        "max_height": max_height, "digest": hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest(),
    }
    return _head(mount("heads", envelope(header, pixels.tobytes()), key, on_pick), n_layers, n_heads)


def fit(thumbs: np.ndarray, budget: int = BUDGET) -> np.ndarray:
    """Max-pool thumbnails until all of them together hold at most `budget` pixels."""
    side = max(1, int((budget / len(thumbs)) ** 0.5))
    return np.ascontiguousarray(max_pool(thumbs, side) if thumbs[0].size * len(thumbs) > budget else thumbs)


def _by_index(words: Mapping[Head, str] | None, n_heads: int) -> dict[str, str]:
    return {str(layer * n_heads + head): text for (layer, head), text in (words or {}).items()}


def _head(value: Any, n_layers: int, n_heads: int) -> Head | None:
    """Read what the browser sent; anything but a head of this model is None."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(v) is int for v in value):
        return None
    layer, head = value
    return (layer, head) if 0 <= layer < n_layers and 0 <= head < n_heads else None
