"""Find the transitions of one run while it trains: where, how wide, in which channels, and how late we knew.

Two statistics run along the cells of `logstep`: the windowed GLR (`glr`) and the detrended derivative (`jumps`). A
cell where one exceeds its threshold and the gates (`gates`: material, narrow, not smooth so far) let it pass is an
alarm; it looks at nothing after that cell. For the next REFINE cells the estimate (step, interval, width, channels) may
sharpen, the alarm itself never moves; then the event is closed. What has turned out smooth by then, or when the run
has ended, is withdrawn and the search goes on as if it had not rung; else it begins anew behind the change. Thresholds
(thresholds.json) hold alarms, withdrawn ones too, to FALSE_ALARMS per run over simulated runs without a transition:
`python -m benchmarks.detection --calibrate` made them.

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

from backend.maths import gates, glr, verdicts
from backend.maths.locate import Place, locate
from backend.maths.logstep import Array, Clock, clocks

VERSION = 5
FALSE_ALARMS = 0.05
#: cells after the alarm during which the estimate is refined
REFINE = 16
THRESHOLDS = Path(__file__).with_name("thresholds.json")


@dataclass(frozen=True)
class Alarm:
    """One transition. `step`, `low`, `high` in steps (interval: 90 %), widths in ln-step, `delay` in steps.

    `channels` carried it, strongest first; `method` is glr or derivative; `size` is the jump of the first channel over
    what it has moved in all; `closed` says that the estimate no longer changes. `verdict` is the shape of its channels
    by the cells up to the closing one; `withdrawn`: it rang, and has turned out smooth.
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
    verdict: str
    withdrawn: bool = False

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
    series: Mapping[str, tuple[Array, Array]], logs: Collection[str] = (),
    thresholds: tuple[float, float] | None = None, spans: Mapping[str, float] | None = None, ended: bool = False,
    keep_withdrawn: bool = False,
) -> list[Alarm]:  # fmt: skip
    """Return the transitions of a run, in the order of their alarms.

    Args: series {channel: (steps [n], values [n])}, irregular, unsorted, with gaps or NaN as they come; `logs`: the
        channels whose logarithm is taken (losses: they may span decades); `thresholds`: (glr, derivative) in place of
        the calibrated ones; `spans` {channel: the range it can move over}, where it has one; `ended`: no more points
        will come, so what turns out smooth is withdrawn though not closed; `keep_withdrawn`: return those too: then
        this is all that rang.
    Cost: about 0.1 ms per cell at 64 channels, and about 5 ms per cell above its threshold.
    """
    groups = clocks(series, logs)
    found: list[Alarm] = []
    for clock in groups:
        c, g = len(clock.names), len(groups)
        limits = thresholds or (threshold("glr", c, g), threshold("derivative", c, g))
        found += _alarms(clock, limits, spans or {}, ended)
    found.sort(key=lambda a: a.alarm_step)
    kept = _merged([a for a in found if not a.withdrawn])
    gone = [a for a in found if a.withdrawn] if keep_withdrawn else []
    return sorted([*kept, *gone], key=lambda a: a.alarm_step)


def _alarms(clock: Clock, limits: tuple[float, float], spans: Mapping[str, float], ended: bool) -> list[Alarm]:
    found: list[Alarm] = []
    start = quiet = 0
    while True:
        seen = gates.statistics(clock, start, spans)
        over = np.flatnonzero((seen.slow > limits[0]) | (seen.fast > limits[1]))
        rung = (t for t in over[over >= quiet] if gates.passes(clock, seen, t, start, seen.slow[t] > limits[0]))
        at = next(rung, None)
        if at is None:
            return found
        alarm, end = _event(clock, seen, limits, int(at), start, ended)
        found.append(alarm)
        if not alarm.closed:
            return found
        quiet = int(at) + REFINE + 1
        if not alarm.withdrawn:
            start = max(int(np.searchsorted(clock.u, end)), start + 1)
            quiet = max(quiet, start)


def _event(
    clock: Clock, seen: gates.Statistics, limits: tuple[float, float], at: int, start: int, ended: bool
) -> tuple[Alarm, float]:
    """Return the alarm of cell `at` as known now, and where its change ends (ln-step)."""
    by_glr = bool(seen.slow[at] > limits[0])
    rang = gates.strongest((seen.slow_scores if by_glr else seen.fast_scores)[at])[: glr.TOP]
    last = min(at + REFINE, len(clock.u) - 1)
    closed = last == at + REFINE
    carriers, place, verdict = _explained(clock, seen, rang, (at, last), start, limits[0])
    moved = np.maximum(np.ptp(clock.values[: at + 1, carriers[0]]), 1e-300)
    step, low, high = (float(np.exp(x)) for x in (place.centre, place.low, place.high))
    return Alarm(
        step, low, high, place.width, place.width_low, place.width_high, tuple(clock.names[c] for c in carriers),
        int(clock.steps[at]), float((seen.slow if by_glr else seen.fast)[at]), limits[0 if by_glr else 1],
        "glr" if by_glr else "derivative", float(abs(place.jumps[0]) / moved), closed, verdict,
        verdict == verdicts.SMOOTH and (closed or ended),
    ), place.centre + place.width / 2  # fmt: skip


def _explained(
    clock: Clock, seen: gates.Statistics, rang: list[int], cells: tuple[int, int], start: int, limit: float
) -> tuple[list[int], Place, str]:
    """Return (carriers, place, verdict) of an alarm from the cells since: what rang says where, so that a channel that
    bends later does not take the event over; where those turn out smooth, whatever carries most by now may speak."""
    at, last = cells
    told = []
    for who in (rang, []):
        total = glr.most(seen.slow_scores[at : last + 1][:, who or slice(None)])
        best = last if total[-1] > limit else at + int(total.argmax())  # the latest that still sees it sees most of it
        most = gates.strongest(seen.slow_scores[best])
        carriers = who or most or rang
        place = locate(clock.u, clock.values, best, start, carriers[: glr.TOP])
        assert place is not None  # its window holds that of the alarm, which passed
        verdict = verdicts.left(gates.shapes(clock, carriers, place, last, start))
        also = [c for c in most if c not in carriers
                and gates.shapes(clock, [c], place, last, start) != [verdicts.SMOOTH]]  # fmt: skip
        told.append((carriers + also, place, verdict))
        if verdict != verdicts.SMOOTH:
            return told[-1]
    return told[0]


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
