"""What patching experiments are summed up by: recovered, its interval over prompts, rank correlation, midpoints.

Values have prompts on their last axis; intervals are percentiles of a bootstrap that draws prompts with replacement,
the same prompts in every row, so that rows of one experiment can be compared.
Source: Heimersheim and Nanda (2024), How to use and interpret activation patching (recovered); Efron and Tibshirani
(1993), An Introduction to the Bootstrap, ch. 13 (percentile interval); Sundararajan et al. (2017), Axiomatic
Attribution for Deep Networks (integrated gradients, completeness).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
CHUNK = 512  # rows whose bootstrap is held at once


@dataclass(frozen=True)
class Estimate:
    """A number per row [...], its bootstrap standard error and the ends of its 95 % interval (NaN for one prompt)."""

    value: np.ndarray
    se: np.ndarray
    low: np.ndarray
    high: np.ndarray


def standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over the last axis: std (n - 1) / sqrt(n); NaN for one value."""
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], math.nan)
    return values.std(-1, ddof=1) / math.sqrt(n)


def draw_weights(n: int, draws: int, seed: int) -> np.ndarray:
    """Draw n prompts of n with replacement, `draws` times: weights [draw, prompt] that sum to 1 in each draw."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) / n


def mean_estimate(values: np.ndarray, weights: np.ndarray) -> Estimate:
    """Estimate the mean over prompts.

    Args:
        values: [row, prompt]; weights: [draw, prompt] of `draw_weights`.
    Returns:
        Estimate with arrays [row], in the unit of the values.
    """
    ends = [_ends(block @ weights.T) for block in _blocks(values)]
    return _estimate(values.mean(-1), ends, values.shape[-1])


def recovered(patched: np.ndarray, clean: np.ndarray, corrupted: np.ndarray, weights: np.ndarray) -> Estimate:
    """Estimate (patched - corrupted) / (clean - corrupted), a ratio of means over prompts.

    1 where patching gives the clean metric, 0 where it leaves the corrupted one; not bounded by either. A ratio of
    means, not a mean of ratios: one pair whose prompts hardly differ would swamp the latter. All NaN where
    |mean(clean - corrupted)| is below its standard error, or is 0: there is nothing to recover.

    Args:
        patched: [row, prompt]; clean, corrupted: [prompt], the metric of the same prompts; weights: [draw, prompt].
    Returns:
        Estimate with arrays [row], dimensionless.
    """
    gap, moved = clean - corrupted, patched - corrupted
    if not worth_dividing(gap):
        nothing = np.full(len(patched), math.nan)
        return Estimate(nothing, nothing, nothing, nothing)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of prompts without a gap has no ratio
        ends = [_ends((block @ weights.T) / (weights @ gap)) for block in _blocks(moved)]
    return _estimate(moved.mean(-1) / gap.mean(), ends, len(gap))


def worth_dividing(gap: np.ndarray) -> bool:
    """Say whether |mean(gap)| over prompts is at least its standard error and not 0."""
    return bool(gap.mean() != 0 and not abs(gap.mean()) < standard_error(gap))


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]


def _ends(drawn: np.ndarray) -> np.ndarray:
    """Return (se, low, high) of every row of [row, draw]; a draw without a value is left out."""
    drawn = np.where(np.isfinite(drawn), drawn, math.nan)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return np.stack([np.nanstd(drawn, axis=1, ddof=1), low, high])


def _estimate(value: np.ndarray, ends: list[np.ndarray], n: int) -> Estimate:
    se, low, high = np.concatenate(ends, 1) if ends else np.empty((3, 0))
    if n < 2:
        se = low = high = np.full(len(value), math.nan)
    return Estimate(value, se, low, high)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation: Pearson's of the ranks, ties sharing their mean rank.

    1 for any increasing relation, -1 for a decreasing one. NaN below 3 points or where all of one side tie.
    """
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def midpoints(steps: int) -> list[float]:
    """Return the points (k + 1/2) / steps of the midpoint rule on [0, 1]; each has the weight 1 / steps.

    Exact for a gradient that is linear along the path; the error falls with 1 / steps^2 where it is smooth.
    """
    return [(k + 0.5) / steps for k in range(steps)]
