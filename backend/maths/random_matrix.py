"""What the singular values of a weight matrix are beside noise, and how heavy their tail is.

A matrix [n, m], n >= m, of independent entries with variance s^2 has squared singular values / n in the
Marchenko-Pastur bulk s^2 [(1 - sqrt(q))^2, (1 + sqrt(q))^2], q = m / n; what stands above is no such noise.
Source: Marchenko and Pastur (1967); Bai and Silverstein (2010), Spectral Analysis of Large Dimensional Random Matrices,
section 3; Martin and Mahoney (2021), Implicit self-regularization in deep neural networks; Clauset, Shalizi and Newman
(2009), Power-law distributions in empirical data, section 3 (exponent, choice of x_min).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tail:
    """A power law p(x) ~ x^-exponent for x >= start, from `n` values; `distance` is Kolmogorov and Smirnov's."""

    exponent: float
    error: float
    start: float
    n: int
    distance: float


def edges(n: int, m: int, variance: float) -> tuple[float, float]:
    """Return the bulk's ends of squared singular values / max(n, m) for entries with this variance."""
    q = min(n, m) / max(n, m)
    return variance * (1 - q**0.5) ** 2, variance * (1 + q**0.5) ** 2


def density(x: np.ndarray, n: int, m: int, variance: float) -> np.ndarray:
    """Return the Marchenko-Pastur density at x (squared singular values / max(n, m)); integrates to 1."""
    low, high = edges(n, m, variance)
    q = min(n, m) / max(n, m)
    inside = np.clip((high - x) * (x - low), 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(inside > 0, np.sqrt(inside) / (2 * np.pi * q * variance * x), 0.0)


def gaussian_singular(n: int, m: int, dice: np.random.Generator, through: int = 0) -> np.ndarray:
    """Draw the singular values of a matrix [n, m] of standard normal entries, falling; sum of squares about n m.

    With `through` = r those of a product [n, r] [r, m] of two such matrices, min(n, m, r) of them that are not 0. Drawn
    from the triangles of their QR decompositions (chi on the diagonal, normal beside it): exact, whatever n.
    Source: Bartlett (1933), On the theory of statistical regression.
    """
    if not through:
        return np.linalg.svd(_triangle(max(n, m), min(n, m), dice), compute_uv=False)
    left, right = (_triangle(side, through, dice) for side in (n, m))
    return np.linalg.svd(left @ right.T, compute_uv=False)[: min(n, m, through)]


def _triangle(n: int, m: int, dice: np.random.Generator) -> np.ndarray:
    if n < m:
        return dice.standard_normal((n, m))
    found = np.triu(dice.standard_normal((m, m)), 1)
    found[np.diag_indices(m)] = np.sqrt(dice.chisquare(n - np.arange(m)))
    return found


def noise_variance(squared: np.ndarray, n: int, m: int) -> float:
    """Estimate the variance of the entries from squared singular values / max(n, m): their median over that of a
    bulk with variance 1. A few large values do not move it."""
    return float(np.median(squared) / _unit_median(n, m))


def _unit_median(n: int, m: int) -> float:
    low, high = edges(n, m, 1.0)
    grid = low + (high - low) * (1 - np.cos(np.linspace(0, np.pi, 4001))) / 2  # dense at the ends
    height = density(grid, n, m, 1.0)
    mass = np.concatenate([[0], np.cumsum(np.diff(grid) * (height[1:] + height[:-1]) / 2)])
    return float(np.interp(mass[-1] / 2, mass, grid))


def power_tail(values: np.ndarray, least: int = 10) -> Tail:
    """Fit a power law to the tail of positive values: start where the fit lies closest to the values.

    exponent = 1 + k / sum log(x_i / start), with error (exponent - 1) / sqrt(k). Every sample has such a fit, also
    where no power law is: judge it beside that of a null.
    Raises ValueError for fewer than `least` positive values.
    """
    x = np.sort(np.asarray(values, float))
    x = x[x > 0]
    if len(x) < least:
        raise ValueError(f"{len(x)} positive values: at least {least} are needed")
    tails = [_tail(x[i:]) for i in range(len(x) - least + 1)]
    return min(tails, key=lambda t: t.distance)


def _tail(x: np.ndarray) -> Tail:
    k, total = len(x), np.log(x / x[0]).sum()
    if total == 0:
        return Tail(np.inf, np.inf, float(x[0]), k, np.inf)
    slope = k / total
    model = 1 - (x / x[0]) ** -slope
    distance = max(np.abs(np.arange(1, k + 1) / k - model).max(), np.abs(np.arange(k) / k - model).max())
    return Tail(1 + slope, slope / k**0.5, float(x[0]), k, float(distance))


def effective_rank(values: np.ndarray) -> float:
    """Return exp(entropy) of singular values as shares: RankMe, or the effective rank; NaN where all are 0.

    Source: Roy and Vetterli (2007), The effective rank; Garrido et al. (2023), RankMe.
    """
    total = values.sum()
    if total == 0:
        return float("nan")
    share = values[values > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))
