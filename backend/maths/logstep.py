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
    """Channels logged at the same steps: `u` [cell], `steps` [cell] (its last one), `values` [cell, channel]."""

    names: tuple[str, ...]
    u: Array
    steps: Array
    values: Array


def clocks(series: Mapping[str, tuple[Array, Array]], logs: Collection[str] = ()) -> list[Clock]:
    """Return one Clock per set of steps, of series {name: (steps [n], values [n])} in any order of points.

    Of a repeated step the last value counts. A value that is not finite, or not positive in a channel of `logs` (whose
    logarithm is taken), is unknown: the last known one stands in, before the first known one that one. So, from its
    first known number on, neither the clocks nor a cell depend on what comes later.
    """
    groups: dict[bytes, tuple[Array, list[tuple[str, Array]]]] = {}
    for name in sorted(series):
        steps, values = _last_of_each(*series[name])
        groups.setdefault(steps.tobytes(), (steps, []))[1].append((name, _known(values, name in logs)))
    return [_clock(steps, members) for steps, members in groups.values() if len(steps)]


def clean(steps: Array, values: Array, log: bool = False) -> tuple[Array, Array]:
    """Return the known points with step > 0, ascending, the last of a repeated step; ln(values) where `log`."""
    steps, values = _last_of_each(steps, values)
    keep = _good(values, log)
    return steps[keep], np.log(values[keep]) if log else values[keep]


def _last_of_each(steps: Array, values: Array) -> tuple[Array, Array]:
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    real = np.isfinite(steps) & (steps > 0)
    steps, values = steps[real], values[real]
    unique, last = np.unique(steps[::-1], return_index=True)
    return unique, values[::-1][last]


def _good(values: Array, log: bool) -> NDArray[np.bool_]:
    return np.isfinite(values) & (np.abs(values) < 1e150) & ((values > 0) | (not log))


def _known(values: Array, log: bool) -> Array:
    good = _good(values, log)
    if not good.any():
        return np.zeros_like(values)
    last = np.maximum.accumulate(np.where(good, np.arange(len(values)), -1))
    held = values[np.where(last < 0, int(good.argmax()), last)]
    return np.log(held) if log else held


def _clock(steps: Array, members: list[tuple[str, Array]]) -> Clock:
    u, ends = np.log(steps), cell_ends(np.log(steps))
    values = np.stack([v for _, v in members], axis=1)
    starts, count = np.concatenate([[0], ends[:-1] + 1]), np.diff(ends, prepend=-1)[:, None]
    base = values[:1]  # taken off before the mean, so that the mean of a constant is that constant to the last bit
    middle = np.add.reduceat(u[: ends[-1] + 1], starts) / count[:, 0]
    mean = base + np.add.reduceat(values[: ends[-1] + 1] - base, starts, axis=0) / count
    return Clock(tuple(n for n, _ in members), middle, steps[ends], mean)


def cell_ends(u: Array) -> NDArray[np.int64]:
    """Return the index of the point that closes each cell, of ascending u."""
    ends, at = [], 0
    while at < len(u):
        ends.append(at)
        at = int(np.searchsorted(u, u[at] + GRID * (1 - 1e-9)))
    return np.array(ends, dtype=np.int64)
