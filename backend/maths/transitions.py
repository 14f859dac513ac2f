"""Find the transitions of one run while it trains: where, how wide, in which channels, and how late we knew.

Two statistics run along the cells of `logstep`: the windowed GLR (`glr`) and the detrended derivative (`jumps`). A
cell where one exceeds its threshold is an alarm; it looks at nothing after that cell. For the next REFINE cells the
estimate (step, interval, width, channels) may sharpen, the alarm itself never moves; then the event is closed and the
search begins anew behind it. Thresholds (thresholds.json) hold false alarms to FALSE_ALARMS per run over simulated runs
without a transition: `python -m benchmarks.detection --calibrate` made them.

What is found is a *change faster than its surroundings*: narrower than about one unit of ln-step. A slow crossover,
such as exp(-step/tau), is smooth to it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import log, log2
from pathlib import Path

import numpy as np

from backend.maths import glr, jumps
from backend.maths.locate import Place, locate
from backend.maths.logstep import Array, Clock, clocks

VERSION = 1
FALSE_ALARMS = 0.05
#: cells after the alarm during which the estimate is refined
REFINE = 12
#: a change below this share of what the channel has moved so far carries nothing
MATERIAL = 0.05
THRESHOLDS = Path(__file__).with_name("thresholds.json")


@dataclass(frozen=True)
class Alarm:
    """One transition. `step`, `low`, `high` in steps (interval: 90 %), widths in ln-step, `delay` in steps.

    `channels` carried it, strongest first; `method` is glr or derivative; `size` is the jump of the first channel over
    what it has moved in all; `closed` says that the estimate no longer changes.
    """

    step: float
    low: float
    high: float
    width: float
    width_low: float
    width_high: float
    channels: tuple[str, ...]
    alarm_step: int
    score: float
    threshold: float
    method: str
    size: float
    closed: bool

    @property
    def delay(self) -> float:
        """Steps between the estimate and the alarm; negative where it rang in the middle of the change."""
        return self.alarm_step - self.step


@cache
def _table() -> dict[str, dict[str, list[float]]]:
    return json.loads(THRESHOLDS.read_text())


def threshold(method: str, channels: int, groups: int = 1) -> float:
    """Return the threshold of `glr` or `derivative` for so many channels; with several clocks each gets its share.

    Between the simulated numbers of channels: linear in log2; the tail beyond the simulated level: exponential.
    """
    t = _table()[method]
    known = [log2(c) for c in t["channels"]]
    level, slope = (float(np.interp(log2(channels), known, t[key])) for key in ("threshold", "per_ln_rate"))
    more = max(log2(channels) - known[-1], 0.0) * (t["threshold"][-1] - t["threshold"][-2])
    return level + more + slope * log(groups)


def detect(
    series: Mapping[str, tuple[Array, Array]], logs: Collection[str] = (), thresholds: tuple[float, float] | None = None
) -> list[Alarm]:
    """Return the transitions of a run, in the order of their alarms.

    Args: series {channel: (steps [n], values [n])}, irregular, unsorted, with gaps or NaN as they come; `logs`: the
        channels whose logarithm is taken (losses: they may span decades); `thresholds`: (glr, derivative) in place of
        the calibrated ones.
    Cost: about 0.1 ms per cell at 64 channels.
    """
    groups = clocks(series, logs)
    found: list[Alarm] = []
    for clock in groups:
        limits = thresholds or tuple(threshold(m, len(clock.names), len(groups)) for m in ("glr", "derivative"))
        found += _alarms(clock, *limits)
    return _merged(sorted(found, key=lambda a: a.alarm_step))


def statistics(clock: Clock, start: int = 0) -> tuple[Array, Array, Array, Array]:
    """Return (GLR total, derivative total) [cell] and their scores [cell, channel] from cell `start` on; 0 before."""
    n, c = clock.values.shape
    slow, fast = np.zeros((n, c)), np.zeros((n, c))
    if n - start >= glr.LEAST:
        scan = glr.scan(clock.u, clock.values, start)
        slow[scan.at] = scan.scores
    fast[start:] = jumps.jump_scores(clock.u[start:], clock.values[start:])
    return glr.most(slow), glr.most(fast), slow, fast


def _alarms(clock: Clock, slow_limit: float, fast_limit: float) -> list[Alarm]:
    found, start, quiet = [], 0, 0
    while True:
        slow, fast, slow_scores, fast_scores = statistics(clock, start)
        over = np.flatnonzero(np.maximum(slow / slow_limit, fast / fast_limit)[quiet:] > 1)
        event = next((e for t in over if (e := _event(clock, int(t) + quiet, start, slow, slow_limit, fast,
                                                      fast_limit, slow_scores, fast_scores))), None)  # fmt: skip
        if event is None:
            return found
        alarm, ends, at = event
        found.append(alarm)
        if not alarm.closed:
            return found
        start = max(int(np.searchsorted(clock.u, ends)), start + 1)
        quiet = max(at + REFINE + 1, start)


def _event(
    clock: Clock, at: int, start: int, slow: Array, slow_limit: float, fast: Array, fast_limit: float,
    slow_scores: Array, fast_scores: Array,
) -> tuple[Alarm, float, int] | None:  # fmt: skip
    """Return the alarm of cell `at` as it is known now, where its change ends (ln-step) and its cell; None where the
    change is immaterial."""
    by_glr = slow[at] >= slow_limit
    scores = slow_scores if by_glr else fast_scores
    last = min(at + REFINE, len(clock.u) - 1)
    best = at + int(slow[at : last + 1].argmax()) if slow[at : last + 1].max() > 0 else last
    ranked = np.argsort(-np.maximum(slow_scores[best], 0) if slow[best] > slow_limit else -scores[at], kind="stable")
    moved = np.ptp(clock.values[: at + 1], axis=0)
    carriers = [int(c) for c in ranked[: glr.TOP] if scores[at, c] > 0]
    place = locate(clock.u, clock.values, best, start, carriers)
    if place is None or max(abs(place.jumps) / np.maximum(moved[carriers], 1e-300)) < MATERIAL:
        return None
    score, limit = (slow[at], slow_limit) if by_glr else (fast[at], fast_limit)
    alarm = _alarm(clock, at, place, _named(clock, ranked, slow_scores[best], scores[at], carriers),
                   float(abs(place.jumps[0]) / moved[carriers[0]]), float(score), float(limit),
                   "glr" if by_glr else "derivative", last == at + REFINE)  # fmt: skip
    return alarm, place.centre + place.width / 2, at


def _named(clock: Clock, ranked: Array, slow: Array, scores: Array, carriers: list[int]) -> tuple[str, ...]:
    """Name the channels: those that carried the mean, and every other at least half as strong as the first."""
    strong = [int(c) for c in ranked if slow[c] > 0 and slow[c] >= slow[ranked[0]] / 2]
    return tuple(clock.names[c] for c in dict.fromkeys([*carriers, *strong]))


def _alarm(
    clock: Clock, at: int, place: Place, channels: tuple[str, ...], size: float, score: float, limit: float,
    method: str, closed: bool,
) -> Alarm:  # fmt: skip
    step, low, high = (float(np.exp(x)) for x in (place.centre, place.low, place.high))
    return Alarm(step, low, high, place.width, place.width_low, place.width_high, channels, int(clock.steps[at]),
                 score, limit, method, size, closed)  # fmt: skip


def _merged(alarms: list[Alarm]) -> list[Alarm]:
    """Join alarms of one change that rang on several clocks: the first to ring stays, the stronger one places it."""
    kept: list[Alarm] = []
    for new in alarms:
        same = next((i for i, old in enumerate(kept) if _one_event(old, new)), None)
        if same is None:
            kept.append(new)
            continue
        old = kept[same]
        strong, weak = (old, new) if old.score / old.threshold >= new.score / new.threshold else (new, old)
        names = tuple(dict.fromkeys([*strong.channels, *weak.channels]))
        kept[same] = replace(strong, channels=names, alarm_step=old.alarm_step, score=old.score,
                             threshold=old.threshold, method=old.method, closed=old.closed and new.closed)  # fmt: skip
    return kept


def _one_event(a: Alarm, b: Alarm) -> bool:
    apart = abs(log(a.step / b.step))
    return (a.low <= b.high and b.low <= a.high) or apart <= (a.width + b.width) / 2 + 0.1
