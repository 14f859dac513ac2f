"""Modular addition beside the plain reference loop: `python -m benchmarks.recipes [--rounds n] [--device cuda]`

The reference loop is what the published code does, in the same process on the same model, pairs, thread and device:
forward of all three positions, cross-entropy of the last one in float64, autograd, torch.optim.AdamW (betas .9, .98),
full batch. Unlike the published code it does not evaluate the test loss at every step. It is measured twice: with the
forward of NativeModel (nn.Linear), and with the published code's own forward, written in einsum. Ours is the recipe's
`update`. All take turns, three steps at a time; seconds are the process's own CPU seconds (one thread), so
that other programs do not count (on a GPU the clock's, all work awaited), and a rate is 1 / median seconds of a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import table
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

    model = recipe.build(params).to(params.device)
    rows, p = task.split(params.p, params.train_fraction, params.seed)[0], params.p
    x, y = (t.to(params.device) for t in (task.all_inputs(p)[rows], task.answers(task.all_pairs(p)[rows], p)))
    free = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=params.lr, betas=(0.9, 0.98), weight_decay=params.weight_decay)

    def step() -> None:
        optimizer.zero_grad()
        logits = einsum_forward(live_weights(model), x) if einsum else model(x)
        F.cross_entropy(logits[:, -1].double(), y).backward()
        optimizer.step()

    return step


def times(steps: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the median seconds of a step of each, taking turns; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            for _ in range(TURN):
                began = clock()
                step()
                taken[name].append(clock() - began)
    return {name: statistics.median(seconds[TURN:]) for name, seconds in taken.items()}


def speed(rounds: int, device: str) -> None:
    """Print steps per second and ratios."""
    from backend.runs.recipes import modular_addition as recipe

    head("modular addition", "loop", "steps/s", "x NativeModel loop", "x einsum loop", "load")
    for words, chosen in SETTINGS.items():
        params = {dtype: recipe.ModularAdditionParams(**{**chosen, "dtype": dtype, "device": device})
                  for dtype in ("float32", "bfloat16")}  # fmt: skip
        steps = {"reference, NativeModel": reference(params["float32"], False),
                 "reference, einsum": reference(params["float32"], True),
                 **{f"ours, {d}": recipe.make_training(own).update for d, own in params.items()}}  # fmt: skip
        found = times(steps, rounds, table.clock(device))
        native, einsum = found["reference, NativeModel"], found["reference, einsum"]
        for name, seconds in found.items():
            line(words, name, f"{1 / seconds:.1f}", f"{native / seconds:.2f}", f"{einsum / seconds:.2f}",
                 f"{os.getloadavg()[0]:.1f}")  # fmt: skip


def main() -> None:
    """Read the command line and print the table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="turns of 3 steps each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    speed(asked.rounds, asked.device)


if __name__ == "__main__":
    main()
