"""Circuits as sets of nodes and edges: how one agrees with a known circuit and with the whole model.

A node is a name or a number, an edge a pair of nodes (sender, receiver); nothing here knows of models.
Source: Conmy et al. (2023), Towards Automated Circuit Discovery, section 4 (ROC against a known circuit, pruning from
the output back); Wang et al. (2022), Interpretability in the Wild (faithfulness, completeness); Miller et al. (2024),
Transformer Circuit Faithfulness Metrics are not Robust; Fawcett (2006), An introduction to ROC analysis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence, Set
from typing import Any

import numpy as np

from backend.maths.patching import Estimate, recovered, worth_dividing

ROUNDING = 1e-5  # of the metric's size: what float32 runs differ by where nothing differs


def precision_recall(found: Set[Hashable], true: Set[Hashable]) -> tuple[float, float]:
    """Return (share of the found that is true, share of the true that is found); NaN where a set is empty."""
    hits = len(found & true)
    return (hits / len(found) if found else math.nan, hits / len(true) if true else math.nan)


def roc(scores: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (thresholds, false positive rate, true positive rate), one point per distinct score.

    A thing is found where its score >= the threshold. The first point is (inf, 0, 0), the last (lowest, 1, 1); equal
    scores enter together. NaN rates where all or none of the things are true.

    Args:
        scores: [thing], finite; true: [thing] of bool.
    """
    thresholds = np.concatenate([[math.inf], np.unique(scores)[::-1]])
    found = scores[None, :] >= thresholds[:, None]
    with np.errstate(invalid="ignore"):
        return thresholds, (found & ~true).sum(1) / (~true).sum(), (found & true).sum(1) / true.sum()


def area_under_roc(scores: np.ndarray, true: np.ndarray) -> float:
    """Return the area under `roc`: the chance that a true thing scores above another one, ties counting one half."""
    _, false_rate, true_rate = roc(scores, true)
    return float(np.trapezoid(true_rate, false_rate))


def on_a_path(edges: Sequence[tuple[Hashable, Hashable]], source: Hashable, sink: Hashable) -> np.ndarray:
    """Say of each edge (sender, receiver) whether some path over these edges leads through it from source to sink.

    The others carry nothing from the source to the sink, so a circuit does without them what it does with them.
    Returns a mask [edge] of bool.
    """
    down = _reached(edges, source)
    up = _reached([(b, a) for a, b in edges], sink)
    return np.array([a in down and b in up for a, b in edges], bool)


def _reached(edges: Sequence[tuple[Hashable, Hashable]], start: Hashable) -> set[Hashable]:
    found, now = {start}, {start}
    while now:
        now = {b for a, b in edges if a in now} - found
        found |= now
    return found


def faithfulness(circuit: np.ndarray, whole: np.ndarray, nothing: np.ndarray, weights: np.ndarray) -> Estimate:
    """Estimate (m(circuit) - m(nothing)) / (m(whole) - m(nothing)), a ratio of means over prompts.

    1 where the circuit does what the whole model does, 0 where it does no more than nothing; not bounded by either.
    NaN where nothing is to be explained (`explainable`).

    Args:
        circuit: metric [circuit, prompt]; whole, nothing: [prompt]; weights: [draw, prompt] of `draw_weights`.
    """
    if not explainable(whole, nothing):
        circuit = np.full_like(circuit, math.nan)
        return Estimate(*(circuit.mean(-1) for _ in range(4)))
    return recovered(circuit, whole, nothing, weights)


def explainable(whole: np.ndarray, nothing: np.ndarray) -> bool:
    """Say whether |m(whole) - m(nothing)| is at least its standard error over prompts, and more than rounding."""
    rounding = ROUNDING * max(np.abs(whole).mean(), np.abs(nothing).mean())
    return bool(abs((whole - nothing).mean()) > rounding and worth_dividing(whole - nothing))


def by_score(scores: np.ndarray) -> np.ndarray:
    """Return the order in which things enter a growing circuit: largest |score| first, ties as they stand."""
    return np.argsort(-np.abs(scores), kind="stable")


def nested(order: np.ndarray | Sequence[int], sizes: np.ndarray | Sequence[int]) -> np.ndarray:
    """Return masks [size, thing] of bool: the first `size` things of the order."""
    rank = np.empty(len(order), int)
    rank[np.asarray(order)] = np.arange(len(order))
    return rank[None, :] < np.asarray(sizes)[:, None]


def random_circuits(n_things: int, size: int, draws: int, dice: np.random.Generator) -> np.ndarray:
    """Return masks [draw, thing] of bool with `size` things each, every such set equally likely."""
    keys = dice.random((draws, n_things))
    return keys.argsort(1).argsort(1) < size


def smallest_faithful(faithful: np.ndarray, least: float) -> int:
    """Return the first index at which faithfulness is at least `least`; -1 where there is none (or all is NaN)."""
    enough = np.flatnonzero(faithful >= least)
    return int(enough[0]) if len(enough) else -1


def prune(
    order: Sequence[int], metric: Callable[[np.ndarray], Any], threshold: float,
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Take things away one after the other wherever the metric's mean then changes by less than `threshold`.

    Each thing is tried once, in this order, with those taken away before it gone: what is kept depends on the order.
    Every single loss is below the threshold, their sum need not be.

    Args:
        order: every thing 0..n-1; metric: of a mask [thing] of what is kept, a number or one per prompt; threshold: in
            the metric's unit.
    Returns:
        (mask of what is kept [thing], loss when it was tried [thing] or [thing, prompt], what was taken away in this
        order).
    """
    kept, gone = np.ones(len(order), bool), list[int]()
    now = np.asarray(metric(kept), float)
    loss = np.zeros((len(order), *now.shape))
    for thing in order:
        kept[thing] = False
        then = np.asarray(metric(kept), float)
        loss[thing] = now - then
        if abs(loss[thing].mean()) < threshold:
            now, gone = then, [*gone, thing]
        else:
            kept[thing] = True
    return kept, loss, gone
