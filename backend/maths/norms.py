"""Norms of products of tall matrices, without forming the products."""

from __future__ import annotations

from torch import Tensor


def product_norm(left: Tensor, right: Tensor) -> Tensor:
    """Compute |L R^T| (Frobenius) from two d x d Gram matrices: sqrt(tr(L^T L R^T R)).

    tr(R L^T L R^T) = tr(L^T L R^T R). The value is unchanged by L -> L A, R -> R A^-T, which is how a head's W_Q and
    W_K (or W_V and W_O^T) may be rewritten without any effect. Cost: 2 m d^2 instead of m n d. In float64.

    Args:
        left: [..., m, d].
        right: [..., n, d].
    Returns:
        [...], float64.
    Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits ("low-rank matrices").
    """
    left, right = left.double(), right.double()
    grams = (left.transpose(-1, -2) @ left) * (right.transpose(-1, -2) @ right)
    return grams.sum((-1, -2)).clamp_min(0).sqrt()  # the trace of a product of symmetric matrices
