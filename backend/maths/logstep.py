"""Put metric series of a run on a causal grid in u = ln(step): one clock per set of steps.

A change of training shows in ln(step) (a power law is a line there), yet runs log at any cadence. A *cell* closes at
the first point that lies GRID or more after the last closed one; its value is the mean of the points since then. So
sparse points stay themselves, dense ones are averaged, nothing is interpolated, and a cell never depends on points
after its own end. Step 0 has no logarithm and is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: ln-step between two cells: 4 % of the step
GRID = 0.04


@dataclass(frozen=True)
class Clock:
    """Channels that were logged at the same steps: `u` [cell], `steps` [cell] (its last one), `values` [cell, channel]."""

    names: tuple[str, ...]
    u: Array
    steps: Array
    values: Array


def clocks(series: Mapping[str, tuple[Array, Array]], logs: Collection[str] = (), least: int = 12) -> list[Clock]:
    """Return one Clock per set of steps, of series {name: (steps [n], values [n])} in any order of points.

    Of a repeated step the last value counts; points that are not finite, and those not positive of a channel in
    `logs` (whose logarithm is taken), are left out. Channels that never move, or have fewer than `least` cells, are too.
    """
    groups: dict[bytes, tuple[Array, list[tuple[str, Array]]]] = {}
    for name in sorted(series):
        steps, values = clean(*series[name], log=name in logs)
        if len(steps) >= least and np.ptp(values) > 0:
            groups.setdefault(steps.tobytes(), (steps, []))[1].append((name, values))
    found = [_clock(steps, members) for steps, members in groups.values()]
    return [c for c in found if len(c.u) >= least]


def clean(steps: Array, values: Array, log: bool = False) -> tuple[Array, Array]:
    """Return finite points with step > 0, ascending, the last of a repeated step; ln(values) where `log`."""
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    keep = np.isfinite(steps) & np.isfinite(values) & (steps > 0) & (np.abs(values) < 1e150)
    if log:
        keep &= values > 0
    steps, values = steps[keep], values[keep]
    unique, last = np.unique(steps[::-1], return_index=True)
    values = values[::-1][last]
    return unique, np.log(values) if log else values


def _clock(steps: Array, members: list[tuple[str, Array]]) -> Clock:
    ends = cell_ends(np.log(steps))
    values = np.stack([v for _, v in members], axis=1)
    count = np.diff(ends, prepend=-1)[:, None]
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    whole = int(ends[-1]) + 1 if len(ends) else 0
    mean = [np.add.reduceat(x[:whole], starts, axis=0) / count for x in (np.log(steps)[:, None], values)]
    return Clock(tuple(n for n, _ in members), mean[0][:, 0], steps[ends], mean[1])


def cell_ends(u: Array) -> NDArray[np.int64]:
    """Return the index of the point that closes each cell, of ascending u."""
    ends, at = [], 0
    while at < len(u):
        ends.append(at)
        at = int(np.searchsorted(u, u[at] + GRID * (1 - 1e-9)))
    return np.array(ends, dtype=np.int64)
