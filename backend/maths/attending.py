"""Where and how widely attention rows look: offsets, distance, spread, shuffled keys, and rollout over layers.

A pattern is P [..., query, key] (rows sum to 1); every function keeps the leading axes (batch, head, ...).
Positions count from 0; `offset` k means the key k positions before the query.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled_keys(rows: int, length: int, causal: bool, dice: torch.Generator) -> Tensor:
    """Return a random permutation of the visible keys for every query: key index [row, query, key].

    `pattern.gather(-1, index)` then holds the same values at random visible positions. Keys after a causal query stay
    where they are.
    """
    chance = torch.rand(rows, length, length, generator=dice, dtype=torch.float64)
    if causal:
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        chance = torch.where(hidden, 1.0 + torch.arange(length, dtype=torch.float64), chance)
    return chance.argsort(-1)


def visible_keys(length: int, causal: bool) -> Tensor:
    """Return how many keys every query may see: [query], long."""
    return torch.arange(1, length + 1) if causal else torch.full((length,), length)


def uniform_rows(length: int, causal: bool) -> Tensor:
    """Return the pattern that attends to all visible keys alike: [query, key], float64."""
    rows = torch.ones(length, length, dtype=torch.float64)
    rows = rows.tril() if causal else rows
    return rows / rows.sum(-1, keepdim=True)


def top_mass(pattern: Tensor, k: int) -> Tensor:
    """Sum the k largest entries of every row: [..., query]. 1 where at most k keys are visible."""
    return pattern.topk(min(k, pattern.shape[-1]), -1).values.sum(-1)


def distance(pattern: Tensor) -> Tensor:
    """Average the distance |query - key| over every row: [..., query], tokens."""
    at = torch.arange(pattern.shape[-1], device=pattern.device, dtype=pattern.dtype)
    return (pattern * (at[:, None] - at[None, :]).abs()).sum(-1)


def farthest(length: int, causal: bool) -> Tensor:
    """Return the distance to the farthest visible key of every query: [query], long."""
    at = torch.arange(length)
    return at if causal else torch.maximum(at, length - 1 - at)


def at_offset(pattern: Tensor, k: int) -> Tensor:
    """Average P[i, i-k] over the queries i >= max(k, 1), which have that key and another: [...].

    Raises:
        ValueError: no query has such a key.
    """
    length = pattern.shape[-1]
    if not 0 <= k < length or length < 2:
        raise ValueError(f"offset {k} needs at least {max(k + 1, 2)} positions, the pattern has {length}")
    return pattern.diagonal(-k, -2, -1)[..., 1 if k == 0 else 0 :].mean(-1)


def offset_masses(pattern: Tensor, least: int, most: int) -> Tensor:
    """Return `at_offset` for every k of least..most: [..., most - least + 1]."""
    return torch.stack([at_offset(pattern, k) for k in range(least, most + 1)], -1)


def mass_on(pattern: Tensor, keys: Tensor, causal: bool) -> Tensor:
    """Average the attention to marked keys over the queries that see one: [row, head]; NaN where none does.

    Args:
        pattern: [row, head, query, key].
        keys: [row, key], bool.
        causal: whether later keys are hidden.
    """
    mass = (pattern * keys[:, None, None, :]).sum(-1)
    sees = keys.cumsum(-1) > 0 if causal else keys.any(-1, keepdim=True).expand_as(keys)
    return (mass * sees[:, None]).sum(-1) / sees.sum(-1)[:, None]


def rollout_step(before: Tensor, pattern: Tensor) -> Tensor:
    """Carry a rollout through one layer: (mean_h P / 2 + identity / 2) @ before.

    Half of what a position holds is taken to be its own residual, half the mean of its heads' rows. Rows of the result
    sum to 1 where those of `before` and `pattern` do. OV circuits and MLPs play no part.
    Source: Abnar and Zuidema (2020), Quantifying Attention Flow in Transformers, section 3.

    Args:
        before: [query, key], the identity before the first layer.
        pattern: [head, query, key].
    """
    one = torch.eye(pattern.shape[-1], dtype=pattern.dtype, device=pattern.device)
    return (pattern.mean(-3) + one) / 2 @ before
