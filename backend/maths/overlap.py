"""How two circuits agree as sets of nodes and edges, and how much of that chance alone would give. No torch, no scipy.

A node is a name or a number, an edge a pair of nodes (sender, receiver); nothing here knows of models.
Source: Jaccard (1901), Étude comparative de la distribution florale; Feller (1968), An Introduction to Probability
Theory, vol. 1, II.6 (hypergeometric distribution).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Circuit:
    """Nodes, and edges (sender, receiver) between them."""

    nodes: frozenset[Hashable]
    edges: frozenset[tuple[Hashable, Hashable]] = frozenset()


@dataclass(frozen=True)
class Chance:
    """What two random sets of these sizes give: expected Jaccard and distance, and the chance to share as many."""

    jaccard: float
    distance: float
    as_many: float


def jaccard(a: Set[Hashable], b: Set[Hashable]) -> float:
    """Return what two sets share of what either holds; 1 for two empty ones."""
    return len(a & b) / len(a | b) if a | b else 1.0


def edit_distance(a: Circuit, b: Circuit) -> int:
    """Return how many nodes and edges have to be added or taken away to turn one circuit into the other.

    Names are fixed, so this is the size of the symmetric differences: a metric (0 only for equal circuits, symmetric,
    with the triangle inequality).
    """
    return len(a.nodes ^ b.nodes) + len(a.edges ^ b.edges)


def shared_by_chance(n: int, a: int, b: int) -> list[float]:
    """Return P(k things shared), k = 0..min(a, b), of random subsets of a and b of n things: hypergeometric."""
    return [math.comb(a, k) * math.comb(n - a, b - k) / math.comb(n, b) for k in range(min(a, b) + 1)]


def chance(n: int, a: int, b: int, shared: int) -> Chance:
    """Return what random subsets of `a` and `b` of the same n things give, every pair of such sets equally likely.

    `as_many` = P(they share at least `shared`). Exact: sums over the hypergeometric distribution.
    Raises ValueError where a set is larger than n.
    """
    if not 0 <= max(a, b) <= n:
        raise ValueError(f"sets of {a} and {b} of {n} things")
    weights = shared_by_chance(n, a, b)
    union = [a + b - k for k in range(len(weights))]
    expected = sum(p * (k / u if u else 1.0) for k, (p, u) in enumerate(zip(weights, union, strict=True)))
    # the sum from above: a tiny tail keeps its digits
    return Chance(expected, a + b - 2 * a * b / n if n else 0.0, min(1.0, math.fsum(weights[max(0, shared) :])))
