"""The windowed generalised likelihood ratio of a step or ramp against a local quadratic, for many channels at once.

At cell t the window is the last WINDOW cells. Null: y = quadratic in u + noise. Alternative: + a * ramp((u - c)/w),
for centres c and widths w of a small bank (w = 0 is a step). With r0 the null's residuals and q the unit residual of
a template, the drop of the residual sum of squares is (q . r0)^2. One centre and width is chosen for all channels (the
mean of the largest TOP shares drop/RSS0); then for each channel
    F = drop / (RSS1 / dof) * (1 - phi)/(1 + phi),    score = dof * ln(1 + F/dof),
phi the lag-1 autocorrelation of the alternative's residuals (at least 0): the factor is the long-run over the
short-run variance of AR(1) noise, and it also discounts a smooth curve that no quadratic fits. The logarithm makes
short windows comparable to long ones. The statistic of a cell is the mean of the TOP largest scores.
Scale- and quadratic-invariant by construction. Cost: WINDOW * len(bank) * channels per cell.

Source: Willsky and Jones (1976), A generalized likelihood ratio approach to the detection and estimation of jumps;
Lai (1995), Sequential changepoint detection, windowed GLR; long-run variance: Tang and MacNeill (1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
WINDOW, LEAST, TOP = 40, 12, 3
#: cells after the centre, and widths in ln-step
AFTER = (2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 26)
WIDTHS = (0.0, 0.1, 0.25, 0.5)
#: cells that must lie before the centre
BEFORE = 6


@dataclass(frozen=True)
class Scan:
    """What the GLR finds at cells `at` [t]: `total` [t], `scores` and `jumps` (height of the fitted ramp, in the
    channel's unit) [t, channel], the best `centre` and `width` [t]."""

    at: NDArray[np.int64]
    total: Array
    scores: Array
    jumps: Array
    centre: Array
    width: Array


def ramp(u: Array, centre: Array | float, width: Array | float) -> Array:
    """Return 0 before, 1 after, linear over `width` around `centre`; a step where width is 0."""
    return np.clip((u - centre) / np.maximum(width, 1e-9) + 0.5, 0.0, 1.0)


def null_basis(u: Array, inside: Array) -> Array:
    """Return an orthonormal basis [t, WINDOW, 3] of the quadratics in u [t, WINDOW], zero outside the window."""
    span = np.maximum(u[:, -1:] - u.min(1, keepdims=True), 1e-12)
    x = (u - u[:, -1:]) / span
    return np.linalg.qr(np.stack([np.ones_like(x), x, x * x], -1) * inside[..., None])[0]


def residual(basis: Array, y: Array) -> Array:
    """Return y [t, WINDOW, k] minus its projection on the basis."""
    return y - basis @ (basis.transpose(0, 2, 1) @ y)


def bank(u: Array, inside: Array, basis: Array) -> tuple[Array, Array, Array]:
    """Return unit residuals of the templates [t, WINDOW, k], their centres [t, k] and widths [k].

    A template that has too few cells before it, or that a quadratic all but fits, is zero.
    """
    after = [a for a in AFTER if a <= u.shape[1] - BEFORE]
    near = np.stack([(u[:, -a] + u[:, -a - 1]) / 2 for a in after], 1)
    centres, widths = np.repeat(near, len(WIDTHS), 1), np.tile(WIDTHS, len(after))
    shape = ramp(u[:, :, None], centres[:, None, :], widths) * inside[..., None]
    left = residual(basis, shape)
    size = np.sqrt((left * left).sum(1))
    room = inside.sum(1)[:, None] - np.repeat(after, len(WIDTHS)) >= BEFORE
    good = room & (size > 0.02)
    return left * (good / np.where(good, size, 1.0))[:, None, :], centres, widths


def windows(u: Array, at: NDArray[np.int64], start: int) -> tuple[NDArray[np.int64], Array, Array]:
    """Return cell numbers, u and a 0/1 mask [t, WINDOW] of the windows that end at `at`, from `start` on."""
    number = at[:, None] + np.arange(1 - WINDOW, 1)
    inside = (number >= start).astype(float)
    number = np.maximum(number, start)
    return number, u[number], inside


def scan(u: Array, values: Array, start: int = 0, top: int = TOP) -> Scan:
    """Return the statistic at every cell from the LEAST-th after `start` on; `values` is [cell, channel]."""
    at = np.arange(start + LEAST - 1, len(u))
    number, near, inside = windows(u, at, start)
    basis = null_basis(near, inside)
    templates, centres, widths = bank(near, inside, basis)
    y = (values[number] - values[at][:, None, :]) * inside[..., None]
    r0 = residual(basis, y)
    drop = (templates.transpose(0, 2, 1) @ r0) ** 2
    rss0 = np.maximum((r0 * r0).sum(1), 1e-300)
    k = most(drop / rss0[:, None, :], top).argmax(1)
    row = np.arange(len(at))
    best = templates[row, :, k]
    scores = _scores(r0, best, drop[row, k], inside, least_noise(values)[at])
    size = (best * ramp(near, centres[row, k][:, None], widths[k][:, None])).sum(1)  # of the ramp's own residual
    heights = np.einsum("tw,twc->tc", best, r0) / np.where(size > 0, size, np.inf)[:, None]
    return Scan(at, most(scores, top), scores, heights, centres[row, k], widths[k])


def _scores(r0: Array, template: Array, drop: Array, inside: Array, floor: Array) -> Array:
    r1 = r0 - template[:, :, None] * np.einsum("tw,twc->tc", template, r0)[:, None, :]
    n = inside.sum(1)[:, None]
    rss1 = (r1 * r1).sum(1)
    phi = np.clip((r1[:, 1:] * r1[:, :-1]).sum(1) / np.maximum(rss1, 1e-300) + 4 / n, 0.0, 0.95)
    f = drop / (np.maximum(rss1, n * floor**2) / (n - 4) + 1e-300) * (1 - phi) / (1 + phi)
    return (n - 4) * np.log1p(f / (n - 4))


def least_noise(values: Array) -> Array:
    """Return [cell, channel]: the noise that is always assumed, from the cells so far.

    Rounding: 1e-7 of the largest number. And of a channel that stands still at a quarter of the cells or more (an
    accuracy over few rows) half of its smallest move: one row more or less.
    """
    moves = np.abs(np.diff(values, axis=0))
    moves = np.concatenate([np.full_like(values[:1], np.inf), moves])
    still = np.cumsum(moves == 0, axis=0) >= np.arange(len(values))[:, None] / 4
    quantum = np.minimum.accumulate(np.where(moves > 0, moves, np.inf), axis=0)
    size = np.maximum.accumulate(np.abs(values), axis=0)
    return np.maximum(np.where(still & np.isfinite(quantum), quantum / 2, 0.0), 1e-7 * size)


def most(scores: Array, top: int = TOP) -> Array:
    """Return the mean of the `top` largest along the last axis (of all where there are fewer)."""
    m = min(top, scores.shape[-1])
    return scores.mean(-1) if m == scores.shape[-1] else np.partition(scores, -m, axis=-1)[..., -m:].mean(-1)
