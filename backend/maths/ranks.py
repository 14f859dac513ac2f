"""Rank correlation and bootstrap means, on numpy arrays."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit
from scipy.stats import binom, rankdata

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


def spearman_matrix(columns: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Spearman's correlations between quantities of points that come in groups, and resamples of the groups.

    columns [group, point, v] -> ([v, v], [draws, v, v]). Points of a group (perturbations of one problem) are not
    independent, so whole groups are drawn; ranks are those of the whole sample throughout. NaN where one is constant.
    Source: Field and Welsh (2007), Bootstrapping clustered data.
    """
    ranks = rankdata(columns.reshape(-1, columns.shape[-1]), axis=0).reshape(columns.shape)
    ranks = (ranks - ranks.mean((0, 1))) / ranks.shape[0] / ranks.shape[1]
    moments = np.concatenate([ranks[..., None] * ranks[..., None, :], ranks[..., None]], -1).mean(1)  # [group, v, v+1]
    return _correlations(moments.mean(0)), _correlations(bootstrap_means(moments, draws, seed))


def _correlations(moments: np.ndarray) -> np.ndarray:
    products, means = moments[..., :-1], moments[..., -1]
    covariance = products - means[..., None] * means[..., None, :]
    spread = np.sqrt(np.maximum(np.diagonal(covariance, axis1=-2, axis2=-1), 0))
    size = spread[..., None] * spread[..., None, :]
    return np.divide(covariance, size, out=np.full_like(size, np.nan), where=size > 1e-15)


def partial(matrix: np.ndarray, a: int, b: int, given: int) -> np.ndarray:
    """Return the correlation of a and b at equal `given`, from a matrix of correlations [.., v, v]; NaN where one of
    them is `given` itself, up to its order.

    (r_ab - r_ag r_bg) / sqrt((1 - r_ag^2)(1 - r_bg^2)). Source: Fisher (1924), The distribution of the partial
    correlation coefficient.
    """
    ab, ag, bg = matrix[..., a, b], matrix[..., a, given], matrix[..., b, given]
    left = (1 - ag**2) * (1 - bg**2)
    size = np.sqrt(np.maximum(left, 0))
    return np.divide(ab - ag * bg, size, out=np.full_like(size, np.nan), where=left > 1e-12)


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Return the (1 -+ level) / 2 quantiles over the first axis; NaN draws are left out."""
    if np.isnan(draws).all():
        return np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def median_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Return (low, median, high) of values [n] without NaN: order statistics that hold the median with at least
    `level`, whatever the distribution (all of the range where n is too small for that). Infinite values are ranked.

    The number of values below the median is binomial (n, 1/2). Three NaN where nothing is left.
    Source: David and Nagaraja (2003), Order statistics, section 7.1.
    """
    x = np.sort(np.asarray(values, float))
    x = x[~np.isnan(x)]
    if not len(x):
        return (float("nan"),) * 3  # type: ignore[return-value]
    below = max(int(binom.ppf((1 - level) / 2, len(x), 0.5)), 1)  # P(fewer than `below` lie under it) <= (1-level)/2
    ends = x[below - 1], x[len(x) - below]
    middle = x[(len(x) - 1) // 2], x[len(x) // 2]
    mid = middle[0] if middle[0] == middle[1] else (middle[0] + middle[1]) / 2  # inf - inf never
    return float(ends[0]), float(mid), float(ends[1])


def half_widths(n: int, at_once: int = 1, level: float = LEVEL) -> float:
    """Return how many standard errors of a mean over n an interval reaches, of `at_once` means together.

    Student's t with Bonferroni's correction; NaN for one.
    """
    return float(stdtrit(n - 1, 1 - (1 - level) / 2 / at_once)) if n > 1 else float("nan")


def difference(
    a: float, error_a: float, n_a: int, b: float, error_b: float, n_b: int, level: float = LEVEL
) -> tuple[float, float]:
    """Return Welch's t interval of a - b, two independent estimates with standard errors over n_a and n_b samples.

    Freedom: (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1)), v the squared errors. Both errors 0: no width.
    Source: Welch (1947), The generalization of Student's problem when several population variances are involved.
    """
    v_a, v_b = error_a**2, error_b**2
    if v_a + v_b == 0:
        return a - b, a - b
    freedom = (v_a + v_b) ** 2 / (v_a**2 / (n_a - 1) + v_b**2 / (n_b - 1))
    reach = float(stdtrit(freedom, (1 + level) / 2)) * (v_a + v_b) ** 0.5
    return a - b - reach, a - b + reach
