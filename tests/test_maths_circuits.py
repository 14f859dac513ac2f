"""Truth of circuits as sets: closed forms by hand, a metric's axioms, pruning against all subsets."""

import itertools
import math

import numpy as np
import pytest

from backend.maths import circuits
from backend.maths.patching import draw_weights


def test_precision_and_recall_by_hand():
    assert circuits.precision_recall({"a", "b", "c", "d"}, {"a", "b", "x"}) == (2 / 4, 2 / 3)
    assert circuits.precision_recall({"a"}, {"a"}) == (1, 1)
    nothing = circuits.precision_recall(set(), {"a"})
    assert math.isnan(nothing[0]) and nothing[1] == 0
    assert math.isnan(circuits.precision_recall({"a"}, set())[1])


def test_roc_by_hand():
    scores, true = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    thresholds, false_rate, true_rate = circuits.roc(scores, true)
    assert thresholds.tolist() == [math.inf, 3, 2, 1]
    assert false_rate.tolist() == [0, 0, 0.5, 1] and true_rate.tolist() == [0, 0.5, 1, 1]


def test_the_area_is_the_chance_to_score_higher():
    dice = np.random.default_rng(0)
    scores, true = dice.integers(0, 6, 60).astype(float), dice.random(60) < 0.4
    higher = [(a > b) + 0.5 * (a == b) for a in scores[true] for b in scores[~true]]
    assert circuits.area_under_roc(scores, true) == pytest.approx(np.mean(higher), abs=1e-12)
    assert circuits.area_under_roc(true * 1.0, true) == 1 and circuits.area_under_roc(-1.0 * true, true) == 0


def test_edges_on_a_path_are_those_of_all_paths_written_out():
    """Random acyclic graphs: an edge is on a path exactly where one of all simple paths holds it."""
    dice = np.random.default_rng(3)
    for _ in range(20):
        edges = [(a, b) for a in range(6) for b in range(a + 1, 6) if dice.random() < 0.4]
        inner = [list(c) for k in range(5) for c in itertools.combinations(range(1, 5), k)]
        paths = [list(itertools.pairwise([0, *c, 5])) for c in inner]
        used = {e for p in paths if set(p) <= set(edges) for e in p}
        assert circuits.on_a_path(edges, 0, 5).tolist() == [e in used for e in edges]


def test_faithfulness_of_the_ends_and_between():
    dice = np.random.default_rng(2)
    nothing, whole = dice.normal(size=30), 5 + dice.normal(size=30)
    runs = np.stack([nothing, whole, 0.25 * nothing + 0.75 * whole])
    found = circuits.faithfulness(runs, whole, nothing, draw_weights(30, 200, 0))
    np.testing.assert_allclose(found.value, [0, 1, 0.75], atol=1e-12)
    np.testing.assert_allclose(found.se, 0, atol=1e-9)  # the same mixture on every prompt: no spread
    gone = circuits.faithfulness(runs, nothing, nothing, draw_weights(30, 200, 0))
    assert np.isnan(gone.value).all()


def test_growing_and_random_circuits():
    order = circuits.by_score(np.array([0.1, -3.0, 2.0, 0.1]))
    assert order.tolist() == [1, 2, 0, 3]
    assert circuits.nested(order, [0, 2, 3]).astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]]
    drawn = circuits.random_circuits(5, 2, 4000, np.random.default_rng(0))
    assert (drawn.sum(1) == 2).all()
    counts = np.unique(drawn @ (1 << np.arange(5)), return_counts=True)[1]
    assert len(counts) == 10 and abs(counts - 400).max() < 5 * math.sqrt(400)
    assert circuits.smallest_faithful(np.array([0.2, 0.95, 0.5, 1.0]), 0.9) == 1
    assert circuits.smallest_faithful(np.array([math.nan, math.nan]), 0.9) == -1


def test_pruning_keeps_exactly_what_an_additive_metric_needs():
    worth = np.array([0.0, 2.0, 0.005, -1.0, 0.0])
    kept, loss, gone = circuits.prune([4, 3, 2, 1, 0], lambda mask: float(worth[mask].sum()), 0.01)
    assert kept.tolist() == [False, True, False, True, False] and gone == [4, 2, 0]
    np.testing.assert_allclose(loss, worth, atol=1e-12)


def test_of_two_that_replace_each_other_the_last_tried_is_kept():
    kept, _, gone = circuits.prune([1, 0], lambda mask: float(mask.any()), 0.5)
    assert kept.tolist() == [True, False] and gone == [1]
