"""Effective numbers of dimensions of clouds of vectors."""

from __future__ import annotations

from torch import Tensor


def participation_ratio(vectors: Tensor) -> Tensor:
    """Estimate (tr C)^2 / tr C^2 of the covariance C, each part without bias from the number of vectors.

    The plain ratio of the sample covariance S tends to (1/PR + 1/N)^-1: with N vectors it cannot exceed N - 1. For
    Gaussian vectors with n = N - 1 degrees of freedom E[tr S^2] = (1 + 1/n) tr C^2 + (tr C)^2 / n and
    E[(tr S)^2] = (tr C)^2 + 2 tr C^2 / n; solving both gives unbiased estimates of numerator and denominator
    (their ratio is consistent). Vectors that do not vary give NaN. In float64.

    Args:
        vectors: [N, d], N >= 4.
    Returns:
        scalar, 1 .. d up to sampling error: d for isotropic vectors, 1 where all lie on a line.
    Raises:
        ValueError: fewer than 4 vectors.
    Source: Srivastava (2005), Some tests concerning the covariance matrix in high dimensional data, lemma 2.1;
        Gao et al. (2017), A theory of multineuronal dimensionality (participation ratio).
    """
    count = len(vectors)
    if count < 4:
        raise ValueError(f"{count} vectors: at least 4 are needed")
    centred = vectors.double() - vectors.double().mean(0)
    n = count - 1
    side = centred.T @ centred if vectors.shape[1] <= count else centred @ centred.T
    return unbiased_ratio(side / n, count)


def unbiased_ratio(covariance: Tensor, count: int) -> Tensor:
    """Return `participation_ratio` from a sample covariance [d, d] (or the Gram matrix / n) of `count` vectors."""
    n = count - 1
    trace, squared = covariance.diagonal().sum(), covariance.square().sum()
    scale = n**2 / ((n - 1) * (n + 2))
    of_squares = scale * (squared - trace**2 / n)  # tr C^2
    of_trace = trace**2 - 2 * of_squares / n  # (tr C)^2
    return of_trace / of_squares
