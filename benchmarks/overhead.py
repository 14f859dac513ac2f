"""What readings cost of training: `python -m benchmarks.overhead [recipe ...] [--seconds n] [--device cuda]`

At the recipe's defaults or a preset, with its own `update`, `measure`, `observe` and monitors, written by the Recorder.
Three kinds of blocks of three updates take turns: bare; the first update followed by a cheap line; the first followed
by a line with the monitors as well. What a reading costs is the median over rounds of the block with it minus the bare
block of the same round, so a slow spell of the machine hits both and a cold cache after a reading is charged to it.
Seconds are the process's own CPU seconds (one thread), on a GPU the clock's, all work awaited. The share is
n readings x cost / (steps x bare update), with n counted from the recipe's own schedule; checkpoints are left out.
Where it exceeds 3 %, the last column says by how much both cadences would have to be coarser.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.table import head, line

LIMIT = 0.03
BLOCK = 3  # updates
#: name shown -> (recipe, its preset, else params over the defaults)
CASES: dict[str, tuple[str, str | dict[str, Any]]] = {
    "induction": ("induction", {}), "induction, 1 layer": ("induction", {"n_layers": 1}),
    "modular_addition, live": ("modular_addition", "live"), "modular_addition, paper": ("modular_addition", "paper"),
    "markov_icl": ("markov_icl", {}), "char_lm": ("char_lm", {}), "linear_control": ("linear_control", {}),
}  # fmt: skip


@dataclass
class Cost:
    """CPU seconds of one update and of what a reading adds; how many readings the schedule holds."""

    step: float
    cheap: float
    slow: float
    steps: int
    n_cheap: int
    n_slow: int

    @property
    def shares(self) -> tuple[float, float]:
        """Return what cheap lines and monitors cost, each as a share of all bare updates."""
        whole = self.steps * self.step
        return self.n_cheap * self.cheap / whole, self.n_slow * self.slow / whole


def made(recipe: str, chosen: str | dict[str, Any], device: str) -> tuple[Any, Any]:
    """Return (params, Training) of a recipe's preset or of its defaults."""
    import importlib

    from backend.runs import recipes

    module = importlib.import_module(f"backend.runs.recipes.{recipe}")
    declared = recipes.get(recipe)
    if isinstance(chosen, str):
        chosen = dict(next(preset.runs[0] for preset in declared.presets if preset.name == chosen))
    params = declared.params(**{**chosen, "device": device})
    if recipe != "char_lm":
        return params, module.make_training(params)
    from backend.runs import corpus

    return params, module.make_training(params, corpus.load(params.text, params.max_characters))


def blocks(training: Any, run: Any, steps: int) -> dict[str, Callable[[], None]]:
    """Return a block of BLOCK updates of each kind: bare, with a cheap line, with the monitors too."""
    monitored = training.monitor_at if training.observe else (lambda step: False)
    quiet = next(n for n in range(1, steps) if not training.due(n))
    places = {"cheap": [n for n in range(1, steps) if training.due(n) and not monitored(n)],
              "slow": [n for n in range(1, steps) if monitored(n)]}  # fmt: skip

    def block(at: int | None) -> Callable[[], None]:
        def go() -> None:
            training.step(quiet if at is None else at)
            if at is not None:
                training.log(run, at)
            for _ in range(BLOCK - 1):
                training.step(quiet)

        return go

    return {"bare": block(None), **{kind: block(at[0]) for kind, at in places.items() if at}}


def cost(recipe: str, chosen: str | dict[str, Any], seconds: float, device: str) -> tuple[Any, Cost]:
    """Measure one recipe for about `seconds`; the first round warms up."""
    from backend.runs.recorder import Recorder

    params, training = made(recipe, chosen, device)
    schedule = range(params.steps + 1)
    n_cheap = sum(training.due(n) or n == params.steps for n in schedule)
    n_slow = sum(training.monitor_at(n) for n in schedule) if training.observe else 0
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder) / "run") as run:
        taken = _turns(blocks(training, run, params.steps), seconds, table.clock(device))
    bare = taken["bare"]
    more = {k: statistics.median(a - b for a, b in zip(v, bare, strict=True)) for k, v in taken.items()}
    slow = more["slow"] - more["cheap"] if "slow" in more else 0.0
    return params, Cost(statistics.median(bare) / BLOCK, more["cheap"], slow, params.steps, n_cheap, n_slow)


def _turns(
    kinds: dict[str, Callable[[], None]], seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the seconds of every block of each kind; who begins changes from round to round."""
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    began, names = time.monotonic(), list(kinds)
    for turn in itertools.count():
        for kind in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            kinds[kind]()
            taken[kind].append(clock() - start)
        if time.monotonic() - began > seconds and turn >= 8:
            return {kind: found[1:] for kind, found in taken.items()}
    raise AssertionError


def holding(params: Any, found: Cost) -> str:
    """Return a cadence at which readings would cost LIMIT (both coarser alike), '' where they do already."""
    coarser = sum(found.shares) / LIMIT
    if coarser <= 1:
        return ""
    names = ("log_every", "monitor_every") if found.n_slow else ("log_every",)
    return ", ".join(f"{name} {math.ceil(getattr(params, name) * coarser)}" for name in names)


def main() -> None:
    """Read the command line and print the table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", help=f"some of {', '.join(CASES)}; default all")
    parser.add_argument("--seconds", type=float, default=15, help="wall-clock seconds for each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    head("recipe", "ms an update", "cheap line: ms, how many", "monitors: ms more, how many", "lines + monitors",
         f"limit {LIMIT:.0%}", "cadence that would hold", "load")  # fmt: skip
    for name, (recipe, chosen) in CASES.items():
        if asked.recipes and name not in asked.recipes and recipe not in asked.recipes:
            continue
        params, c = cost(recipe, chosen, asked.seconds, asked.device)
        (lines, slow), share = c.shares, sum(c.shares)
        line(name, f"{c.step * 1e3:.2f}", f"{c.cheap * 1e3:.2f}, {c.n_cheap} of {c.steps}",
             f"{c.slow * 1e3:.2f}, {c.n_slow}" if c.n_slow else "none", f"{lines:.1%} + {slow:.1%} = {share:.1%}",
             "kept" if share <= LIMIT else "**missed**", holding(params, c), f"{os.getloadavg()[0]:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
