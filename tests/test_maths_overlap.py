"""Truth of overlaps: a metric's axioms, and chance against every pair of sets written out."""

import itertools

import numpy as np
import pytest

from backend.maths import overlap
from backend.maths.overlap import Circuit


def test_jaccard_and_edit_distance():
    a = Circuit(frozenset("abc"), frozenset({("a", "b"), ("b", "c")}))
    b = Circuit(frozenset("abd"), frozenset({("a", "b"), ("b", "d")}))
    assert overlap.jaccard(a.nodes, b.nodes) == 2 / 4 and overlap.jaccard(a.edges, b.edges) == 1 / 3
    assert overlap.jaccard(set(), set()) == 1 and overlap.jaccard({1}, {2}) == 0
    assert overlap.edit_distance(a, b) == 4
    dice = np.random.default_rng(1)
    some = [Circuit(frozenset(np.flatnonzero(dice.random(6) < 0.5).tolist())) for _ in range(6)]
    for x, y, z in itertools.product(some, repeat=3):
        assert overlap.edit_distance(x, y) == overlap.edit_distance(y, x)
        assert (overlap.edit_distance(x, y) == 0) == (x == y)
        assert overlap.edit_distance(x, z) <= overlap.edit_distance(x, y) + overlap.edit_distance(y, z)


@pytest.mark.parametrize(("n", "a", "b"), [(6, 2, 3), (5, 0, 2), (5, 5, 2), (4, 4, 4), (3, 0, 0), (7, 3, 3)])
def test_chance_is_the_mean_over_all_pairs_of_sets(n, a, b):
    """`b` may stand still: every set of a things is drawn against it."""
    fixed = set(range(b))
    drawn = [set(s) for s in itertools.combinations(range(n), a)]
    for shared in range(min(a, b) + 1):
        found = overlap.chance(n, a, b, shared)
        assert found.jaccard == pytest.approx(np.mean([overlap.jaccard(s, fixed) for s in drawn]), abs=1e-12)
        assert found.distance == pytest.approx(np.mean([len(s ^ fixed) for s in drawn]), abs=1e-12)
        assert found.as_many == pytest.approx(np.mean([len(s & fixed) >= shared for s in drawn]), abs=1e-12)
    assert sum(overlap.shared_by_chance(n, a, b)) == pytest.approx(1, abs=1e-12)


def test_sets_larger_than_all_there_is_are_refused():
    with pytest.raises(ValueError, match="sets of 4 and 1 of 3"):
        overlap.chance(3, 4, 1, 0)
