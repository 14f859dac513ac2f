"""Phases of learning from two curves, accuracy on the training data and on held-out data, by explicit thresholds.

    comprehension   both reach their threshold within the budget, the test curve less than `delay` steps later
    grokking        both do, the test curve at least `delay` steps later
    memorisation    only the training curve does
    confusion       the training curve does not

A curve reaches a threshold at its first logged step with value >= threshold; it may have crossed it anywhere after
the logged step before, so every step found here carries that step as its lower end. NaN reaches nothing.

Source: Liu et al. (2022), Towards Understanding Grokking: An Effective Theory of Representation Learning,
arXiv 2205.10343, section 4 (there: accuracy > 90 % within 10^5 steps, delay 10^3; here >= and the thresholds are open).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

COMPREHENSION, GROKKING, MEMORISATION, CONFUSION = "comprehension", "grokking", "memorisation", "confusion"
#: from the phase that learns most to the one that learns least
PHASES = (COMPREHENSION, GROKKING, MEMORISATION, CONFUSION)
#: not yet decided: the run goes on
OPEN = ""


@dataclass(frozen=True)
class Thresholds:
    """What decides. `accuracy` of both curves (0..1), `delay` and `budget` in steps (budget None: the run's end)."""

    accuracy: float = 0.9
    delay: float = 1000.0
    budget: float | None = None


@dataclass(frozen=True)
class Reached:
    """The first logged step at or above a threshold, and the logged step before it (-1 where it was the first)."""

    step: int
    before: int


@dataclass(frozen=True)
class Outcome:
    """One run's phase (OPEN while undecided), when each curve reached the threshold, and the delay in steps.

    The true delay lies in (delay_low, delay_high): both crossings are known to their logging interval only.
    `final` says that the run has ended; until then its phase is how it looks so far.
    """

    phase: str
    train: Reached | None = None
    test: Reached | None = None
    delay: float = np.nan
    delay_low: float = np.nan
    delay_high: float = np.nan
    final: bool = True


def reached(
    steps: Sequence[float], values: Sequence[float], threshold: float, budget: float | None = None
) -> Reached | None:
    """Return the first step (at most `budget`) whose value is >= threshold; None where there is none.

    Args: steps, values: [point], in any order of steps.
    """
    order = np.argsort(np.asarray(steps, float), kind="stable")
    at, height = np.asarray(steps, float)[order], np.asarray(values, float)[order]
    hits = np.flatnonzero((height >= threshold) & (at <= (np.inf if budget is None else budget)))
    if not hits.size:
        return None
    first = int(hits[0])
    return Reached(int(at[first]), int(at[first - 1]) if first else -1)


def outcome(train: Reached | None, test: Reached | None, delay: float, decided: bool = True) -> Outcome:
    """Return the phase of one run from when its curves reached the threshold.

    `decided` says that nothing more can be reached (the run has ended or its budget is over). A negative delay (the
    test curve first) is comprehension.
    """
    if train is None or test is None:
        phase = OPEN if not decided else CONFUSION if train is None else MEMORISATION
        return Outcome(phase, train, test)
    late = test.step - train.step
    return Outcome(GROKKING if late >= delay else COMPREHENSION, train, test, late,
                   test.before - train.step, test.step - train.before)


def of_run(
    train: tuple[Sequence[float], Sequence[float]], test: tuple[Sequence[float], Sequence[float]],
    thresholds: Thresholds, ended: bool = True,
) -> Outcome:
    """Return the outcome of one run from its curves (steps, values) on training and on held-out data.

    A run that has not ended is provisional (`final` False): it has a phase so far once both curves have reached the
    threshold or its last logged step (of the shorter curve) is past the budget.
    """
    found = [reached(*curve, thresholds.accuracy, thresholds.budget) for curve in (train, test)]
    last = min((max(steps, default=-1) for steps, _ in (train, test)), default=-1)
    over = ended or (thresholds.budget is not None and last >= thresholds.budget)
    return replace(outcome(found[0], found[1], thresholds.delay, over), final=ended)


@dataclass(frozen=True)
class Cell:
    """What the seeds of one cell say together: the most frequent phase, whether all agree, and the median delay in
    steps of the runs in that phase (NaN where it has none). `n` counts the runs that voted, `counts` their phases.

    `provisional`: no run has ended yet; phase and delay are what those under way say so far, and n is 0."""

    phase: str
    agree: bool
    n: int
    delay: float
    counts: dict[str, int]
    provisional: bool = False


def majority(outcomes: Sequence[Outcome]) -> Cell:
    """Return the cell of these runs; only those that have ended vote, and only they can disagree. A tie goes to the
    phase that learns less: a cell is not called better than half of its seeds."""
    decided = [o for o in outcomes if o.phase != OPEN]
    ended = [o for o in decided if o.final]
    if not ended:
        return _so_far(decided)
    counts = _counts(ended)
    phase = _most(counts)
    return Cell(phase, len(counts) == 1, len(ended), _delay(ended, phase), counts)


def _so_far(outcomes: Sequence[Outcome]) -> Cell:
    """A cell of which no run has ended."""
    phase = _most(_counts(outcomes))
    return Cell(phase, True, 0, _delay(outcomes, phase), {}, provisional=phase != OPEN)


def _counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    votes = [o.phase for o in outcomes]
    return {phase: votes.count(phase) for phase in PHASES if phase in votes}


def _most(counts: dict[str, int]) -> str:
    return max(counts, key=lambda p: (counts[p], PHASES.index(p)), default=OPEN)


def _delay(outcomes: Sequence[Outcome], phase: str) -> float:
    delays = [o.delay for o in outcomes if o.phase == phase and not np.isnan(o.delay)]
    return float(np.median(delays)) if delays else np.nan
