"""Offline change points of a whole curve: continuous piecewise-linear segmentation in ln(step), with `ruptures`.

Model: y = continuous, linear in u = ln(step) between knots, plus AR(1) noise. The optimal knots for every number k are
found by dynamic programming on a uniform grid of cells (ruptures' `CostCLinear`, a chord through the points, gives the
candidates), then moved to where a continuous least-squares fit is best. k minimises
    n_eff ln(RSS_k / n) + PENALTY (2 k) ln(n_eff),     n_eff = n (1 - phi)/(1 + phi),
the BIC with the number of independent points that AR(1) noise leaves. A smooth curve bends without having a change, so
polynomials in u up to degree SMOOTH stand for election too (one parameter per degree): where one wins there is no knot.
Naive L2-PELT on a smooth trend with such noise reports 11 changes per run; the rate of this one is in a test.

Source: Bai and Perron (1998) for least-squares breaks; Truong, Oudre, Vayatis (2020), ruptures; Lavielle (1999) for
penalties under dependence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.maths.logstep import Array, clean

CELLS = 96
PENALTY = 2.0
MOST = 6
#: places for a knot per cell
FINE = 4
SMOOTH = 5


@dataclass(frozen=True)
class Segmentation:
    """Knots in steps [k], the slope of each piece per ln-step [k + 1], the fitted curve on (steps, fitted), phi."""

    knots: Array
    slopes: Array
    steps: Array
    fitted: Array
    phi: float


def segment(steps: Array, values: Array, log: bool = False, most: int = MOST) -> Segmentation:
    """Segment one curve; constants and curves of fewer than 12 cells have no knots."""
    u, y = gridded(*clean(steps, values, log))
    if len(u) < 12 or np.ptp(y) == 0:
        return Segmentation(np.array([]), np.zeros(1), np.exp(u), y, 0.0)
    fits = [_fit(u, y, knots) for knots in candidates(y, most, len(u))]
    phi = _phi(y - fits[-1][0])
    effective = max(len(u) * (1 - phi) / (1 + phi), 4.0)
    floor = (1e-9 * np.abs(y).max()) ** 2 + 1e-300
    none: list[float] = []
    smooth = [(_polynomial(u, y, degree), none, np.zeros(1)) for degree in range(2, SMOOTH + 1)]
    free = [2 * len(knots) for _, knots, _ in fits] + list(range(1, SMOOTH))
    costs = [effective * np.log(np.mean((y - fit) ** 2) + floor) + PENALTY * extra * np.log(effective)
             for (fit, _, _), extra in zip(fits + smooth, free, strict=True)]  # fmt: skip
    fitted, knots, slopes = (fits + smooth)[int(np.argmin(costs))]
    return Segmentation(np.exp(np.array(knots)), slopes, np.exp(u), fitted, phi)


def reference_step(steps: Array, values: Array, log: bool = False) -> float | None:
    """Return the offline step of a curve's main transition, or None where the segmentation has no knot.

    It is the centre, in ln-step, of the inner piece that rises (or falls) most beyond what its neighbours' slopes would
    have carried it that way (a neighbour that goes the other way would have carried it nowhere); a plateau between two
    rises moves less than they would have, so it is none. Of a single knot, and where no piece is steeper than its
    neighbours: the knot where the slope changes most.
    """
    found = segment(steps, values, log)
    if not len(found.knots):
        return None
    u, inner = np.log(found.knots), found.slopes[1:-1]
    carried = [np.maximum(np.sign(inner) * near, 0.0) for near in (found.slopes[:-2], found.slopes[2:])]
    excess = (np.abs(inner) - (carried[0] + carried[1]) / 2) * np.diff(u)
    if not (excess > 0).any():
        return float(found.knots[int(np.abs(np.diff(found.slopes)).argmax())])
    best = int(excess.argmax())
    return float(np.exp((u[best] + u[best + 1]) / 2))


def within(step: float, reference: float, share: float = 0.05) -> dict[str, bool]:
    """Say whether a step is within `share` of a reference: `absolute` |ln s - ln r| <= share (5 % in steps);
    `relative` |ln s - ln r| <= share * ln r (5 % of the log-step itself: the laxer reading)."""
    apart = abs(float(np.log(step / reference)))
    return {"absolute": apart <= share, "relative": apart <= share * float(np.log(reference))}


def gridded(steps: Array, values: Array, cells: int = CELLS) -> tuple[Array, Array]:
    """Return (u, mean of the points) of at most `cells` cells of equal width in ln(step); empty ones are left out."""
    if len(steps) < 2:
        return np.log(steps), values
    u = np.log(steps)
    cell = np.minimum(((u - u[0]) / (u[-1] - u[0]) * cells).astype(int), cells - 1)
    n = np.bincount(cell, minlength=cells)
    mean = [np.bincount(cell, x, minlength=cells)[n > 0] / n[n > 0] for x in (u, values)]
    return mean[0], mean[1]


def candidates(y: Array, most: int, n: int) -> list[list[int]]:
    """Return the best knots for 0, 1, ... `most` changes by ruptures' dynamic programming."""
    import ruptures

    search = ruptures.Dynp(model="clinear", min_size=3, jump=2).fit(y[:, None])
    most = min(most, n // 8)
    return [[]] + [[int(b) for b in search.predict(n_bkps=k)[:-1]] for k in range(1, most + 1)]


def _fit(u: Array, y: Array, cells: list[int]) -> tuple[Array, list[float], Array]:
    """Fit a continuous piecewise line, moving each knot, also between cells, to where the fit is best.

    Returns (fit, knots in u, slopes). Starts at these cells; a knot moves up to six cells at a time, and stays two
    cells from the next.
    """
    fine = np.interp(np.arange(FINE * (len(u) - 1) + 1) / FINE, np.arange(len(u)), u)
    knots = [FINE * c for c in cells]
    for step in (FINE, FINE, 1, 1):
        for i, at in enumerate(knots):
            low = (knots[i - 1] if i else 0) + 2 * FINE
            high = (knots[i + 1] if i + 1 < len(knots) else len(fine) - 1) - 2 * FINE
            near = [k for k in range(at - 6 * step, at + 6 * step + 1, step) if low <= k <= high]
            tried = {k: _rss(u, y, fine[[*knots[:i], k, *knots[i + 1 :]]])[0] for k in near}
            knots[i] = min(tried, key=lambda k: tried[k]) if tried else at
    _, fit, coefficients = _rss(u, y, fine[knots])
    return fit, [float(x) for x in fine[knots]], np.cumsum(coefficients[1:])


def _rss(u: Array, y: Array, knots: Array) -> tuple[float, Array, Array]:
    basis = np.stack([np.ones_like(u), u - u[0], *(np.maximum(u - k, 0) for k in knots)], 1)
    coefficients = np.linalg.lstsq(basis, y, rcond=None)[0]
    fit = basis @ coefficients
    return float(((y - fit) ** 2).sum()), fit, coefficients


def _polynomial(u: Array, y: Array, degree: int) -> Array:
    basis = np.polynomial.chebyshev.chebvander(2 * (u - u[0]) / (u[-1] - u[0]) - 1, degree)
    return basis @ np.linalg.lstsq(basis, y, rcond=None)[0]


def _phi(r: Array) -> float:
    return float(np.clip((r[1:] * r[:-1]).sum() / max((r * r).sum(), 1e-300) + 4 / len(r), 0.0, 0.9))
