"""Scores of heads over rows: their means, errors and distance from a null, and the columns that say where a head is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

SIGMAS = 5.0  # standard errors above a null: about 3e-7 one-sided for a normal error, far beyond 1e4 heads tried


def over_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, standard error) over the second axis of [layer, row, ...]; the error is NaN for one row."""
    rows = values.shape[1]
    spread = values.std(1, ddof=1) if rows > 1 else np.full_like(values[:, 0], np.nan)
    return values.mean(1), spread / math.sqrt(rows)


def z_score(score: Any, se: Any, null: Any, null_se: Any) -> np.ndarray:
    """Return (score - null) / sqrt(se^2 + null_se^2); NaN where both errors are 0 or unknown."""
    gap, error = np.asarray(score - null), np.hypot(se, null_se)
    return np.divide(gap, error, out=np.full(gap.shape, np.nan), where=error > 0)


def places(n_layers: int, n_heads: int) -> dict[str, np.ndarray]:
    """Return the columns layer and head of a table with a row per head, layer by layer."""
    return {"layer": np.repeat(np.arange(n_layers), n_heads), "head": np.tile(np.arange(n_heads), n_layers)}


def names(layers: Iterable[int], heads: Iterable[int]) -> list[str]:
    """Return the heads' names: L1H0."""
    return [f"L{layer}H{head}" for layer, head in zip(layers, heads, strict=True)]
