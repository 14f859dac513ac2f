"""Thresholds of detection from simulated runs without a transition: `python -m benchmarks.detection --calibrate`."""

from __future__ import annotations

import json

import numpy as np

from backend.maths import transitions
from backend.maths.logstep import clocks
from benchmarks import curves

CHANNELS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
POINTS = (30, 60, 120, 200, 300, 400)
#: of the false alarms per run, the share of each statistic
RATES = {"glr": 0.04, "derivative": 0.01}


def largest(rng: np.random.Generator, channels: int, families: dict, fresh: bool = False) -> tuple[float, float]:
    """Return the largest GLR and derivative statistic of one simulated null run."""
    steps, values = curves.null_run(rng, int(rng.choice(POINTS)), channels, families, fresh)
    found = clocks({f"c{i:02}": (steps, values[:, i]) for i in range(channels)})
    if not found:
        return 0.0, 0.0
    seen = transitions.statistics(found[0])
    return float(seen.slow.max()), float(seen.fast.max())


def calibrate(runs: int = 1500, seed: int = 20261121) -> dict[str, dict[str, list[float]]]:
    """Return the table of thresholds; takes about two CPU minutes."""
    table: dict = {m: {"channels": list(CHANNELS), "threshold": [], "per_ln_rate": []} for m in RATES}
    for channels in CHANNELS:
        rng = np.random.default_rng([seed, channels])
        peaks = np.array([largest(rng, channels, curves.CALIBRATION) for _ in range(runs)])
        for column, (method, rate) in enumerate(RATES.items()):
            level, rarer = np.quantile(peaks[:, column], [1 - rate, 1 - rate / 4])
            table[method]["threshold"].append(round(float(level), 2))
            table[method]["per_ln_rate"].append(round(float((rarer - level) / np.log(4)), 2))
    return table


def write() -> None:
    """Write the table where `transitions` reads it."""
    transitions.THRESHOLDS.write_text(json.dumps(calibrate(), indent=1) + "\n")
