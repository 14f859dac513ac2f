"""The detrended derivative: a sharp jump shows one or two points after it, before any window has filled.

At each cell a line through the PAST cells before it (slope: median of those between cells half of PAST apart; level:
the median of what is left, so that one odd cell does not tilt it) says what comes next; the error of the two newest
cells from the line that ends before both, in units of the median absolute one-step error of the last SCALE cells, is
the score: the smaller of the two where both lie on one side, else 0. A single spike thus scores nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from backend.maths.glr import least_noise

Array = NDArray[np.float64]
PAST, SCALE = 8, 24


def jump_scores(u: Array, values: Array) -> tuple[Array, Array]:
    """Return scores (noise sd) and sizes (the channel's unit), both [cell, channel], of values [cell, channel].

    Both are 0 before PAST + SCALE/2 + 2 cells.
    """
    n = len(u)
    scores, sizes = np.zeros_like(values), np.zeros_like(values)
    if n < PAST + SCALE // 2 + 2:
        return scores, sizes
    one, two = _errors(u, values, 1), _errors(u, values, 2)
    size = np.full((n + SCALE, values.shape[1]), np.nan)
    size[SCALE + PAST :] = np.abs(one[PAST:])
    past = sliding_window_view(size, SCALE, axis=0)[: n - 1]  # of cell t: the errors of t - SCALE .. t - 1
    scale = np.full_like(values, np.inf)
    ready = np.arange(PAST + SCALE // 2 + 2, n)
    scale[ready] = 1.4826 * np.nanmedian(past[ready - 1], axis=-1)
    first, second = two[ready - 1, :, 0], two[ready - 1, :, 1]
    same = np.where(first * second > 0, np.minimum(np.abs(first), np.abs(second)), 0.0)
    scores[ready] = same / np.maximum(scale[ready], least_noise(values)[ready] + 1e-300)
    sizes[ready] = same
    return scores, sizes


def _errors(u: Array, values: Array, ahead: int) -> Array:
    """Return, where ahead is 1, [cell, channel]: the value minus the line through the PAST cells before.

    Where it is 2: [cell, channel, 2], of the cell and the next one, from the same line.
    """
    n = len(u)
    half, x = PAST // 2, sliding_window_view(u, PAST)
    y = sliding_window_view(values, PAST, axis=0)  # [line, channel, PAST]
    slope = np.median((y[..., half:] - y[..., :half]) / (x[:, None, half:] - x[:, None, :half]), axis=-1)
    level = np.median(y - slope[..., None] * x[:, None, :], axis=-1)
    found = np.zeros((n, values.shape[1], 2))
    for k in range(ahead):
        to = np.arange(PAST + k, n)
        line = to - PAST - k
        found[to - k, :, k] = values[to] - level[line] - slope[line] * u[to, None]
    return found if ahead == 2 else found[..., 0]
