"""The matrices of rank r in R^{n x m}: their tangent and normal spaces, and curvature along and across.

At Y = U S V' (thin, rank r): P_T(G) = UU'G + GVV' - UU'GVV', P_N(G) = (1 - UU')G(1 - VV'). dim T = r (n + m - r),
dim N = (n - r)(m - r).
The raw ratio |P_N g| / |P_T g| of a gradient is sqrt(dim N / dim T) for white noise: it says nothing without that null.
The ratio by dimension rho = (tr P_N H / dim N) / (tr P_T H / dim T) is 1 for isotropic curvature.
Matrices are flattened by rows: H is [nm, nm].
Source: Vandereycken (2013), Low-rank matrix completion by Riemannian optimization, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spaces:
    """Singular vectors of the points: U [.., n, r], V [.., m, r], and how well the rank is told.

    `gap` [..] is s_r / s_{r+1}: about 1 where the matrix has no such rank (inf where s_{r+1} is 0).
    """

    u: Tensor
    v: Tensor
    gap: Tensor

    @property
    def dims(self) -> tuple[int, int]:
        """(dim T, dim N)."""
        (n, r), m = self.u.shape[-2:], self.v.shape[-2]
        return r * (n + m - r), (n - r) * (m - r)

    def normal(self, matrix: Tensor) -> Tensor:
        """Return P_N of matrices [.., n, m]."""
        rest = matrix - self.u @ (self.u.mT @ matrix)
        return rest - (rest @ self.v) @ self.v.mT

    def tangent(self, matrix: Tensor) -> Tensor:
        """Return P_T of matrices [.., n, m]."""
        return matrix - self.normal(matrix)

    def traces(self, hessian: Tensor) -> tuple[Tensor, Tensor]:
        """Return (tr P_T H, tr P_N H) [..] of a Hessian over matrices [.., nm, nm].

        P_N as a matrix is A kron B with A = 1 - UU', B = 1 - VV', so no basis is needed.
        """
        n, m = self.u.shape[-2], self.v.shape[-2]
        left, right = _complement(self.u), _complement(self.v)
        split = hessian.unflatten(-1, (n, m)).unflatten(-3, (n, m))
        across = torch.einsum("...ijkl,...ki,...lj->...", split, left, right)
        return hessian.diagonal(dim1=-2, dim2=-1).sum(-1) - across, across

    def curvature_ratio(self, hessian: Tensor) -> Tensor:
        """Return rho [..], normal over tangent curvature by dimension; 1 where H is isotropic."""
        along, across = self.traces(hessian)
        return (across / self.dims[1]) / (along / self.dims[0])


def spaces(matrix: Tensor, r: int) -> Spaces:
    """Return the spaces at the best approximation of rank r of matrices [.., n, m].

    Raises ValueError unless 1 <= r < min(n, m): without a normal space there is nothing to compare.
    """
    side = min(matrix.shape[-2:])
    if not 1 <= r < side:
        raise ValueError(f"rank {r} of matrices {tuple(matrix.shape[-2:])}: 1 <= r < {side} is needed")
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return Spaces(u[..., :r], vt[..., :r, :].mT, s[..., r - 1] / s[..., r])


def retracted(matrix: Tensor, r: int) -> Tensor:
    """Return the nearest matrices of rank r (Eckart and Young)."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[..., :r] * s[..., None, :r]) @ vt[..., :r, :]


def noise_ratio(n: int, m: int, r: int) -> float:
    """Return sqrt(dim N / dim T): what |P_N g| / |P_T g| is for white noise (ratio of root mean squares)."""
    return float(((n - r) * (m - r) / (r * (n + m - r))) ** 0.5)


def squared_distance(matrix: Tensor, r: int) -> Tensor:
    """Return the squared distance [..] to the matrices of rank r: the sum of the other squared singular values."""
    return torch.linalg.svdvals(matrix)[..., r:].square().sum(-1)


def _complement(basis: Tensor) -> Tensor:
    return torch.eye(basis.shape[-2], dtype=basis.dtype, device=basis.device) - basis @ basis.mT
