"""Truths of recovered, its interval, rank correlation and midpoints."""

import numpy as np
import pytest
from scipy import stats

from backend.maths import patching


def test_recovered_is_0_for_nothing_and_1_for_all_and_linear_between():
    dice = np.random.default_rng(0)
    clean, corrupted = dice.normal(5, 1, 40), dice.normal(-5, 1, 40)
    parts = np.array([0, 0.25, 1, -0.5])
    patched = corrupted + parts[:, None] * (clean - corrupted)
    found = patching.recovered(patched, clean, corrupted, patching.draw_weights(40, 500, 0))
    for side in (found.value, found.low, found.high):  # the same share of every pair: no spread at all
        np.testing.assert_allclose(side, parts, atol=1e-12)
    np.testing.assert_allclose(found.se, 0, atol=1e-12)


def test_recovered_is_a_ratio_of_means_not_a_mean_of_ratios():
    clean, corrupted = np.array([10.0, 10.0, 1e-9]), np.zeros(3)
    found = patching.recovered(np.array([[5.0, 5.0, 1.0]]), clean, corrupted, patching.draw_weights(3, 200, 0))
    assert found.value[0] == pytest.approx(11 / 20)


def test_recovered_is_unknown_where_the_gap_is_below_its_standard_error():
    corrupted, patched = np.zeros(4), np.ones((2, 4))
    below, above = np.array([3.0, -3.0, 3.0, -2.9]), np.array([3.0, -3.0, 3.0, 3.0])
    assert abs(below.mean()) < patching.standard_error(below) and above.mean() >= patching.standard_error(above)
    weights = patching.draw_weights(4, 200, 0)
    assert all(np.isnan(x).all() for x in vars(patching.recovered(patched, below, corrupted, weights)).values())
    assert not np.isnan(patching.recovered(patched, above, corrupted, weights).value).any()
    assert np.isnan(patching.recovered(patched, corrupted, corrupted, weights).value).all()


def test_one_prompt_has_a_value_and_no_interval():
    found = patching.recovered(np.array([[1.0]]), np.array([4.0]), np.array([0.0]), patching.draw_weights(1, 200, 0))
    assert found.value[0] == 0.25 and np.isnan([found.se[0], found.low[0], found.high[0]]).all()


def test_the_bootstrap_of_a_mean_is_its_standard_error_and_covers():
    dice = np.random.default_rng(1)
    values, weights = dice.normal(2, 3, (400, 30)), patching.draw_weights(30, 2000, 2)
    found = patching.mean_estimate(values, weights)
    np.testing.assert_allclose(found.value, values.mean(1))
    ratio = found.se / patching.standard_error(values)
    assert ratio.mean() == pytest.approx(np.sqrt(29 / 30), abs=0.01)  # the bootstrap divides by n, not n - 1
    covered = ((found.low < 2) & (found.high > 2)).mean()
    assert 0.90 < covered < 0.97  # 95 % nominal, a little less at n = 30


def test_the_same_seed_draws_the_same_prompts():
    a, b, c = (patching.draw_weights(9, 50, s) for s in (3, 3, 4))
    assert (a == b).all() and (a != c).any()
    np.testing.assert_allclose(a.sum(1), 1)


def test_rank_correlation_is_spearmans():
    dice = np.random.default_rng(0)
    a, b = dice.integers(0, 6, 30).astype(float), dice.normal(0, 1, 30)  # ties on one side
    assert patching.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert patching.rank_correlation(b, np.exp(b)) == pytest.approx(1)
    assert patching.rank_correlation(b, -(b**3)) == pytest.approx(-1)
    assert np.isnan(patching.rank_correlation(b[:2], a[:2])) and np.isnan(patching.rank_correlation(b, b * 0))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_midpoints_are_exact_for_a_quadratic_and_second_order_beyond(steps):
    def gathered(slope, k):
        return sum(slope(t) for t in patching.midpoints(k)) / k

    assert gathered(lambda t: 2 * t + 3, steps) == pytest.approx(4)  # t^2 + 3 t from 0 to 1
    error = [abs(gathered(lambda t: 4 * t**3, k) - 1) for k in (steps * 4, steps * 8)]
    assert error[0] / error[1] == pytest.approx(4, rel=0.05)
