"""Rank correlation and bootstrap means, on numpy arrays."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

LEVEL = 0.95  # of every interval


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation over the last axis, ties at their mean rank; NaN where one is constant.

    Pearson's correlation of the ranks. Shapes [..., n] -> [...], -1..1.
    Source: Spearman (1904), The proof and measurement of association between two things.
    """
    ranks = [rankdata(np.asarray(x, float), axis=-1) for x in (a, b)]
    x, y = (r - r.mean(-1, keepdims=True) for r in ranks)
    size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), size, out=np.full_like(size, np.nan), where=size > 0)


def bootstrap_means(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return means over the first axis of `draws` resamples with replacement: [n, ...] -> [draws, ...].

    Source: Efron (1979), Bootstrap methods: another look at the jackknife.
    """
    n = len(values)
    chosen = np.random.default_rng(seed).integers(n, size=(draws, n))
    weights = np.stack([np.bincount(c, minlength=n) for c in chosen]) / n
    return np.tensordot(weights, np.asarray(values, float), 1)


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Return the (1 -+ level) / 2 quantiles over the first axis; NaN draws are left out."""
    if np.isnan(draws).all():
        return np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
