"""Planes through a point of one problem's energy: their directions, energies on a grid, curvature two ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.analyses import _energy, _low_rank
from backend.contract import Energies, Matrices

Tensor = Any  # torch's
STEP = 1e-3  # of the second difference, in float64
MARGIN = 1.15  # around what a plane has to hold


@dataclass(frozen=True)
class Spot:
    """One problem (one row of everything) at one level, in the model's dtype. `path` [K, d]: what inference had after
    each level, in solution units."""

    model: Energies
    problem: Matrices
    path: Tensor
    k: int

    @property
    def root(self) -> float:
        """sqrt(abar): what a solution is scaled by at this level."""
        return float(self.model.schedule.abar[self.k]) ** 0.5

    @property
    def sigma(self) -> float:
        return float(self.model.schedule.sigma[self.k])

    @property
    def noised(self) -> Tensor:
        return _energy.noised(self.model, self.problem, self.k)[0]

    @property
    def noised_and_solution(self) -> Tensor:
        """Return both, scaled to this level: [2, d]."""
        import torch

        return torch.stack([self.noised, self.root * self.problem.y[0]])

    @property
    def answer(self) -> Tensor:
        """The final answer, scaled to this level."""
        return self.root * self.path[0]

    def energies(self, y: Tensor, net: Any = None) -> np.ndarray:
        """Return the energies [m] of y [m, d]."""
        import torch

        x = self.problem.x.to(y.dtype).expand(len(y), -1)
        with torch.no_grad():
            return (net or self.model.net)(x, y, self.model.level(self.k, len(y))).double().cpu().numpy()

    def hessian(self, y: Tensor) -> Tensor:
        """Return d2E/dy2 at y [d] in float64: [d, d]."""
        return _energy.hessian(
            self.model.exact, self.problem.x.double(), y.double()[None], self.model.level(self.k, 1)
        )[0]

    def gradient(self, y: Tensor) -> Tensor:
        return self.model.net.gradient(self.problem.x, y[None], self.model.level(self.k, 1)).detach()[0]


def directions(plane: str, spot: Spot, hessian: Tensor, rank: int) -> Tensor:
    """Return two orthonormal directions [2, d] in float64.

    eigenvectors: of the two largest eigenvalues; tangent-normal: the noise's parts along and across the matrices of
    rank r at the solution, so that both the solution and its noised version lie in the plane; trajectory: the principal
    components of the path.
    """
    import torch

    if plane == "eigenvectors":
        return torch.linalg.eigh(hessian).eigenvectors[:, -2:].T.flip(0)
    if plane == "trajectory":
        path = spot.path.double()
        return torch.linalg.svd(path - path.mean(0), full_matrices=False).Vh[:2]
    return _along_and_across(spot.problem, rank)


def _along_and_across(problem: Matrices, rank: int) -> Tensor:
    import torch

    from backend.maths import low_rank

    y, noise = (_low_rank.as_matrices(t[0].double(), problem.side) for t in (problem.y, problem.noise))
    spaces = low_rank.spaces(y, rank)
    both = torch.stack([spaces.tangent(noise), spaces.normal(noise)]).flatten(1)
    return both / both.norm(dim=1, keepdim=True)


def random_directions(like: Tensor, seed: int) -> Tensor:
    """Return two random orthonormal directions [2, d]."""
    import torch

    drawn = torch.randn(like.shape[::-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.to(like.device)


def grid(spot: Spot, centre: Tensor, plane: Tensor, at: np.ndarray) -> np.ndarray:
    """Return energies [row, column] at centre + column u + row v, for `at` [n] along both."""
    import torch

    ticks = torch.as_tensor(at, device=centre.device)
    first, second = ticks[None, :, None] * plane[0], ticks[:, None, None] * plane[1]
    points = (centre.double() + first + second).flatten(0, 1).to(centre.dtype)
    return spot.energies(points).reshape(len(at), len(at))


def bends(spot: Spot, centre: Tensor, plane: Tensor, hessian: Tensor) -> list[tuple[float, float]]:
    """Return (second difference, u'Hu) of each direction, in float64."""
    import torch

    found = []
    for u in plane:
        y = centre.double() + STEP * u * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64, device=u.device)
        before, here, after = spot.energies(y, spot.model.exact)
        found.append(((before - 2 * here + after) / STEP**2, float(u @ hessian @ u)))
    return found


def projected(y: Tensor, centre: Tensor, plane: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates [m, 2] of points y [m, d] in the plane, and their distances [m] from it."""
    away = y.double() - centre.double()
    inside = away @ plane.T
    return inside.cpu().numpy(), (away - inside @ plane).norm(dim=1).cpu().numpy()


def reach(half: float, coordinates: np.ndarray) -> float:
    """Return half the side of a square that has this half or more, and holds points with these coordinates [m, 2]."""
    return max(half, MARGIN * float(np.abs(coordinates).max()))
