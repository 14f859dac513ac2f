"""What the induction recipe's measuring costs at its default cadence: `python -m benchmarks.monitors`.

Two copies of one training advance in one process, step by step in turn: one only updates, the other also takes every
reading its cadence asks for, notes its update and writes the line. Checkpoints are left out (see benchmarks.recorder).
Overhead: the second's seconds over the first's, minus 1; beside it the readings alone as a share of the bare steps,
which the noise of two interleaved updates does not touch. Then the price of each reading.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from backend import monitors
from backend.runs.recorder import Recorder
from benchmarks.table import head, line


def interleaved(steps: int, folder: Path) -> tuple[list[float], list[float], list[float]]:
    """Return seconds per step of the bare and of the measured training, and of the measured one's readings alone."""
    from backend.runs.recipes import induction

    params = induction.InductionParams(steps=steps, device="cpu")
    bare, full = induction.make_training(params), induction.make_training(params)
    plain, measured, readings = [], [], []
    with Recorder(folder / "r") as run:
        for step in range(steps):
            if step % 2:  # who goes first changes, so that what the first leaves in the caches favours neither
                plain.append(seconds(bare.update))
            began = time.perf_counter()
            full.step(step + 1)
            stepped = time.perf_counter()
            if full.due(step + 1):
                full.log(run, step + 1)
            ended = time.perf_counter()
            measured.append(ended - began)
            readings.append(ended - stepped)
            if not step % 2:
                plain.append(seconds(bare.update))
    return plain, measured, readings


def prices() -> None:
    """Print the time of each reading against a bare step."""
    from backend.runs.recipes import induction

    training = induction.make_training(induction.InductionParams(device="cpu"))
    step = _median(training.update, 40)
    assert training.observe is not None
    seen = training.observe()
    line("one bare step", f"{step * 1e3:.2f} ms", "1")
    rows = [("cheap line: 8 + 16 rows, 21 numbers", training.measure),
            ("observation for the slow monitors, 16 rows", training.observe),
            *((f"monitor {name}", lambda name=name: monitors.measure([name], seen)) for name in training.monitors)]
    for what, work in rows:
        took = _median(work, 20)
        line(what, f"{took * 1e3:.2f} ms", f"{took / step:.3f}")


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _median(work: Callable[[], object], times: int) -> float:
    return float(np.median([seconds(work) for _ in range(times)]))


def main() -> None:
    """Print the table."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitors", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1200, help="interleaved steps; default: a whole run")
    steps = parser.parse_args().steps
    head("what", "time", "of a bare step")
    with tempfile.TemporaryDirectory() as folder:
        plain, measured, readings = interleaved(steps, Path(folder))
    n = sum(r > 5e-4 for r in readings)  # a step without a reading only asks whether one is due
    line(f"bare: {steps} steps", f"{sum(plain):.2f} s", "1")
    line(f"measured: the same steps, {n} lines", f"{sum(measured):.2f} s", f"{sum(measured) / sum(plain):.4f}")
    line("readings and lines alone, all steps", f"{sum(readings):.2f} s", f"{sum(readings) / sum(plain):.4f}")
    prices()
    line("load of the machine (1 min)", f"{os.getloadavg()[0]:.1f}", "")


if __name__ == "__main__":
    main()
