"""Where within a window the change lies, and how wide it is: the likelihood profile over centres and widths.

For the carrying channels, of each channel c with RSS_c(centre, width) of quadratic + ramp,
    D(centre, width) = sum_c n_c ln(RSS_c / RSS_c at the best) (1 - phi_c)/(1 + phi_c).
The interval of the centre is where min over widths of D stays below DROP, that of the width likewise (a profile
likelihood; the factor is for AR(1) noise as in `glr`). DROP is the chi-square quantile of 90 % times a factor, because
a change point is no regular parameter; the coverage is measured in tests and in benchmarks/results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.maths import glr
from backend.maths.glr import Array

#: chi-square(1) at 90 %, times 2
DROP = 5.4
WIDTHS = np.array([0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.25, 1.5])
#: each width stands for all up to halfway to its neighbours
EDGES = np.concatenate([[0.0], (WIDTHS[1:] + WIDTHS[:-1]) / 2, [2.0]])
#: centres between two cells
FINE = 3


@dataclass(frozen=True)
class Place:
    """A change: centre and its interval, width and its interval (ln-step), the jump of each carrying channel."""

    centre: float
    low: float
    high: float
    width: float
    width_low: float
    width_high: float
    jumps: Array


def locate(u: Array, values: Array, at: int, start: int, carriers: list[int]) -> Place | None:
    """Return the change in the window that ends at cell `at`; None where it holds too few cells."""
    _, near, inside = glr.windows(u, np.array([at]), start)
    near = near[0][inside[0] > 0]
    n = len(near)
    if n < glr.LEAST or not carriers:
        return None
    y = values[at - n + 1 : at + 1, carriers]
    basis = glr.null_basis(near[None], np.ones((1, n)))
    r0 = glr.residual(basis, (y - y[-1])[None])[0]
    centres = _between(near[2 : n - 1])
    grid = np.stack(np.meshgrid(centres, WIDTHS, indexing="ij"), -1).reshape(-1, 2)
    shape = glr.residual(basis, glr.ramp(near[:, None], grid[:, 0], grid[:, 1])[None])[0]
    size = np.sqrt((shape**2).sum(0))
    unit = shape * np.where(size > 0.02, 1 / np.maximum(size, 0.02), 0.0)
    part = unit.T @ r0
    floor = n * (glr.least_noise(values)[at, carriers]) ** 2 + 1e-300
    rss = np.maximum((r0**2).sum(0) - part**2, floor)
    # the best is chosen twice: the weights need the residuals at the best
    best = int(np.log(rss).sum(1).argmin())
    weight = _long_run(r0 - unit[:, best, None] * part[best], n)
    cost = (np.log(rss) * weight).sum(1)
    best = int(cost.argmin())
    profile = (n * (cost - cost[best])).reshape(len(centres), len(WIDTHS))
    return _place(centres, grid[best], profile, part[best] / np.maximum(size[best], 0.02), near)


def _between(u: Array) -> Array:
    """Return u with FINE - 1 points between each two."""
    return np.interp(np.arange(0, len(u) - 1 + 1e-9, 1 / FINE), np.arange(len(u)), u)


def _long_run(r1: Array, n: int) -> Array:
    phi = np.clip((r1[1:] * r1[:-1]).sum(0) / np.maximum((r1**2).sum(0), 1e-300) + 4 / n, 0.0, 0.95)
    return (1 - phi) / (1 + phi)


def _place(centres: Array, best: Array, profile: Array, jumps: Array, near: Array) -> Place:
    where = np.flatnonzero(profile.min(1) <= DROP)
    wide = np.flatnonzero(profile.min(0) <= DROP)
    half = np.diff(near)[np.searchsorted(near, [centres[where[0]], centres[where[-1]]]).clip(1, len(near) - 1) - 1] / 2
    return Place(float(best[0]), float(centres[where[0]] - half[0]), float(centres[where[-1]] + half[1]),
                 float(best[1]), float(EDGES[wide[0]]), float(EDGES[wide[-1] + 1]), jumps)  # fmt: skip
