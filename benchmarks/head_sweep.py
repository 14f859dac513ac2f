"""The exact sweep over heads, batched, beside a loop over heads: `python -m benchmarks.head_sweep [--device cuda]`.

Every head's z is patched on its own (denoising) and logit_diff read, on the same model, weights and pairs in one
process. `loop` is what a notebook does: for each head one forward over all pairs with one hook, library and hooks the
same. `batched` is `activation_patching`'s sweep. Both are warmed up; times are the least of `--repeats`, taken in turn;
the largest difference of the two answers stands beside. Models: the shipped induction run and random GPT-2 shapes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from backend.analyses import _causal
from backend.contract import Model, parse_spec
from backend.jobs.cluster import MALLOC
from backend.models import prompts
from backend.models.open import open_model
from backend.settings import Settings
from benchmarks import bare
from benchmarks.table import head, line

TARGET = {"cpu": 2.0, "cuda": 10.0}
CASES = (("run:induction-demo", 1), ("run:induction-demo", 4), ("run:induction-demo", 16), ("tiny", 1), ("tiny", 16),
         ("gpt2-shape", 1), ("gpt2-shape", 4))  # fmt: skip


def loop(model: Model, batch: _causal.Batch, places: list[_causal.Place], source: Any) -> np.ndarray:
    """Return logit_diff [place, pair], one forward per head."""
    found = []
    for place in places:
        def patched(z: Any, place: _causal.Place = place) -> Any:
            z[:, :, place.head] = source["z", place.layer][:, :, place.head]
            return z

        logits = model.run_with(batch.corrupted, {("z", place.layer): patched})
        found.append(batch.logit_diff(logits).cpu().numpy())
    return np.stack(found)


def timed(work: Callable[[], np.ndarray], device: str) -> tuple[float, np.ndarray]:
    """Return seconds and the answer, which is on the CPU by then."""
    began = time.perf_counter() if device == "cuda" else time.process_time()
    answer = work()
    return (time.perf_counter() if device == "cuda" else time.process_time()) - began, answer


def measure(name: str, pairs: int, folder: Path, device: str, repeats: int) -> None:
    """Print the row of one model and number of pairs."""
    if not name.startswith("run:"):
        bare.build(folder / name, name)
    spec = parse_spec(name if name.startswith("run:") else f"dir:{folder / name}")
    model = open_model(spec, Settings(device=device, dtype="float32"))
    subject = prompts.make(model.card.model_dump(), "induction", pairs, 0)
    cut = [(batch, model.capture(batch.clean, ["z"])) for batch in _causal.batches(model, subject)]
    places = [_causal.Place("z", n, head=h) for n in range(model.card.n_layers) for h in range(model.card.n_heads)]
    ways = [lambda: np.hstack([loop(model, batch, places, source) for batch, source in cut]),
            lambda: np.hstack([_causal.sweep(model, batch, batch.corrupted, places, source) for batch, source in cut])]
    rounds = [[timed(way, device) for way in ways] for _ in range(repeats + 1)][1:]
    slow, fast = (min(r[i][0] for r in rounds) for i in (0, 1))
    off = max(np.abs(r[0][1] - r[1][1]).max() for r in rounds)
    kept = "kept" if slow / fast >= TARGET[device] else "**missed**"
    shape = f"{name} {model.card.n_layers} x {model.card.n_heads}, {subject.length} tokens"
    line(shape, str(pairs), f"{slow:.3f} s", f"{fast:.3f} s", f"{slow / fast:.1f}", f"{kept}: {TARGET[device]:.0f}",
         f"{off:.1e}", f"{os.getloadavg()[0]:.1f}")  # fmt: skip


def main() -> None:
    """Measure all cases."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    args = asked.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):  # as workers are started
        again = [sys.executable, "-m", "benchmarks.head_sweep", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **MALLOC})
    import torch

    torch.set_num_threads(1)
    head("model", "pairs", "loop", "batched", "ratio", "target", "largest difference", "load")
    with tempfile.TemporaryDirectory() as folder:
        for name, pairs in CASES[: args.cases]:
            measure(name, pairs, Path(folder), args.device, args.repeats)


if __name__ == "__main__":
    main()
