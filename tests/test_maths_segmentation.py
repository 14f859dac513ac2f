"""Offline change points: planted knots come back; a smooth trend with dependent noise has none."""

from __future__ import annotations

import numpy as np
import pytest
import ruptures

from backend.maths import segmentation as seg
from backend.maths import verdicts
from backend.maths.glr import ramp
from benchmarks import curves

STEPS = np.unique(np.round(np.geomspace(1, 1e4, 210)))[-160:]
U = np.log(STEPS)


def noise(seed: int, sd: float = 0.02, phi: float = 0.5) -> np.ndarray:
    return sd * curves.autoregressive(np.random.default_rng(seed), len(U), 1, phi)[:, 0]


def test_the_trap_of_naive_change_points():
    """L2-PELT with a BIC penalty reports about 11 changes on this smooth curve (reference 7.1); ours almost none."""
    ours, naive = [], []
    for seed in range(20):
        y = np.exp(-3 * curves.relative(U)) + noise(seed)
        ours.append(len(seg.segment(STEPS, y).knots))
        penalty = 2 * 0.02**2 * np.log(len(y))
        naive.append(len(ruptures.Pelt(model="l2", min_size=2, jump=1).fit(y[:, None]).predict(pen=penalty)) - 1)
    assert np.mean(naive) > 8 and np.mean(ours) <= 0.1


@pytest.mark.parametrize("places", [(5.0,), (4.5, 6.5), (4.2, 5.8, 7.4)])
def test_planted_knots_come_back(places):
    slopes = [0.0, -0.8, 0.0, -0.8]
    y = sum((b - a) * np.maximum(U - c, 0) for a, b, c in zip(slopes, slopes[1:], places, strict=False))
    found = seg.segment(STEPS, y + noise(1, 0.01))
    np.testing.assert_allclose(np.log(found.knots), places, atol=0.15)
    np.testing.assert_allclose(found.slopes, slopes[: len(places) + 1], atol=0.06)
    assert np.abs(np.interp(np.log(found.steps), U, y) - found.fitted).max() < 0.05


def test_the_fit_is_continuous_and_without_noise_exact():
    y = 2 - 0.5 * np.maximum(U - U[60], 0) + 1.5 * np.maximum(U - U[100], 0)
    u, _ = seg.gridded(STEPS, y, 10_000)
    fit, knots, slopes = seg._fit(U, y, [55, 104])
    np.testing.assert_allclose(knots, [U[60], U[100]])
    assert len(u) == len(U)
    np.testing.assert_allclose(fit, y, atol=1e-9)
    np.testing.assert_allclose(slopes, [0, -0.5, 1.0], atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_reference_step_is_the_middle_of_the_rise(seed):
    y = 0.05 * U + 0.8 * ramp(U, 6.0, 0.6) + noise(seed)
    reference = seg.reference_step(STEPS, y)
    assert reference is not None and seg.within(reference, np.exp(6.0), 0.1)["absolute"]
    assert seg.reference_step(STEPS, 1 / STEPS**0.2 + noise(seed)) is None


def test_short_and_flat_curves_have_no_knots():
    for steps, y in (([], []), ([1.0], [2.0]), (STEPS, 0 * U), (STEPS[:8], U[:8]), (STEPS, U * np.nan)):
        assert len(seg.segment(np.array(steps), np.array(y)).knots) == 0


def test_seeds_give_an_interval_and_five_percent_has_two_readings():
    middle, low, high = verdicts.over_seeds(np.array([180.0, 200.0, 210.0, 220.0, 260.0]))
    assert middle == pytest.approx(210) and 180 <= low < 210 < high <= 260
    assert verdicts.over_seeds(np.array([50.0])) == pytest.approx((50, 50, 50))
    assert seg.within(104, 100) == {"absolute": True, "relative": True}
    assert seg.within(120, 100) == {"absolute": False, "relative": True}
    assert seg.within(130, 100) == {"absolute": False, "relative": False}


def test_the_reference_is_the_steep_piece_and_no_plateau_or_dip():
    """Up by .8 in .3 ln-units at step 250; then a dip of .1 and a long slow rise; or a second, lower rise."""
    u = np.log(np.arange(10, 4000, 10.0))
    steep = 0.8 * np.clip((u - np.log(250)) / 0.3 + 0.5, 0, 1)
    dip = -0.1 * np.clip((u - 6.2) / 0.2, 0, 1) + 0.1 * np.clip((u - 6.5) / 1.5, 0, 1)
    second = 0.3 * np.clip((u - 7.6) / 0.3 + 0.5, 0, 1)
    noise = 0.005 * np.random.default_rng(0).normal(size=len(u))
    for more in (dip, second):
        found = seg.reference_step(np.exp(u), steep + more + noise)
        assert found is not None and abs(np.log(found / 250)) < 0.1
