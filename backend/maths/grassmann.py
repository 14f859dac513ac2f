"""Subspaces of R^n as points of the Grassmann manifold Gr(n, r), batched. A point is an orthonormal basis Q [.., n, r].

Principal angles theta_i in [0, pi/2], ascending: cos theta are the singular values of Q1'Q2. The distance is
|theta| = sqrt(sum theta_i^2), the length of the shortest geodesic (Edelman's and scipy's convention; geomstats measures
projectors and says sqrt(2) times as much). Small angles are read from the sines, sv((1 - Q1 Q1')Q2), since arccos
loses half of the digits near 1 (Bjorck and Golub).
A tangent vector at Q is D [.., n, r] with Q'D = 0. All in the dtype of the input.
Source: Edelman, Arias and Smith (1998), The geometry of algorithms with orthogonality constraints, section 2.5 and 4.3;
Bjorck and Golub (1973), Numerical methods for computing angles between linear subspaces.
"""

from __future__ import annotations

import torch
from torch import Tensor


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angles [.., r] between spans of orthonormal [.., n, r], ascending, in radians; right to rounding also
    near 0 and pi/2."""
    inner = first.mT @ second
    cosines = torch.linalg.svdvals(inner).clamp(0, 1)  # descending: angles ascending
    sines = torch.linalg.svdvals(second - first @ inner).clamp(0, 1).flip(-1)
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the geodesic distance [..]: the root of the sum of squared principal angles, in radians."""
    return principal_angles(first, second).norm(dim=-1)


def span(vectors: Tensor) -> Tensor:
    """Return an orthonormal basis [.., n, r] of the columns of [.., n, r], which must be independent."""
    return torch.linalg.qr(vectors).Q


def leading(matrix: Tensor, r: int) -> Tensor:
    """Return the r leading left singular vectors [.., n, r] of a matrix [.., n, m]."""
    return torch.linalg.svd(matrix, full_matrices=False).U[..., :r]


def exponential(base: Tensor, tangent: Tensor) -> Tensor:
    """Return the end [.., n, r] of the geodesic from `base` with this velocity, after unit time.

    tangent = U S V': Q(1) = base V cos(S) V' + U sin(S) V'.
    """
    u, s, vt = torch.linalg.svd(tangent, full_matrices=False)
    return (base @ vt.mT * s.cos()[..., None, :] + u * s.sin()[..., None, :]) @ vt


def logarithm(base: Tensor, to: Tensor) -> Tensor:
    """Return the tangent vector at `base` [.., n, r] whose exponential spans `to`; its norm is the distance.

    Unique where every angle is below pi/2. (1 - Q Q')T (Q'T)^-1 = U tan(Theta) V', and the answer U Theta V'.
    """
    inner = base.mT @ to
    normal = to - base @ inner
    u, tangents, vt = torch.linalg.svd(torch.linalg.solve(inner, normal, left=False), full_matrices=False)
    return u * tangents.atan()[..., None, :] @ vt


def geodesic(first: Tensor, second: Tensor, times: Tensor) -> Tensor:
    """Return points [time, n, r] on the shortest geodesic from one span (time 0) to the other (time 1)."""
    velocity = logarithm(first, second)
    return exponential(first.expand(len(times), *first.shape), times[:, None, None] * velocity)


def transport(base: Tensor, velocity: Tensor, tangent: Tensor) -> Tensor:
    """Return a tangent vector carried in parallel along the geodesic of `velocity` for unit time; its length stays."""
    u, s, vt = torch.linalg.svd(velocity, full_matrices=False)
    along = u.mT @ tangent
    turned = (u * s.cos()[..., None, :] - base @ vt.mT * s.sin()[..., None, :]) @ along
    return turned + tangent - u @ along
