"""Phases on planted curves: each phase, thresholds met exactly, delays, NaN, seeds that disagree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from backend.maths import phases
from backend.maths.phases import Outcome, Reached, Thresholds, majority, of_run, reached

STEPS = np.arange(0, 10_001, 100)


def jump(at: float, high: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A curve that is 0 before step `at` and `high` from there on."""
    return STEPS, np.where(at <= STEPS, high, 0.0)


@pytest.mark.parametrize(("train", "test", "phase"), [
    (jump(200), jump(300), phases.COMPREHENSION),
    (jump(200), jump(5000), phases.GROKKING),
    (jump(200), jump(math.inf), phases.MEMORISATION),
    (jump(math.inf), jump(math.inf), phases.CONFUSION),
    (jump(math.inf), jump(300), phases.CONFUSION),
    (jump(5000), jump(300), phases.COMPREHENSION),
])  # fmt: skip
def test_planted_curves_give_their_phase(train: tuple, test: tuple, phase: str) -> None:
    assert of_run(train, test, Thresholds()).phase == phase


def test_a_threshold_met_exactly_is_reached_and_one_missed_by_an_ulp_is_not() -> None:
    assert reached([0, 10, 20], [0.1, 0.9, 0.95], 0.9) == Reached(10, 0)
    assert reached([0, 10, 20], [0.1, np.nextafter(0.9, 0), 0.95], 0.9) == Reached(20, 10)
    assert reached([0, 10], [0.9, 1.0], 0.9) == Reached(0, -1)
    assert reached([0, 10], [0.0, 0.89], 0.9) is None
    assert reached([], [], 0.9) is None


def test_the_step_before_is_the_logged_one_in_whatever_order_the_points_come() -> None:
    assert reached([20, 0, 7, 10], [1.0, 0.0, 0.2, 0.3], 0.9) == Reached(20, 10)


def test_a_curve_that_falls_back_has_reached_it_the_first_time() -> None:
    assert reached([0, 10, 20, 30], [0, 0.95, 0.1, 0.95], 0.9) == Reached(10, 0)


def test_the_delay_decides_at_its_own_value() -> None:
    train, test = jump(200), jump(1200)
    assert of_run(train, test, Thresholds(delay=1000)).phase == phases.GROKKING
    assert of_run(train, test, Thresholds(delay=1000.5)).phase == phases.COMPREHENSION


def test_the_delay_and_its_error_from_the_logging_interval() -> None:
    found = of_run(jump(150), jump(1110), Thresholds(delay=500))
    assert (found.train, found.test) == (Reached(200, 100), Reached(1200, 1100))
    assert (found.delay, found.delay_low, found.delay_high) == (1000, 900, 1100)
    assert found.delay_low <= 1110 - 150 <= found.delay_high


def test_the_budget_ends_what_may_still_be_reached() -> None:
    train, test = jump(200), jump(5000)
    assert of_run(train, test, Thresholds(budget=5000)).phase == phases.GROKKING
    assert of_run(train, test, Thresholds(budget=4999)).phase == phases.MEMORISATION
    assert of_run(train, test, Thresholds(budget=100)).phase == phases.CONFUSION


def test_a_run_under_way_is_open_until_it_is_decided() -> None:
    train, test = jump(200), jump(math.inf)
    assert of_run(train, test, Thresholds(), ended=False).phase == phases.OPEN
    assert of_run(train, test, Thresholds(budget=10_000), ended=False).phase == phases.MEMORISATION
    assert of_run(train, test, Thresholds(budget=10_001), ended=False).phase == phases.OPEN
    assert of_run(train, jump(300), Thresholds(), ended=False).phase == phases.COMPREHENSION
    assert of_run(([], []), ([], []), Thresholds(budget=5), ended=False).phase == phases.OPEN


def test_nan_reaches_nothing_and_does_not_hide_what_comes_after() -> None:
    nan = np.full(len(STEPS), np.nan)
    assert of_run((STEPS, nan), (STEPS, nan), Thresholds()).phase == phases.CONFUSION
    assert of_run(jump(0), (STEPS, nan), Thresholds()).phase == phases.MEMORISATION
    assert reached([0, 10, 20], [np.nan, np.nan, 1.0], 0.9) == Reached(20, 10)
    assert reached([0, 10, 20], [0.0, np.inf, np.nan], 0.9) == Reached(10, 0)


def test_seeds_that_disagree_are_said_so_and_the_majority_names_the_cell() -> None:
    def grok(delay: float) -> Outcome:
        return Outcome(phases.GROKKING, delay=delay)

    memory, unborn = Outcome(phases.MEMORISATION), Outcome(phases.OPEN)
    cell = majority([grok(1000), memory, grok(3000)])
    assert (cell.phase, cell.agree, cell.n, cell.delay) == (phases.GROKKING, False, 3, 2000)
    assert cell.counts == {phases.GROKKING: 2, phases.MEMORISATION: 1}
    same = majority([grok(1000), grok(1500), unborn])
    assert same.agree and same.n == 2 and same.delay == 1250
    tie = majority([grok(1000), memory])
    assert tie.phase == phases.MEMORISATION and not tie.agree and math.isnan(tie.delay)
    assert majority([memory, grok(1000)]).phase == tie.phase  # the order of seeds does not matter
    assert majority([unborn]).phase == phases.OPEN and majority([]).n == 0


def test_a_run_that_has_not_ended_is_provisional_and_has_no_vote() -> None:
    early = of_run(jump(200), jump(300), Thresholds(), ended=False)
    assert (early.phase, early.final) == (phases.COMPREHENSION, False)
    assert of_run(jump(200), jump(300), Thresholds()).final
    memory = Outcome(phases.MEMORISATION)
    cell = majority([early, early, memory])
    assert (cell.phase, cell.agree, cell.n, cell.provisional) == (phases.MEMORISATION, True, 1, False)
    assert cell.counts == {phases.MEMORISATION: 1} and math.isnan(cell.delay)
    so_far = majority([early, Outcome(phases.OPEN, final=False)])
    assert (so_far.phase, so_far.agree, so_far.n, so_far.provisional) == (phases.COMPREHENSION, True, 0, True)
    assert so_far.delay == 100 and so_far.counts == {}
    assert not majority([Outcome(phases.OPEN, final=False)]).provisional and not majority([]).provisional
