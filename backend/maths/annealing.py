"""The noise levels of an iterative energy model, and what an ideal one would be.

Level 0 is the sharpest, K - 1 the smoothest.

A solution y0 is noised to y_t = sqrt(abar_k) y0 + sigma_k eps, sigma_k = sqrt(1 - abar_k); the energy's gradient is
trained to be eps, so the ideal one is grad E = (y_t - sqrt(abar) E[y0 | x, y_t]) / sigma. Its derivative is
H_k = (1/sigma)(1 - (abar/sigma^2) Cov[y0 | x, y_t]), since d E[y0 | y_t] / d y_t = (sqrt(abar)/sigma^2) Cov. Hence:
- where x decides y0 (inverse, addition) Cov = 0 and every eigenvalue is exactly 1/sigma_k: what looks like sharpening
  is the schedule;
- tr H tells the error without labels: mean squared error = tr Cov / d = (sigma^2/abar)(1 - sigma tr H / d).

No torch: all are numbers of the schedule.
Source: Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, section 3 and its code
(cosine schedule, steps); Nichol and Dhariwal (2021), Improved DDPM, eq. 17; Efron (2011), Tweedie's formula and
selection bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OFFSET = 0.008  # Nichol and Dhariwal: keeps the first beta from being too small
MOST_BETA = 0.999


@dataclass(frozen=True)
class Schedule:
    """abar [K], sigma [K], step size of inference [K]; index 0 is the sharpest."""

    abar: np.ndarray
    sigma: np.ndarray
    step: np.ndarray

    @property
    def levels(self) -> int:
        """K."""
        return len(self.abar)


def cosine(levels: int = 10) -> Schedule:
    """Return the cosine schedule of `levels` levels: abar(t) = cos^2((t/K + s)/(1 + s) pi/2), beta cut at .999."""
    t = np.linspace(0, 1, levels + 1)
    curve = np.cos((t + OFFSET) / (1 + OFFSET) * np.pi / 2) ** 2
    beta = np.minimum(1 - curve[1:] / curve[:-1], MOST_BETA)
    abar = np.cumprod(1 - beta)
    sigma = np.sqrt(1 - abar)
    return Schedule(abar, sigma, beta / sigma)


def ideal_eigenvalue(abar: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the eigenvalue of H_k along a direction in which y0 given (x, y_t) has this variance; 1/sigma for none."""
    sigma = np.sqrt(1 - abar)
    return (1 - abar / sigma**2 * variance) / sigma


def gaussian_variance(abar: np.ndarray, prior: np.ndarray, noise: float) -> np.ndarray:
    """Return Var[y0 | x, y_t] of y0 ~ N(0, prior), x = y0 + N(0, noise^2): one over the sum of three precisions."""
    return 1 / (1 / prior + 1 / noise**2 + abar / (1 - abar))


def implied_mse(trace: np.ndarray, dims: int, abar: np.ndarray) -> np.ndarray:
    """Return the mean squared error of E[y0 | x, y_t] per entry that tr H tells: (sigma^2/abar)(1 - sigma tr H / d).

    Right for the ideal gradient; of a trained one it says what its curvature claims.
    """
    sigma = np.sqrt(1 - abar)
    return sigma**2 / abar * (1 - sigma * trace / dims)
