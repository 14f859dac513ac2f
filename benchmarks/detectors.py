"""The peers of the windowed GLR: each turns one curve into one statistic per point, causal, the larger the odder.

derivative: |dy/du| over the median so far. detrended derivative: as `maths.jumps`. CUSUM (Page 1954) on the residuals
of Holt's (1957) double exponential smoothing, two-sided, drift 1/2 sd. BOCPD (Adams and MacKay 2007) on the same
residuals: probability that the run length fell below ten points, normal-gamma model, hazard 1/200.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from backend.maths import glr, jumps
from backend.maths.logstep import Clock, clocks

Array = np.ndarray
BURN = 14


def derivative(clock: Clock) -> Array:
    """The plain derivative in ln-step against its own median so far."""
    d = np.abs(np.diff(clock.values[:, 0], prepend=clock.values[0, 0]) / np.diff(clock.u, prepend=clock.u[0] - 1))
    usual = np.array([np.median(d[max(1, t - 40) : t]) if t > BURN else np.inf for t in range(len(d))])
    return d / np.maximum(usual, 1e-12)


def detrended_derivative(clock: Clock) -> Array:
    return glr.most(jumps.jump_scores(clock.u, clock.values)[0])


def holt_residuals(y: Array, level_gain: float = 0.4, trend_gain: float = 0.1) -> Array:
    """One-step errors of Holt's smoothing, in units of their median size of late; 0 in the first BURN points."""
    level, trend, left = y[0], 0.0, np.zeros(len(y))
    for t in range(1, len(y)):
        left[t] = y[t] - level - trend
        new = level + trend + level_gain * left[t]
        trend += trend_gain * (new - level - trend)
        level = new
    scale = np.array([1.4826 * np.median(np.abs(left[max(1, t - 40) : t])) if t >= BURN else np.inf
                      for t in range(len(y))])  # fmt: skip
    return left / np.maximum(scale, 1e-12)


def cusum(clock: Clock) -> Array:
    z = np.clip(holt_residuals(clock.values[:, 0]), -20, 20)
    up = down = 0.0
    found = np.zeros(len(z))
    for t, x in enumerate(z):
        up, down = max(0.0, up + x - 0.5), max(0.0, down - x - 0.5)
        found[t] = max(up, down)
    return found


def bocpd(clock: Clock, hazard: float = 1 / 200, recent: int = 10) -> Array:
    """Odds (log) that the last change lies less than `recent` points back, at least two points after it."""
    z = np.clip(holt_residuals(clock.values[:, 0])[BURN:], -20, 20)
    mu, kappa, alpha, beta = np.zeros(1), np.ones(1), np.ones(1), np.ones(1)
    p, found = np.ones(1), np.zeros(len(clock.u))
    for t, x in enumerate(z):
        predicted = _student(x, mu, kappa, alpha, beta)
        p = np.concatenate([[(p * predicted).sum() * hazard], p * predicted * (1 - hazard)])
        p /= max(p.sum(), 1e-300)
        beta = np.concatenate([[1.0], beta + kappa * (x - mu) ** 2 / (2 * (kappa + 1))])
        mu = np.concatenate([[0.0], (kappa * mu + x) / (kappa + 1)])
        kappa, alpha = np.concatenate([[1.0], kappa + 1]), np.concatenate([[1.0], alpha + 0.5])
        if t > recent:
            near = p[2:recent].sum()
            found[BURN + t] = max(np.log(near / max(1 - near, 1e-12) + 1e-12) + 8, 0.0)
    return found


def _student(x: float, mu: Array, kappa: Array, alpha: Array, beta: Array) -> Array:
    scale = beta * (kappa + 1) / (alpha * kappa)
    log_p = gammaln(alpha + 0.5) - gammaln(alpha) - 0.5 * np.log(2 * np.pi * alpha * scale)
    return np.exp(log_p - (alpha + 0.5) * np.log1p((x - mu) ** 2 / (2 * alpha * scale)))


def windowed_glr(clock: Clock) -> Array:
    total = np.zeros(len(clock.u))
    found = glr.scan(clock.u, clock.values)
    total[found.at] = found.total
    return total


PEERS = {
    "derivative": derivative, "detrended derivative": detrended_derivative, "CUSUM on Holt residual": cusum,
    "BOCPD on Holt residual": bocpd, "GLR, one channel": windowed_glr,
}  # fmt: skip


def clock_of(steps: Array, values: Array) -> Clock:
    """Return the cells of curves [n, channels]."""
    return clocks({f"c{i:02}": (steps, values[:, i]) for i in range(values.shape[1])})[0]
