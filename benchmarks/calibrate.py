"""Thresholds of detection from simulated runs without a transition: `python -m benchmarks.detection --calibrate`.

A null run's peak is its largest statistic at a cell that passes the gates. Gates cost more than statistics, so only the
KEPT largest peaks of all runs are found, exactly: a cell below the least of them cannot change it and is not asked.
"""

from __future__ import annotations

import heapq
import json

import numpy as np

from backend.maths import gates, transitions
from backend.maths.logstep import Clock, clocks
from benchmarks import curves

CHANNELS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
POINTS = (30, 60, 120, 200, 300, 400)
#: of the false alarms per run, the share of each statistic
RATES = {"glr": 0.04, "derivative": 0.01}


def null_clock(seed: list[int], channels: int) -> Clock | None:
    """Return the cells of one simulated null run, None where none of its steps has a logarithm."""
    rng = np.random.default_rng(seed)
    steps, values = curves.null_run(rng, int(rng.choice(POINTS)), channels, curves.CALIBRATION)
    found = clocks({f"c{i:02}": (steps, values[:, i]) for i in range(channels)})
    return found[0] if found else None


def largest(channels: int, runs: int, seed: int) -> dict[str, list[float]]:
    """Return, for each statistic, the largest peaks of so many null runs, ascending; their number as RATES needs."""
    heaps: dict[str, list[float]] = {m: [0.0] * (int(rate * runs) + 2) for m, rate in RATES.items()}
    for run in range(runs):
        clock = null_clock([seed, channels, run], channels)
        if clock is not None:
            floors = (heaps["glr"][0], heaps["derivative"][0])
            for heap, peak in zip(heaps.values(), gates.largest(clock, floors), strict=True):
                heapq.heappushpop(heap, peak)
    return {m: sorted(heap) for m, heap in heaps.items()}


def calibrate(runs: int = 600, seed: int = 20261121) -> dict[str, dict[str, list[float]]]:
    """Return the table of thresholds; takes some CPU minutes."""
    table: dict = {m: {"channels": list(CHANNELS), "threshold": [], "per_ln_rate": []} for m in RATES}
    for channels in CHANNELS:
        for method, peaks in largest(channels, runs, seed).items():
            level, rarer = (peaks[-int(RATES[method] * runs / part) - 1] for part in (1, 4))
            table[method]["threshold"].append(round(level, 2))
            table[method]["per_ln_rate"].append(round((rarer - level) / np.log(4), 2))
    return table


def write() -> None:
    """Write the table where `transitions` reads it."""
    transitions.THRESHOLDS.write_text(json.dumps(calibrate(), indent=1) + "\n")
