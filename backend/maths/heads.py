"""Scores of attention heads from their patterns alone: induction, previous-token, duplicate-token, entropy.

A pattern is P [..., query, key] (rows sum to 1); every function keeps the leading axes (batch, head, ...).
Positions count from 0. Sequences for `prefix_matching` and `duplicate_token` are [A; A], A of n tokens.
Source: Olsson et al. (2022), In-context Learning and Induction Heads, "Head activation evaluators".
"""

from __future__ import annotations

import math

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


def normalised_entropy(pattern: Tensor, causal: bool = True) -> Tensor:
    """Divide the entropy of every row by ln(keys it may see), so that positions compare.

    1 for a uniform row, 0 for a row on one key. A causal query i sees i + 1 keys; query 0 sees one and is left out.

    Args:
        pattern: [..., query, key], at least 2 positions.
        causal: whether later keys are hidden; otherwise every query sees all keys.
    Returns:
        [..., query - 1] where causal, else [..., query]; 0..1.
    """
    entropy, n = attention_entropy(pattern), pattern.shape[-1]
    if not causal:
        return entropy / math.log(n)
    visible = torch.arange(2, n + 1, device=pattern.device, dtype=entropy.dtype)
    return entropy[..., 1:] / visible.log()


def grouped(few: Tensor, many: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat key-value heads [head, ...] so that each query head of `many` has its own; as they are where equal."""
    return few.repeat_interleave(len(many) // len(few), 0), many


def token_map(W_E: Tensor, W_U: Tensor) -> Tensor:
    """Return W_U W_E [d_model, d_model] in float64: what tokens leave between an OV map's end and its beginning."""
    return W_U.double() @ W_E.double()


def copying_score(W_V: Tensor, W_O: Tensor, inner: Tensor) -> Tensor:
    """Compute sum(lambda) / sum|lambda| over the eigenvalues of W_E W_V W_O W_U, per head.

    XY and YX have the same eigenvalues but for zeros, so those of the d_vocab x d_vocab map are those of the
    d_head x d_head matrix W_O W_U W_E W_V. They come in conjugate pairs, so the sum is real: the trace. 1 where every
    eigenvalue is positive (attending to a token raises its own logit), near 0 for a random map; 0 for a zero map.

    Args:
        W_V: [head, d_model, d_head].
        W_O: [head, d_head, d_model].
        inner: W_U W_E [d_model, d_model], see `token_map`.
    Returns:
        [head], -1..1, float64.
    Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Detecting copying behavior".
    """
    small = W_O.double() @ inner @ W_V.double()
    sizes = torch.linalg.eigvals(small).abs().sum(-1)
    trace = small.diagonal(0, -2, -1).sum(-1)
    return torch.where(sizes > 0, trace / sizes.clamp_min(torch.finfo(sizes.dtype).tiny), 0.0)


def _check(pattern: Tensor, n: int, least: int, positions: int) -> None:
    queries, keys = pattern.shape[-2:]
    if queries != keys:
        raise ValueError(f"a pattern is square, this one is {queries} x {keys}")
    if n < least or queries < positions:
        raise ValueError(f"n = {n} needs n >= {least} and at least {positions} positions, the pattern has {queries}")
