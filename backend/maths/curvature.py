"""The spectrum of a symmetric operator H [n, n] that is known by its products with vectors only.

`extreme`: eigenvalues at both ends by the Lanczos method. Every new vector is made orthogonal to all before, twice:
without that, converged eigenvalues come again and again (ghosts) and no list of eigenvalues can be believed. It stops
where the Ritz residuals |H y - theta y| = beta_m |s_m| of all that is asked for are small; a residual bounds the error
of its eigenvalue from above (and its square over the gap does, too). To it is added by how much the products
themselves are off, seen in what an exactly symmetric H leaves at zero: in float32 that can be far more than rounding of
the result, as where a gradient is a small difference of large numbers.
`quadrature`: the spectral density by stochastic Lanczos quadrature. From a random unit vector v, m steps give nodes
theta_i and weights s_1i^2 with sum_i w_i f(theta_i) = v'f(H)v exactly for polynomials up to degree 2 m - 1; the mean
over probes v estimates tr f(H) / n.

Memory: m vectors of n numbers. Cost: one product a step and m^2 n multiplications to orthogonalise.
Source: Golub and Van Loan (2013), Matrix Computations, section 10.1 to 10.3; Parlett (1998), The Symmetric Eigenvalue
Problem, section 13 (residuals); Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos
quadrature; Ghorbani, Krishnan and Xiao (2019), An investigation into neural net optimization via Hessian eigenvalue
density; Hutchinson (1990) for the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

#: H v for a vector v [n], in its dtype and on its device
Product = Callable[[Tensor], Tensor]
LOOK_EVERY = 4  # steps between two looks at the residuals: each is an eigenproblem of size m
BREAKDOWN = 64  # times the rounding of H's size: what is shorter is rounding, so the space found is invariant


@dataclass
class Krylov:
    """m steps of the Lanczos method: basis [m, n], T's diagonal `alpha` [m] and side `beta` [m - 1], and what is left.

    `rest` is the vector orthogonal to the basis that the next step begins with, `left` its length. `noise` is the
    largest part of a product along basis vectors where an exactly symmetric H has none: the rounding of the products.
    """

    basis: Tensor
    alpha: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    rest: Tensor = field(default_factory=lambda: torch.empty(0))
    left: float = 0.0
    size: float = 0.0
    noise: float = 0.0

    @property
    def steps(self) -> int:
        """How many products were made."""
        return len(self.alpha)

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (theta [m] ascending, their vectors in the basis [m, m])."""
        if self.steps == 1:
            return np.array(self.alpha), np.ones((1, 1))
        return eigh_tridiagonal(np.array(self.alpha), np.array(self.beta))


