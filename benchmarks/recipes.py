"""Modular addition beside the plain reference loop, and what logging costs: `python -m benchmarks.recipes [--rounds n]`

The reference loop is what the published code does, in the same process on the same model, pairs, thread and device:
forward of all three positions, cross-entropy of the last one in float64, autograd, torch.optim.AdamW (betas .9, .98),
full batch. Unlike the published code it does not evaluate the test loss at every step. It is measured twice: with the
forward of NativeModel (nn.Linear), and with the published code's own forward, written in einsum. Ours is the recipe's
`update`. All take turns, three steps at a time; seconds are the process's own CPU seconds (one thread), so
that other programs do not count, and a rate is 1 / median seconds of a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.table import head, line

SETTINGS = {"p = 113, f = .3": {"p": 113, "train_fraction": 0.3, "lr": 1e-3}, "p = 59, f = .5 (live)": {}}
TURN = 3  # steps of one kind in a row: what one leaves in the caches is not charged to the next


def einsum_forward(weights: dict[str, Any], tokens: Any) -> Any:
    """The published code's forward of all positions, in einsum: logits [rows, 3, d_vocab_out]."""
    import torch

    x = weights["W_E"][tokens] + weights["W_pos"]
    q, k, v = (torch.einsum("bpd,hde->bhpe", x, weights[f"W_{n}"][0]) for n in "QKV")
    scores = torch.einsum("bhqe,bhke->bhqk", q, k) / q.shape[-1] ** 0.5
    hidden = torch.ones(3, 3, dtype=torch.bool, device=tokens.device).triu(1)
    pattern = scores.masked_fill(hidden, -1e10).softmax(-1)
    z = torch.einsum("bhke,bhqk->bqhe", v, pattern)
    mid = x + torch.einsum("bqhe,hed->bqd", z, weights["W_O"][0])
    neurons = torch.relu(torch.einsum("bpd,dm->bpm", mid, weights["W_in"][0]) + weights["b_in"][0])
    out = mid + torch.einsum("bpm,md->bpd", neurons, weights["W_out"][0]) + weights["b_out"][0]
    return out @ weights["W_U"]


def reference(params: Any, einsum: bool) -> Callable[[], None]:
    """Return one step of the reference loop."""
    import torch
    import torch.nn.functional as F

    from backend.maths import modular_addition as task
    from backend.models.observe import live_weights
    from backend.runs.recipes import modular_addition as recipe

    model = recipe.build(params)
    rows, p = task.split(params.p, params.train_fraction, params.seed)[0], params.p
    x, y = task.all_inputs(p)[rows], task.answers(task.all_pairs(p)[rows], p)
    free = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=params.lr, betas=(0.9, 0.98), weight_decay=params.weight_decay)

    def step() -> None:
        optimizer.zero_grad()
        logits = einsum_forward(live_weights(model), x) if einsum else model(x)
        F.cross_entropy(logits[:, -1].double(), y).backward()
        optimizer.step()

    return step


def times(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of a step of each, taking turns; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            for _ in range(TURN):
                began = time.process_time()
                step()
                taken[name].append(time.process_time() - began)
    return {name: statistics.median(seconds[TURN:]) for name, seconds in taken.items()}


def speed(rounds: int) -> None:
    """Print steps per second and ratios."""
    from backend.runs.recipes import modular_addition as recipe

    head("modular addition", "loop", "steps/s", "x NativeModel loop", "x einsum loop", "load")
    for words, chosen in SETTINGS.items():
        params = {dtype: recipe.ModularAdditionParams(**{**chosen, "dtype": dtype, "device": "cpu"})
                  for dtype in ("float32", "bfloat16")}  # fmt: skip
        steps = {"reference, NativeModel": reference(params["float32"], False),
                 "reference, einsum": reference(params["float32"], True),
                 **{f"ours, {d}": recipe.make_training(own).update for d, own in params.items()}}  # fmt: skip
        found = times(steps, rounds)
        native, einsum = found["reference, NativeModel"], found["reference, einsum"]
        for name, seconds in found.items():
            line(words, name, f"{1 / seconds:.1f}", f"{native / seconds:.2f}", f"{einsum / seconds:.2f}",
                 f"{os.getloadavg()[0]:.1f}")  # fmt: skip


def logging(rounds: int) -> None:
    """Print what logging costs of a step at the default cadence: each reading is timed beside the bare step."""
    from backend.runs.recipes import modular_addition as recipe
    from backend.runs.recorder import Recorder

    head("logging of modular addition", "ms a step", "cheap: ms, every", "monitors: ms more, every", "of step time")
    presets = {f"{p.name}, {p.runs[0].get('dtype', 'float32')}": p.runs[0] for p in recipe.PRESETS}
    presets["p = 113, float32, defaults"] = {"p": 113, "train_fraction": 0.3, "lr": 1e-3}
    for name, chosen in presets.items():
        params = recipe.ModularAdditionParams(**{**chosen, "device": "cpu"})
        training = recipe.make_training(params)
        with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder) / "run") as run:
            found = _readings(training, run, params, rounds)
        step, cheap, slow = (found[kind] for kind in ("step", "cheap", "all"))
        share = (cheap - step) / params.log_every + (slow - cheap) / params.monitor_every
        line(name, f"{step * 1e3:.1f}", f"{(cheap - step) * 1e3:.2f}, {params.log_every}",
             f"{(slow - cheap) * 1e3:.1f}, {params.monitor_every}", f"{share / step:.1%}")  # fmt: skip


def _readings(training: Any, run: Any, params: Any, rounds: int) -> dict[str, float]:
    """Return median seconds of a bare step, of one with the cheap line, of one with the monitors too; all written."""

    def logged(at: int) -> Callable[[], None]:
        def step() -> None:
            training.step(at)
            training.log(run, at)

        return step

    cheap = next(n for n in range(params.log_every, 10**6, params.log_every) if n % params.monitor_every)
    return times({"step": lambda: training.step(1), "cheap": logged(cheap),
                  "all": logged(params.log_every * params.monitor_every)}, rounds)  # fmt: skip


def main() -> None:
    """Read the command line and print both tables."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="turns of 3 steps each")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    speed(rounds)
    print()
    logging(rounds)


if __name__ == "__main__":
    main()
