"""Detection of planted changes: `python -m benchmarks.detection [--calibrate] [--runs N]`.

Generators are fresh: none of their shapes or seeds made the thresholds of `maths/thresholds.json`. Every peer gets its
own threshold at 5 % false alarms per run from null runs of the same generators (other seeds), so that the peers are
compared at one rate; the rows `detect` are what the app runs, with its shipped thresholds. An alarm is early where it
rings before the change has begun, a detection from then on; the delay is in cells from the centre of the change.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from backend.maths import transitions
from backend.maths.glr import ramp
from backend.maths.logstep import Clock
from benchmarks import calibrate, curves, table
from benchmarks.detectors import PEERS, clock_of

RESULTS = Path(__file__).with_name("results") / "detection.csv"
SD, CHANNELS = 0.02, 6
FIELDS = ("generator", "jump", "width", "detector", "detection", "early", "median_delay_cells", "false_alarms_per_run",
          "se", "runs")  # fmt: skip
#: jump in units of the trend's amplitude; width as a share of the run's ln-steps: the reference's, and a wide one
JUMPS = ((0.1, 0.02), (0.2, 0.0), (0.2, 0.02), (0.5, 0.02), (0.5, 0.05), (-0.5, 0.02), (0.5, 0.15))

Generator = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def reference(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The reference's: 160 log-spaced points over 4 decades, a e^(-bu), AR(.5) noise of sd .02."""
    steps = np.unique(np.round(np.geomspace(1, 1e4, 210)))[-160:]
    u = curves.relative(np.log(steps))
    trend = np.stack([rng.uniform(0.5, 1.5) * np.exp(-rng.uniform(2, 4) * u) for _ in range(channels)], 1)
    return steps, trend + SD * curves.autoregressive(rng, len(u), channels, 0.5)


