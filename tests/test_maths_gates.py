"""What may ring: material changes whose shape so far is not smooth; and what is withdrawn when the run has ended."""

from __future__ import annotations

import numpy as np

from backend.maths import gates, logstep, transitions, verdicts
from backend.maths.glr import ramp
from benchmarks import curves

STEPS = np.unique(np.round(np.geomspace(1, 1e4, 210)))[-160:]
U = np.log(STEPS)
LOW = (6.0, 2.0)  # thresholds so low that the gates alone decide


def noisy(curve: np.ndarray, seed: int = 0, sd: float = 0.01) -> np.ndarray:
    return curve + sd * curves.autoregressive(np.random.default_rng(seed), len(curve), 1, 0.3)[:, 0]


def found(*values: np.ndarray, **more):
    return transitions.detect({f"c{i}": (STEPS, v) for i, v in enumerate(values)}, **more)


def test_smooth_relaxations_do_not_ring_where_the_statistic_alone_would():
    """exp(-step/tau): the GLR exceeds the threshold, and the gates hold back what is smooth so far."""
    cells = passed = 0
    for seed in range(4):
        (clock,) = logstep.clocks({"a": (STEPS, noisy(np.exp(-STEPS / 300), seed))})
        seen = gates.statistics(clock)
        over = [int(t) for t in np.flatnonzero(seen.slow > 14)[::4]]
        cells, passed = cells + len(over), passed + sum(gates.passes(clock, seen, t, 0, True) for t in over)
    assert cells >= 10 and passed <= cells / 2


def test_a_jump_that_is_tiny_beside_the_span_does_not_ring_and_a_real_one_does():
    small, real = noisy(0.03 * ramp(U, 6, 0.1), sd=0.0005), noisy(0.3 * ramp(U, 6, 0.1), sd=0.005)
    assert len(found(small)) == 1  # without a span it is all that the channel ever did
    assert found(small, spans={"c0": 1.0}) == [] and found(small, spans={"c0": 1.0}, keep_withdrawn=True) == []
    (alarm,) = found(real, spans={"c0": 1.0})
    assert abs(np.log(alarm.step) - 6) < 0.1
    assert len(found(small, spans={"c0": 0.2})) == 1  # 5 % of .2 is less than .03


def test_what_is_immaterial_carries_nothing_beside_what_is():
    small, real = noisy(0.03 * ramp(U, 6, 0.1), sd=0.0005), noisy(0.6 * ramp(U, 6, 0.1), 1)
    (both,) = found(small, real)
    (spanned,) = found(small, real, spans={"c0": 1.0, "c1": 1.0})
    assert set(both.channels) == {"c0", "c1"} and spanned.channels == ("c1",)
    moved = 3.0 * ramp(U, 4, 0.5)  # has moved by 3, so .03 more is nothing of it either
    assert all("c0" not in a.channels for a in found(small + moved, real) if abs(np.log(a.step) - 6) < 0.5)


def test_an_alarm_waits_until_its_shape_shows_and_looks_at_no_later_cell():
    y = noisy(0.5 * ramp(U, 6, 0.4), 3)
    for cut in (105, 120):
        (clock,) = logstep.clocks({"a": (STEPS[:cut], y[:cut])})
        (whole,) = logstep.clocks({"a": (STEPS, y)})
        a, b = gates.statistics(clock), gates.statistics(whole)
        n = len(clock.u)
        np.testing.assert_allclose(a.slow, b.slow[:n], atol=1e-9)
        np.testing.assert_array_equal(a.least, b.least[:n])
        for at in np.flatnonzero((a.slow > LOW[0]) & (np.arange(n) > 40)):
            assert gates.passes(clock, a, int(at), 0, True) == gates.passes(whole, b, int(at), 0, True)
    (alarm,) = found(y)
    (clock,) = logstep.clocks({"c0": (STEPS, y)})
    seen, at = gates.statistics(clock), int(np.searchsorted(clock.steps, alarm.alarm_step))
    assert gates.passes(clock, seen, at, 0, alarm.method == "glr")


def early_end(seed: int) -> list[transitions.Alarm]:
    """A bend whose shape is told from little: many ring at these thresholds, and smooth ones must not survive."""
    y = noisy(-0.05 * np.exp(np.maximum(U - 6.5, 0)), seed, 0.02)
    return found(y, thresholds=LOW, ended=True, keep_withdrawn=True)


def test_of_an_ended_run_nothing_smooth_is_left_and_all_that_rang_is_kept_aside():
    rung = [a for seed in range(8) for a in early_end(seed)]
    gone = [a for a in rung if a.withdrawn]
    assert gone and all(a.verdict == verdicts.SMOOTH for a in gone)
    assert all(a.verdict != verdicts.SMOOTH for a in rung if not a.withdrawn)


def test_what_rang_is_refined_before_the_next_may_ring_also_where_it_is_withdrawn():
    """One bend that rings for many cells is one alarm per REFINE cells, not one per cell."""
    (clock,) = logstep.clocks({"c0": (STEPS, U)})
    followed = 0
    for seed in (0, 2, 7):
        rung = early_end(seed)
        cells = np.searchsorted(clock.steps, [a.alarm_step for a in rung])
        assert (np.diff(cells) > transitions.REFINE).all(), cells
        followed += sum(a.withdrawn for a in rung[:-1])
    assert followed


def test_the_search_goes_on_after_what_was_withdrawn():
    """Where alarms of the bend were withdrawn, a later jump is found at its place."""
    met = 0
    for seed in range(8):
        y = noisy(np.exp(-3 * curves.relative(U)) + 0.8 * ramp(U, 8, 0.1), seed, 0.02)
        alarms = found(y, thresholds=LOW, keep_withdrawn=True)
        if any(a.withdrawn and a.alarm_step < np.exp(7.5) for a in alarms):
            met += 1
            assert any(abs(np.log(a.step) - 8) < 0.15 and not a.withdrawn for a in alarms)
    assert met >= 1


def test_a_peak_is_the_largest_total_of_a_cell_that_passes():
    (clock,) = logstep.clocks({"a": (STEPS, noisy(0.1 * ramp(U, 6, 0.3), 1))})
    seen = gates.statistics(clock)
    over = [t for t in range(40, len(clock.u)) if seen.slow[t] > 3 and gates.passes(clock, seen, t, 0, True)]
    assert gates.largest(clock, (3.0, 1e9)) == (max(seen.slow[t] for t in over), 1e9)
    assert gates.largest(clock, (1e9, 1e9)) == (1e9, 1e9)
