"""The task with a known answer: y ~ N(0, v_i), v log-spaced from .25 to 1, and x = y + N(0, NOISE^2).

The posterior of y given x and a noised y is Gaussian with one over the sum of three precisions as its variance, see
`annealing.gaussian_variance`. No torch.
"""

from __future__ import annotations

import numpy as np

NOISE = 0.25  # standard deviation of what x adds to y


def prior(side: int) -> np.ndarray:
    """Return the variances [side^2] of y."""
    return np.geomspace(0.25, 1.0, side * side)


def posterior_variance(side: int) -> np.ndarray:
    """Return Var[y | x] [side^2]: the squared error per entry of the best answer there is."""
    return 1 / (1 / prior(side) + 1 / NOISE**2)
