"""Scores of attention heads from their patterns alone: induction, previous-token, duplicate-token, entropy.

A pattern is P [..., query, key] (rows sum to 1); every function keeps the leading axes (batch, head, ...).
Positions count from 0. Sequences for `prefix_matching` and `duplicate_token` are [A; A], A of n tokens.
Source: Olsson et al. (2022), In-context Learning and Induction Heads, "Head activation evaluators".
"""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_matching(pattern: Tensor, n: int) -> Tensor:
    """Average the attention to the token after the earlier occurrence, over the second copy of a repeated block.

    mean of P[..., i, i-n+1] over i = n .. 2n-2. It is 1 exactly when every such query attends there alone.

    Args:
        pattern: [..., query, key] on x = [A; A], at least 2n-1 positions.
        n: length of A in tokens, at least 2.
    Returns:
        [...], 0..1, dimensionless.
    Raises:
        ValueError: the pattern is not square or too short for n.
    """
    _check(pattern, n, 2, 2 * n - 1)
    return pattern.diagonal(1 - n, -2, -1)[..., 1:n].mean(-1)


def previous_token(pattern: Tensor) -> Tensor:
    """Average the attention to the position just before: mean of P[..., i, i-1] over i = 1 .. pos-1.

    Args:
        pattern: [..., query, key], at least 2 positions.
    Returns:
        [...], 0..1, dimensionless.
    Raises:
        ValueError: the pattern is not square or has fewer than 2 positions.
    """
    _check(pattern, 1, 1, 2)
    return pattern.diagonal(-1, -2, -1).mean(-1)


def duplicate_token(pattern: Tensor, n: int) -> Tensor:
    """Average the attention to the earlier occurrence of the same token: mean of P[..., i, i-n] over i = n .. 2n-1.

    Args:
        pattern: [..., query, key] on x = [A; A], at least 2n positions.
        n: length of A in tokens, at least 1.
    Returns:
        [...], 0..1, dimensionless.
    Raises:
        ValueError: the pattern is not square or too short for n.
    """
    _check(pattern, n, 1, 2 * n)
    return pattern.diagonal(-n, -2, -1)[..., :n].mean(-1)


def attention_entropy(pattern: Tensor) -> Tensor:
    """Compute the entropy of every row, -sum_k P log P in nats, with 0 log 0 = 0.

    0 for a row on one key, ln(visible keys) for a uniform row.

    Args:
        pattern: [..., query, key].
    Returns:
        [..., query], nats.
    """
    return torch.special.entr(pattern).sum(-1)


def _check(pattern: Tensor, n: int, least: int, positions: int) -> None:
    queries, keys = pattern.shape[-2:]
    if queries != keys:
        raise ValueError(f"a pattern is square, this one is {queries} x {keys}")
    if n < least or queries < positions:
        raise ValueError(f"n = {n} needs n >= {least} and at least {positions} positions, the pattern has {queries}")