def mixed(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh shapes (curves.FRESH), 100 to 300 points, either cadence, AR(0 to .7), a third with heavy tails."""
    steps = curves.steps_of(rng, int(rng.integers(100, 300)))
    u, shapes = np.log(steps), list(curves.FRESH.values())
    trend = np.stack([shapes[rng.integers(len(shapes))](rng, u) for _ in range(channels)], 1)
    noise = curves.autoregressive(rng, len(u), channels, rng.uniform(0, 0.7), rng.random() < 1 / 3)
    return steps, trend + SD * noise


def linear(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """As runs log: every 20 steps to step 4000, white noise that is averaged in the later cells, a relaxation."""
    steps = np.arange(1, 201) * 20.0
    trend = np.stack([curves.two_relaxations(rng, np.log(steps)) for _ in range(channels)], 1)
    return steps, trend + SD * curves.autoregressive(rng, len(steps), channels, 0.0)


GENERATORS: dict[str, Generator] = {f.__name__: f for f in (reference, mixed, linear)}


def planted(
    rng: np.random.Generator, make: Generator, channels: int, jump: float, width: float
) -> tuple[Clock, float, float]:
    """Return (clock, centre, width in ln-step): the change sits in the middle half of the cells, in every channel."""
    steps, values = make(rng, channels)
    u = np.log(steps)
    clock = clock_of(steps, values)
    centre = float(clock.u[int(rng.uniform(0.4, 0.75) * len(clock.u))]) + rng.uniform(0, 0.03)
    wide = width * float(u[-1] - u[0])
    return clock_of(steps, values + jump * ramp(u, centre, wide)[:, None]), centre, wide


def first_above(statistic: np.ndarray, limit: float) -> int | None:
    over = np.flatnonzero(statistic > limit)
    return int(over[0]) if len(over) else None


def app(clock: Clock) -> int | None:
    """The first alarm that rings in `transitions.detect` with the thresholds it ships with, as a cell; also where it
    is withdrawn later."""
    series = {n: (np.exp(clock.u), clock.values[:, i]) for i, n in enumerate(clock.names)}
    found = transitions.detect(series, keep_withdrawn=True)
    return int(np.searchsorted(clock.steps, found[0].alarm_step * 0.999)) if found else None


#: what the app runs: its thresholds are not set here
APPS: dict[str, tuple[int, Callable[[Clock], int | None]]] = {
    "detect (as shipped), one channel": (1, app), "detect (as shipped), six channels": (CHANNELS, app),
}  # fmt: skip


def detectors(make: Generator, runs: int, seed: int) -> dict[str, tuple[int, Callable[[Clock], int | None]]]:
    """Return {name: (channels, clock -> cell of its first alarm)}, each at 5 % false alarms per null run."""
    found: dict[str, tuple[int, Callable[[Clock], int | None]]] = {}
    many = {"GLR, six channels": (CHANNELS, PEERS["GLR, one channel"])}
    for name, (channels, peer) in {**{n: (1, p) for n, p in PEERS.items()}, **many}.items():
        rng = np.random.default_rng([seed, 1, channels])
        peaks = [peer(clock_of(*make(rng, channels))).max() for _ in range(runs)]
        limit = float(np.quantile(peaks, 0.95))
        found[name] = (channels, lambda clock, peer=peer, limit=limit: first_above(peer(clock), limit))
    return {**found, **APPS}


def rows(runs: int, app_only: bool = False, seed: int = 404) -> Iterator[dict]:
    """Yield one row per generator, detector and scenario."""
    for g, (name, make) in enumerate(GENERATORS.items()):
        asked = APPS if app_only else detectors(make, 2 * runs, seed + g)
        for detector, (channels, ring) in asked.items():
            rng = np.random.default_rng([seed + g, 2, channels])
            false = np.mean([ring(clock_of(*make(rng, channels))) is not None for _ in range(2 * runs)])
            for jump, width in JUMPS:
                yield {"generator": name, "jump": jump, "width": width, "detector": detector, "runs": runs,
                       "false_alarms_per_run": round(float(false), 3),
                       **_scored(make, channels, ring, jump, width, runs, [seed + g, 3, channels])}  # fmt: skip


def _scored(
    make: Generator, channels: int, ring: Callable[[Clock], int | None], jump: float, width: float, runs: int,
    seed: list[int],
) -> dict:  # fmt: skip
    rng, early, delays = np.random.default_rng(seed), 0, []
    for _ in range(runs):
        clock, centre, wide = planted(rng, make, channels, jump, width)
        at = ring(clock)
        if at is not None and clock.u[at] < centre - wide / 2 - 0.02:
            early += 1
        elif at is not None:
            delays.append(at - int(np.searchsorted(clock.u, centre)))
    share = len(delays) / runs
    return {"detection": round(share, 3), "early": round(early / runs, 3),
            "median_delay_cells": float(np.median(delays)) if delays else "",
            "se": round(float(np.sqrt(max(share * (1 - share), 1 / runs) / runs)), 3)}  # fmt: skip


def false_alarms(runs: int, seed: int = 505) -> None:
    """Print how often the shipped detector rings over fresh null runs, by number of channels, with a 95 % interval;
    and how often an alarm is still there when the run has ended."""
    table.head("channels", "rung per run", "95 %", "left at the end", "runs")
    for channels in (1, 2, 3, 6, 16, 64):
        found = [_rings(np.random.default_rng([seed, channels, r]), channels) for r in range(runs)]
        rang, left = (sum(column) for column in zip(*found, strict=True))
        p = (rang + 2) / (runs + 4)  # Agresti and Coull (1998)
        half = 1.96 * np.sqrt(p * (1 - p) / (runs + 4))
        table.line(str(channels), f"{rang / runs:.3f}", f"{max(p - half, 0):.3f} to {p + half:.3f}",
                   f"{left / runs:.3f}", str(runs))  # fmt: skip


def _rings(rng: np.random.Generator, channels: int) -> tuple[bool, bool]:
    steps, values = curves.null_run(rng, int(rng.choice(calibrate.POINTS)), channels, curves.FRESH, fresh=True)
    series = {f"c{i:02}": (steps, values[:, i]) for i in range(channels)}
    found = transitions.detect(series, ended=True, keep_withdrawn=True)
    return bool(found), any(not a.withdrawn for a in found)


def peers_of(out: Path) -> list[dict]:
    """Return the kept rows of the peers, which neither gates nor thresholds of the app can change."""
    with open(out, newline="") as file:
        return [row for row in csv.DictReader(file) if row["detector"] not in APPS]


def speed() -> None:
    """Print the time of one whole detection of 64 channels x 400 points, beside the six-channel one."""
    table.head("channels x points", "ms, fastest of 9")
    for channels in (6, 64):
        steps, values = curves.null_run(np.random.default_rng(1), 400, channels, curves.FRESH, cadence="log")
        series = {f"c{i:02}": (steps, values[:, i]) for i in range(channels)}
        took = []
        for _ in range(9):
            start = time.perf_counter()
            transitions.detect(series)
            took.append(time.perf_counter() - start)
        table.line(f"{channels} x {len(steps)}", f"{min(took) * 1e3:.0f}")


def main() -> int:
    """Print the tables and write results/detection.csv, or calibrate."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--calibrate", action="store_true", help="simulate anew and write maths/thresholds.json")
    asked.add_argument("--runs", type=int, default=100, help="planted runs per row; nulls are twice as many")
    asked.add_argument("--out", default=str(RESULTS), help="CSV of the benchmark")
    asked.add_argument("--app-only", action="store_true", help="renew the rows `detect` alone; peers stay as they are")
    args = asked.parse_args()
    if args.calibrate:
        calibrate.write()
        return 0
    speed()
    false_alarms(4 * args.runs)
    table.head(*FIELDS)
    kept = peers_of(Path(args.out)) if args.app_only else []
    for row in rows(args.runs, args.app_only):
        kept.append(row)
        table.line(*(str(row[f]) for f in FIELDS))
    order = list(GENERATORS)
    kept.sort(key=lambda row: order.index(row["generator"]))
    Path(args.out).parent.mkdir(exist_ok=True)
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
