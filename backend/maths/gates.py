"""What a statistic must pass to ring: the change is material, not surely wide, and its shape so far is not smooth.

All gates look at cells up to the alarm alone. Material: a channel counts, for score and for carrying, where the jump
that the statistic saw is at least MATERIAL of what the channel has moved so far and of its span (the range that such a
metric can move over, where it has one: 1 for an accuracy). Shape: `verdicts` elects among smooth, kink and crossover
for each of the strongest channels; where the commonest says smooth the alarm waits, and may ring at a later cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backend.maths import glr, jumps, verdicts
from backend.maths.locate import Place, locate
from backend.maths.logstep import Array, Clock

#: share of what a channel has moved so far, and of its span, below which a jump in it carries nothing
MATERIAL = 0.05
#: ln-step; what is surely wider is a slow crossover and rings no alarm
WIDEST = 1.0


@dataclass(frozen=True)
class Statistics:
    """The totals [cell] of GLR and derivative, what each channel adds [cell, channel] (0 where immaterial or before a
    window fills), and the least jump that is material [cell, channel]."""

    slow: Array
    fast: Array
    slow_scores: Array
    fast_scores: Array
    least: Array


def statistics(clock: Clock, start: int = 0, spans: Mapping[str, float] | None = None) -> Statistics:
    """Return both statistics of a clock's channels, from the data of cell `start` on; spans {channel: its range}."""
    n, c = clock.values.shape
    moved = np.maximum.accumulate(clock.values) - np.minimum.accumulate(clock.values)
    least = MATERIAL * np.maximum(moved, [(spans or {}).get(name, 0.0) for name in clock.names])
    slow, fast = np.zeros((n, c)), np.zeros((n, c))
    if n - start >= glr.LEAST:
        scan = glr.scan(clock.u, clock.values, start)
        slow[scan.at] = np.where(np.abs(scan.jumps) >= least[scan.at], scan.scores, 0.0)
    scores, sizes = jumps.jump_scores(clock.u[start:], clock.values[start:])
    fast[start:] = np.where(sizes >= least[start:], scores, 0.0)
    return Statistics(glr.most(slow), glr.most(fast), slow, fast, least)


def strongest(scores: Array) -> list[int]:
    """Return the channels that carry it, strongest first: at least a third as strong as the first."""
    order = np.argsort(-scores, kind="stable")
    return [int(c) for c in order if scores[c] > 0 and scores[c] >= scores[order[0]] / 3]


def shapes(clock: Clock, carriers: Sequence[int], place: Place, at: int, start: int = 0) -> list[str]:
    """Return the verdict of each of the strongest carriers, judged from the cells `start` to `at` alone."""
    u = clock.u[start : at + 1]
    near = np.flatnonzero(np.abs(u - place.centre) <= verdicts.REACH + place.width / 2) + start
    return [verdicts.elect(clock.u[near], clock.values[near, c]).verdict for c in carriers[: glr.TOP]]


def passes(clock: Clock, seen: Statistics, at: int, start: int, by_glr: bool) -> bool:
    """Say whether an alarm may ring at cell `at`, from the cells up to it."""
    first = strongest((seen.slow_scores if by_glr else seen.fast_scores)[at])[: glr.TOP]
    place = locate(clock.u, clock.values, at, start, first)
    if place is None or place.width_low >= WIDEST or (np.abs(place.jumps) < seen.least[at, first]).all():
        return False
    return verdicts.commonest(shapes(clock, first, place, at, start)) != verdicts.SMOOTH


def largest(clock: Clock, floors: tuple[float, float]) -> tuple[float, float]:
    """Return the largest GLR and derivative total of a cell that passes, or the floor where none above it does."""
    seen = statistics(clock)
    found = []
    for total, floor, by_glr in ((seen.slow, floors[0], True), (seen.fast, floors[1], False)):
        order = [int(t) for t in np.argsort(-total, kind="stable") if total[t] > floor]
        at = next((t for t in order if passes(clock, seen, t, 0, by_glr)), None)
        found.append(floor if at is None else float(total[at]))
    return found[0], found[1]
