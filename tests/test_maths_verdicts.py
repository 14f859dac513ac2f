"""Verdicts on planted curves, and what may have made a change."""

from __future__ import annotations

import numpy as np
import pytest

from backend.maths import verdicts
from backend.maths.glr import ramp
from benchmarks import curves

STEPS = np.unique(np.round(np.geomspace(1, 1e4, 210)))[-160:]
U = np.log(STEPS)
PLANTED = {
    verdicts.SMOOTH: (np.exp(-3 * curves.relative(U)), 0.3 * U - 0.02 * U**2, np.exp(-np.exp(U - 6.0)), 0 * U),
    verdicts.KINK: (-0.6 * np.maximum(U - 6, 0), 0.1 * U + 0.9 * np.maximum(U - 6, 0)),
    verdicts.CROSSOVER: (ramp(U, 6, 0.3), 2 - U / 5 - 0.5 * ramp(U, 6, 0.0), 1 / (1 + np.exp(-(U - 6) / 0.1))),
}


@pytest.mark.parametrize("verdict", PLANTED)
def test_planted_curves_get_their_verdict(verdict):
    for y in PLANTED[verdict]:
        noise = [0.01 * curves.autoregressive(np.random.default_rng(s), len(U), 1, 0.3)[:, 0] for s in range(6)]
        said = [verdicts.shape_of(STEPS, y + n, np.exp(6.0), 0.3).verdict for n in noise]
        assert said.count(verdict) >= 5, said


def test_the_width_of_a_crossover_and_the_lead():
    noise = 0.01 * np.random.default_rng(0).normal(size=len(U))
    for width in (0.1, 0.5, 1.0):
        shape = verdicts.shape_of(STEPS, ramp(U, 6, width) + noise, np.exp(6.0), width)
        assert shape.verdict == verdicts.CROSSOVER and abs(shape.width - width) <= 0.11 and shape.lead > 10
        assert abs(shape.centre - 6) < 0.1


def test_few_points_and_broken_ones_are_smooth():
    for y in (0 * U + 1, U * np.nan, np.r_[np.ones(8), np.full(len(U) - 8, np.nan)]):
        assert verdicts.shape_of(STEPS, y).verdict == verdicts.SMOOTH


# ---------------------------------------------------------------- sizes


def test_only_a_width_that_shrinks_over_three_sizes_is_transition_like():
    rng = np.random.default_rng(2)
    sizes = np.repeat([1e4, 1e5, 1e6], 3)
    noise = np.exp(0.1 * rng.normal(size=9))
    shrinks = verdicts.sharpening(sizes, 0.5 * (sizes / 1e4) ** -0.3 * noise)
    assert shrinks.transition_like and shrinks.low <= -0.3 <= shrinks.high < 0 and shrinks.sizes == 3
    assert not verdicts.sharpening(sizes, 0.5 * noise).transition_like
    assert not verdicts.sharpening(sizes, 0.1 * (sizes / 1e4) ** 0.3 * noise).transition_like
    two = verdicts.sharpening(sizes[:6], 0.5 * (sizes[:6] / 1e4) ** -0.3)
    assert not two.transition_like and np.isnan(two.slope) and two.sizes == 2


def test_one_run_per_size_draws_the_residuals():
    sizes = np.array([1e4, 1e5, 1e6, 1e7])
    steady = verdicts.sharpening(sizes, 0.5 * (sizes / 1e4) ** -0.2 * np.array([1, 1.05, 0.97, 1.0]))
    assert steady.transition_like and steady.slope == pytest.approx(-0.2, abs=0.03)
    assert not verdicts.sharpening(sizes, np.array([0.5, 0.1, 0.6, 0.3])).transition_like


# ---------------------------------------------------------------- what may have made it


def test_a_dropped_learning_rate_within_the_interval_is_said():
    assert "step 500" in verdicts.exogenous(450, 600, [20, 500])
    assert verdicts.exogenous(450, 600, [100, 800]) == "" and verdicts.exogenous(450, 600, []) == ""
    assert verdicts.exogenous(450, 600, [300]) != ""  # the curve answers late
    assert verdicts.exogenous(450, 600, [265]) == ""
    rates = np.where(STEPS < 500, 1e-3, 1e-4)
    (drop,) = verdicts.learning_rate_jumps(STEPS, rates)
    assert drop == STEPS[STEPS >= 500][0]
    assert verdicts.learning_rate_jumps(STEPS, 1e-3 * 0.999**STEPS + 1e-5) == []


@pytest.mark.parametrize("rates", [
    np.minimum(STEPS / 300, 1.0),  # a warm-up
    1 - (STEPS - STEPS[0]) / (STEPS[-1] - STEPS[0]),  # a linear decay, to 0
    0.5 * (1 + np.cos(np.pi * STEPS / STEPS[-1])), np.full(len(STEPS), 1e-3),
])  # fmt: skip
def test_a_schedule_without_a_drop_has_none(rates):
    assert verdicts.learning_rate_jumps(STEPS, rates) == []


def test_each_drop_of_several_is_one():
    rates = np.select([STEPS < 500, STEPS < 1500], [1e-3, 1e-4], 1e-5)
    firsts = [float(STEPS[np.searchsorted(STEPS, at)]) for at in (500, 1500)]
    assert verdicts.learning_rate_jumps(STEPS, rates) == firsts


def test_a_jump_that_its_continuous_twin_does_not_show_is_metric_induced():
    words = {"acc": "Accuracy", "log_prob": "Log-probability"}
    said = verdicts.artefact(["acc"], {"acc": "log_prob"}, [], words)
    assert "Metric-induced" in said and "Accuracy jumps and Log-probability does not" in said
    assert verdicts.artefact(["acc"], {"acc": "log_prob"}, ["log_prob"], words) == ""
    assert verdicts.artefact(["acc", "loss"], {"acc": "log_prob"}, [], words) == ""
    assert verdicts.artefact([], {}, [], words) == ""


def test_one_curve_that_shows_the_change_keeps_an_alarm():
    smooth, kink, crossover = verdicts.SMOOTH, verdicts.KINK, verdicts.CROSSOVER
    assert verdicts.left([smooth, smooth, kink]) == kink and verdicts.left([smooth, crossover, smooth]) == crossover
    assert verdicts.left([smooth, smooth]) == smooth and verdicts.left([kink, crossover, kink]) == kink
