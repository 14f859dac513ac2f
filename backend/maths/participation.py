"""Over how many parts an effect is spread, from effects that were measured on samples."""

from __future__ import annotations

import numpy as np

from backend.maths.ranks import bootstrap_means


def effective(effects: np.ndarray) -> np.ndarray:
    """Return (sum |d|)^2 / sum d^2 over the last axis: how many parts of equal effect would have these moments.

    0 where there is no effect. n Gaussian effects count as 2 n / pi.
    """
    total = np.square(effects).sum(-1)
    return np.square(np.abs(effects).sum(-1)) / np.where(total > 0, total, 1)


def effective_range(samples: np.ndarray, draws: int, seed: int) -> tuple[float, float]:
    """Return (low, high) of how many parts share the mean effect over samples [n, parts]; NaN for fewer than 4.

    Noise in effects that are 0 counts as effect: it moves `effective` of the means towards 2 parts / pi. Signs from one
    half of the samples on the effects in the other, over the sum of products of both halves (whose mean is that of the
    squares), make a count that noise lowers where signs are wrong. The interval holds what 95 % of the resamples of
    both say; where the effect is spread over most parts and noise is large, the truth may lie above it.
    """
    n = len(samples)
    if n < 4:
        return float("nan"), float("nan")
    halves = [bootstrap_means(samples[start::2], draws, seed + start) for start in (0, 1)]
    counts, estimate = (effective(bootstrap_means(samples, draws, seed)), _crossed(*halves)), effective(samples.mean(0))
    low, high = np.quantile(np.stack(counts), [0.025, 0.975], axis=1)
    return float(max(min(*low, estimate), min(1.0, estimate))), float(max(*high, estimate))


def _crossed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    signed = (np.sign(a) * b + np.sign(b) * a).sum(-1).clip(0) / 2
    total = (a * b).sum(-1)
    return np.where(total > 0, signed**2 / np.where(total > 0, total, 1), 0.0)
