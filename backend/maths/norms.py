"""Sizes of weights, and of what two matrices do together whatever basis lies between them.

W_Q W_K^T and W_V W_O are all that a head's scores and outputs depend on: replacing W_Q by W_Q A and W_K by W_K A^-T
changes either matrix and no score (the GL(d_head) gauge), so norms of W_Q alone mean little.
Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "QK and OV circuits".
"""

from __future__ import annotations

import torch
from torch import Tensor


def product_norm(left: Tensor, right: Tensor) -> Tensor:
    """Compute the Frobenius norm of left @ right from the two Gram matrices of the small inner axis.

    ||A B||_F^2 = tr(A^T A B B^T): d_head x d_head work in place of d_model x d_model; exact up to rounding.

    Args:
        left: [..., rows, inner]; right: [..., inner, columns].
    Returns:
        [...], in units of left times right.
    """
    grams = (left.mT @ left) * (right @ right.mT).mT
    return grams.sum((-2, -1)).clamp_min(0).sqrt()


def qk_norm(W_Q: Tensor, W_K: Tensor) -> Tensor:
    """Compute ||W_Q W_K^T||_F per head; with fewer key heads each serves a group of query heads.

    Args: W_Q [head, d_model, d_head], W_K [kv_head, d_model, d_head]. Returns: [head].
    """
    return product_norm(W_Q, _grouped(W_K, len(W_Q)).mT)


def ov_norm(W_V: Tensor, W_O: Tensor) -> Tensor:
    """Compute ||W_V W_O||_F per head.

    Args: W_V [kv_head, d_model, d_head], W_O [head, d_head, d_model]. Returns: [head].
    """
    return product_norm(_grouped(W_V, len(W_O)), W_O)


def copying(W_E: Tensor, W_V: Tensor, W_O: Tensor, W_U: Tensor) -> Tensor:
    """Compute each head's copying score: sum(lambda) / sum(|lambda|) over the eigenvalues of W_E W_V W_O W_U.

    1: all eigenvalues are real and positive, attending to a token raises that token's logit; -1: lowers it. The nonzero
    eigenvalues are those of the d_head x d_head matrix W_O W_U W_E W_V, which is what is solved (in float64). 0 where
    there are none. Norms and the value bias are left out. Cost: d_model^2 d_vocab once and d_head^3 per head.

    Args: W_E [d_vocab, d_model], W_V [kv_head, d_model, d_head], W_O [head, d_head, d_model], W_U [d_model, d_vocab].
    Returns: [head], -1..1.
    Raises: ValueError where the vocabularies differ: a token then has no logit of its own.
    Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Copying behavior".
    """
    if W_E.shape[0] != W_U.shape[1]:
        raise ValueError(f"{W_E.shape[0]} input tokens and {W_U.shape[1]} outputs: copying needs one vocabulary")
    through = W_U @ W_E  # [d_model, d_model], shared by the heads
    small = (W_O @ through @ _grouped(W_V, len(W_O))).double()
    values = torch.linalg.eigvals(small.cpu())
    whole = values.abs().sum(-1)
    return torch.where(whole > 0, values.real.sum(-1) / whole.clamp_min(1e-300), torch.zeros_like(whole))


def _grouped(matrices: Tensor, heads: int) -> Tensor:
    return matrices if len(matrices) == heads else matrices.repeat_interleave(heads // len(matrices), 0)


def effective_dimension(points: Tensor) -> Tensor:
    """Compute the PCA participation ratio (tr C)^2 / tr C^2 of the covariance C of a cloud.

    d for an isotropic cloud, 1 where all lies on one line, 0 where all points agree. The plug-in estimator: with few
    points it is biased low, at most n - 1.

    Args: points [n, d], n >= 2. Returns: a number, 0..min(n - 1, d).
    Source: Gao et al. (2017), A theory of multineuronal dimensionality, eq. 1.
    """
    centred = points.double() - points.double().mean(0)
    gram = centred.mT @ centred if centred.shape[1] <= centred.shape[0] else centred @ centred.mT
    square = gram.square().sum()
    return gram.trace().square() / square if square > 0 else square