@dataclass(frozen=True)
class Ends:
    """The eigenvalues at both ends: `low` ascending [k], `high` descending [k], with the residual of each.

    `vectors` are those of `high`, then of `low`, [2 k, n]. `converged`: the residuals asked for are within tolerance.
    """

    high: np.ndarray
    low: np.ndarray
    high_residual: np.ndarray
    low_residual: np.ndarray
    vectors: Tensor
    n_matvecs: int
    converged: bool


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights [probe, m] of every probe; unused places hold weight 0.

    `trace_samples` and `square_samples` [probe] have the means tr H and tr H^2.
    """

    nodes: np.ndarray
    weights: np.ndarray
    n: int
    n_matvecs: int
    trace_samples: np.ndarray
    square_samples: np.ndarray

    def trace(self) -> tuple[float, float]:
        """Return (estimate of tr H, its standard error over probes; NaN for one probe)."""
        return _estimate(self.trace_samples)

    def participation_ratio(self) -> float:
        """Return (tr H)^2 / tr H^2: how many equal eigenvalues would have these moments; NaN for H = 0."""
        squares = float(self.square_samples.mean())
        return float(self.trace_samples.mean()) ** 2 / squares if squares else float("nan")

    def participation_ratio_error(self) -> float:
        """Return the standard error of `participation_ratio` by the jackknife over probes; NaN for one probe."""
        m, traces, squares = len(self.trace_samples), self.trace_samples, self.square_samples
        if m < 2 or not squares.any():
            return float("nan")
        left = ((traces.sum() - traces) / (m - 1)) ** 2 / ((squares.sum() - squares) / (m - 1))
        return float(np.sqrt((m - 1) / m * ((left - left.mean()) ** 2).sum()))

    def density(self, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (density on the grid, its standard error over probes), smoothed by a Gaussian of standard deviation
        `width`; the whole line integrates to 1. Units: one over that of H."""
        gap = (grid[None, None, :] - self.nodes[..., None]) / width
        each = (self.weights[..., None] * np.exp(-(gap**2) / 2)).sum(1) / (width * np.sqrt(2 * np.pi))
        error = each.std(0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.full(len(grid), np.nan)
        return each.mean(0), error


def _estimate(samples: np.ndarray) -> tuple[float, float]:
    error = samples.std(ddof=1) / np.sqrt(len(samples)) if len(samples) > 1 else np.nan
    return float(samples.mean()), float(error)


def extreme(
    product: Product, n: int, k: int, tol: float = 1e-6, most: int = 0, seed: int = 0, like: Tensor | None = None,
    said: Callable[[int], None] = lambda step: None, both: bool = True,
) -> Ends:  # fmt: skip
    """Return the k largest and the k smallest eigenvalues of H (algebraically), with residuals.

    Args:
        product: H v; n: length of v; k: eigenvalues at each end, cut to n // 2 (1 where n is 1).
        tol: residual, relative to the largest |theta|, at which an eigenvalue counts as found.
        most: products at most; 0: n, or 20 k + 100 where that is less. What is then not found keeps its residual.
        seed: of the start; like: a tensor whose dtype and device the vectors take (float64 on the CPU).
        said: hears the number of products, and may raise to stop.
        both: wait for both ends; else for the largest only (the smallest are returned with what residual they have).
    Multiple eigenvalues are found where the invariant space of the start is exhausted (a fresh vector is drawn);
    where it is not, a multiple eigenvalue may be counted once: one start sees one vector of its space.
    """
    k, most = max(1, min(k, n // 2)), min(n, most or 20 * k + 100)
    dice = torch.Generator().manual_seed(seed)
    space = begun(_random(n, dice, like), most)
    while True:
        step(product, space, dice)
        said(space.steps)
        enough = space.steps >= min(n, 2 * k)
        if space.steps >= most or (enough and space.steps % LOOK_EVERY == 0 and _found(space, k, tol, both)):
            return _ends(space, k, tol, both)


def quadrature(
    product: Product, n: int, probes: int, steps: int, seed: int = 0, like: Tensor | None = None,
    said: Callable[[int], None] = lambda done: None,
) -> Quadrature:  # fmt: skip
    """Return the stochastic Lanczos quadrature of H from `probes` Rademacher vectors, `steps` products each at most.

    A probe whose Krylov space is exhausted before (few distinct eigenvalues) stops there: its rule is then exact.
    """
    steps = min(steps, n)
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    traces, squares, done = np.empty(probes), np.empty(probes), 0
    dice = torch.Generator().manual_seed(seed)
    for probe in range(probes):
        signs = torch.randint(0, 2, (n,), generator=dice) * 2 - 1
        space = begun(_as(signs, like) / n**0.5, steps)
        while space.steps < steps and not _exhausted(space):
            step(product, space, None)
            said(done + space.steps)
        theta, vectors = space.ritz()
        nodes[probe, : space.steps], weights[probe, : space.steps] = theta, vectors[0] ** 2
        done += space.steps
        traces[probe] = n * space.alpha[0]
        squares[probe] = n * float((vectors[0] ** 2 * theta**2).sum())
    return Quadrature(nodes, weights, n, done, traces, squares)


# ---------------------------------------------------------------- the steps


def begun(start: Tensor, most: int) -> Krylov:
    """Return the Krylov space of a start, with room for `most` vectors."""
    return Krylov(start.new_empty((most, len(start))), rest=start, left=float(start.norm()))


def step(product: Product, space: Krylov, dice: torch.Generator | None) -> None:
    """Make one product and add it to the space; an exhausted space goes on with a fresh vector from `dice`."""
    m, beta = space.steps, space.left
    if m and _exhausted(space):
        if dice is None:
            raise ValueError("the space is exhausted")
        fresh = _orthogonal(_random(space.basis.shape[1], dice, space.basis), space.basis[:m])
        space.rest, beta = fresh, 0.0  # T falls into blocks here
    vector = space.rest / space.rest.norm()
    space.basis[m] = vector
    if m:
        space.beta.append(beta)
    out = product(vector)
    space.alpha.append(float(out @ vector))
    space.size = max(space.size, float(out.norm()))
    along = space.basis[: m + 1] @ out
    space.noise = max(space.noise, float(along[: max(m - 1, 0)].norm()))
    space.rest = _orthogonal(out, space.basis[: m + 1], along)
    space.left = float(space.rest.norm())


def _exhausted(space: Krylov) -> bool:
    rounding = torch.finfo(space.basis.dtype).eps * BREAKDOWN
    return space.steps > 0 and space.left <= rounding * max(space.size, 1e-300)


def _orthogonal(vector: Tensor, basis: Tensor, along: Tensor | None = None) -> Tensor:
    """Take from a vector what lies in the basis, twice: the first time leaves rounding of the vector's own size.

    `along`: basis @ vector, where it is known.
    """
    vector = vector - basis.T @ (basis @ vector if along is None else along)
    return vector - basis.T @ (basis @ vector)


def _random(n: int, dice: torch.Generator, like: Tensor | None) -> Tensor:
    vector = _as(torch.randn(n, generator=dice, dtype=torch.float64), like)
    return vector / vector.norm()


def _as(vector: Tensor, like: Tensor | None) -> Tensor:
    return vector.double() if like is None else vector.to(like.device, like.dtype)


def _residuals(space: Krylov) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    theta, vectors = space.ritz()
    whole = space.steps == space.basis.shape[1]  # nothing is left but rounding
    return theta, vectors, (0.0 if whole else space.left) * np.abs(vectors[-1])


def _rounding(space: Krylov) -> float:
    """Return how far products may be off: no eigenvalue is known better, whatever its residual."""
    return float(torch.finfo(space.basis.dtype).eps * space.size + space.noise)


def _found(space: Krylov, k: int, tol: float, both: bool) -> bool:
    theta, _, residual = _residuals(space)
    asked = np.concatenate([residual[:k], residual[-k:]]) if both else residual[-k:]
    return bool(asked.max() <= tol * np.abs(theta).max())


def _ends(space: Krylov, k: int, tol: float, both: bool) -> Ends:
    theta, vectors, residual = _residuals(space)
    high, low = np.argsort(-theta)[:k], np.argsort(theta)[:k]
    chosen = torch.as_tensor(vectors[:, np.concatenate([high, low])]).to(space.basis)
    basis = space.basis[: space.steps]
    found = _found(space, k, tol, both)
    residual = residual + _rounding(space)
    return Ends(theta[high], theta[low], residual[high], residual[low], chosen.T @ basis, space.steps, found)
