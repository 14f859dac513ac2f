"""Training-like curves with and without a planted change, for calibration and for the benchmark of detection.

Two disjoint sets: CALIBRATION families set the thresholds, FRESH ones (other shapes, other noise, other seeds) judge
them. A null has no feature narrower than about one unit of ln-step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Family = Callable[[np.random.Generator, Array], Array]


def steps_of(rng: np.random.Generator, n: int, cadence: str = "") -> Array:
    """Return n whole steps: log-spaced over 2.5 to 5 decades, or every so many steps (`cadence`: log or linear)."""
    if (cadence or rng.choice(["log", "linear"])) == "linear":
        return np.arange(1, n + 1) * int(rng.choice([1, 10, 20, 100]))
    return np.unique(np.round(np.geomspace(1, 10 ** rng.uniform(2.5, 5), n)))


def relative(u: Array) -> Array:
    return (u - u[0]) / max(u[-1] - u[0], 1e-9)


def power_law(rng: np.random.Generator, u: Array) -> Array:
    return np.exp(-rng.uniform(0.05, 0.8) * u)


def exponential_in_u(rng: np.random.Generator, u: Array) -> Array:
    return np.exp(-rng.uniform(1, 6) * relative(u))


def relaxation(rng: np.random.Generator, u: Array) -> Array:
    """exp(-step/tau): in ln-step a drop about 3 wide (Gumbel)."""
    return np.exp(-np.exp(u - rng.uniform(u[0], u[-1])))


def random_curvature(rng: np.random.Generator, u: Array) -> Array:
    """A smooth random function: six cosines of wavelength 6 ln-units and more."""
    waves = 2 * np.pi / rng.uniform(6, 15, 6)
    return sum(rng.normal() * np.cos(w * u + rng.uniform(0, 6.3)) for w in waves) / 2


def plateau(rng: np.random.Generator, u: Array) -> Array:
    """Flat, then a line, the corner rounded over about a unit of ln-step."""
    soft = rng.uniform(0.3, 0.8)
    return -soft * np.logaddexp(0, (u - rng.uniform(u[0], u[-1])) / soft) / 4


def constant(rng: np.random.Generator, u: Array) -> Array:
    return np.zeros_like(u)


def broken_power_law(rng: np.random.Generator, u: Array) -> Array:
    """Two exponents joined smoothly (Caballero et al. 2022, one break)."""
    at, soft = rng.uniform(u[0], u[-1]), rng.uniform(0.4, 1.0)
    return np.exp(-rng.uniform(0.05, 0.4) * u - rng.uniform(0.1, 0.5) * soft * np.logaddexp(0, (u - at) / soft))


def two_relaxations(rng: np.random.Generator, u: Array) -> Array:
    return 0.6 * relaxation(rng, u) + 0.4 * relaxation(rng, u)


def gompertz(rng: np.random.Generator, u: Array) -> Array:
    """A wide saturating rise."""
    return np.exp(-np.exp(-(u - rng.uniform(u[0], u[-1])) / rng.uniform(1.0, 2.0)))


def logarithm(rng: np.random.Generator, u: Array) -> Array:
    return np.log1p(np.exp(u) / 10 ** rng.uniform(0, 3)) / 5


CALIBRATION: dict[str, Family] = {f.__name__: f for f in (
    power_law, exponential_in_u, relaxation, random_curvature, plateau, constant)}  # fmt: skip
FRESH: dict[str, Family] = {f.__name__: f for f in (broken_power_law, two_relaxations, gompertz, logarithm)}


def autoregressive(rng: np.random.Generator, n: int, channels: int, phi: float, tails: bool = False) -> Array:
    """Return AR(1) noise [n, channels] of unit variance; Student t with 5 degrees of freedom where `tails`."""
    from scipy.signal import lfilter

    fresh = rng.standard_t(5, (n + 50, channels)) / np.sqrt(5 / 3) if tails else rng.normal(size=(n + 50, channels))
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], fresh, axis=0)[50:]


def null_run(
    rng: np.random.Generator, n: int, channels: int, families: dict[str, Family], fresh: bool = False, cadence: str = ""
) -> tuple[Array, Array]:
    """Return (steps [n], values [n, channels]) without a transition.

    Each channel has its own amplitude (0.3 to 100 noise sd) and sign, and a third of the runs each: its own family; its
    own curve of one family; one curve for all, as the metrics of one model are alike. Noise is AR(0 to .7), in a third
    of the runs half of it common to all channels. `fresh`: also heavy tails, and noise that shrinks along the run.
    """
    steps = steps_of(rng, n, cadence)
    u, shapes = np.log(steps), list(families.values())
    phi, tails = rng.uniform(0, 0.7), fresh and rng.random() < 0.3
    noise = autoregressive(rng, len(u), channels, phi, tails)
    if rng.random() < 1 / 3:
        noise = np.sqrt(0.5) * (noise + autoregressive(rng, len(u), 1, phi, tails))
    if fresh and rng.random() < 0.3:
        noise *= np.exp(-rng.uniform(0, 1.5) * relative(u))[:, None]
    likeness = rng.integers(3)
    kinds = rng.integers(len(shapes), size=channels) * (likeness == 0) + rng.integers(len(shapes)) * (likeness > 0)
    drawn = [shapes[k](rng, u) for k in (kinds[:1] if likeness == 2 else kinds)]
    trend = np.stack(drawn * (channels if likeness == 2 else 1), 1)
    return steps, trend * 10 ** rng.uniform(-0.5, 2, channels) * rng.choice([-1, 1], channels) + noise
