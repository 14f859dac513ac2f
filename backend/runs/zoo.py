"""Make the runs that ship with Phasescope again: `python -m backend.runs.zoo` (what `make zoo` calls).

The same machine, package versions and processor features give the same weights bit for bit; elsewhere rounding may
differ, so curves agree closely up to the transition and in their shape after it, and the bits do not.
No time of day is part of the weights; `metrics.jsonl` carries the time and pace of the machine that made it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from backend.runs import layout, recipes
from backend.runs.train import train
from backend.settings import SHIPPED_RUNS


def presets(*names: str) -> dict[str, dict[str, Any]]:
    """Return {preset of the energy recipe: its params}."""
    known = {p.name: dict(p.runs[0]) for p in recipes.get("energy").presets}
    return {name: known[name] for name in names}


COMMAND = "python -m backend.runs.zoo"
#: name -> (recipe, params)
ZOO: dict[str, tuple[str, dict]] = {
    # energy models, named as the presets that they are; 0.5 MB a checkpoint, 1.3 where 256 wide
    **{name: ("energy", {**params, "seed": 0, "device": "cpu", "n_checkpoints": 5 if name == "inverse-3" else 2})
       for name, params in presets("gauss-4", "add-8", "inverse-3", "inverse-5", "rank1-5").items()},
    # read finely, kept coarsely: 0.9 MB a checkpoint; the test loss falls between steps 200 and 600
    "grokking-demo": ("modular_addition", {
        "p": 59, "train_fraction": 0.5, "lr": 3e-3, "steps": 800, "seed": 0, "monitor_every": 10, "device": "cpu",
        "n_checkpoints": 7, "keep_from": 200, "keep_to": 600,
    }),
    "induction-1layer": ("induction", {"seed": 0, "n_layers": 1, "steps": 800, "n_checkpoints": 6, "device": "cpu"}),
    "induction-demo": ("induction", {"seed": 0, "device": "cpu"}),
    # 0.3 MB a checkpoint; the subject is told from the indirect object between steps 180 and 300
    "ioi-demo": ("synthetic_ioi", {
        "steps": 700, "seed": 0, "log_every": 10, "monitor_every": 50, "device": "cpu", "n_checkpoints": 6,
        "keep_from": 180, "keep_to": 300,
    }),
}  # fmt: skip
#: of these only the trained model ships
LAST_ONLY = ("gauss-4", "add-8", "inverse-5", "rank1-5")
#: what run.json says and leaves out: nothing of the machine that made it
EXTRA = {"shipped": True, "command": COMMAND, "host": None, "pid": None, "git": None, "dirty": None}


def make(name: str, target: Path, **params: int) -> Path:
    """Train one run beside `target` and put it in place when it is whole; return its folder."""
    recipe, kept = ZOO[name]
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".zoo-", dir=target) as work:
        fresh = Path(work) / name
        train(recipe, {**kept, **params}, fresh, False, _say, extra={**EXTRA, "name": name})
        shutil.rmtree(fresh / layout.RESUME)  # a shipped run is looked at, not continued
        for step in layout.steps_in(fresh)[:-1] if name in LAST_ONLY else ():
            layout.file_of(fresh, layout.CHECKPOINTS, step).unlink()
        shutil.rmtree(target / name, ignore_errors=True)
        fresh.rename(target / name)
    return target / name


def _say(fraction: float, words: str) -> None:
    if sys.stderr.isatty() or fraction in (0, 1):
        sys.stderr.write(f"\r{fraction:4.0%} {words}\033[K" + ("\n" if fraction in (0, 1) else ""))


def main() -> None:
    """Read the command line and make every run of the zoo."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Train the runs that ship with Phasescope again.")
    parser.add_argument("--out", type=Path, default=SHIPPED_RUNS, help="folder for the runs (default: where they ship)")
    folder = parser.parse_args().out
    for name in ZOO:
        made = make(name, folder)
        size = sum(f.stat().st_size for f in made.rglob("*") if f.is_file())
        sys.stderr.write(f"{name}: {len(layout.steps_in(made))} checkpoints, {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
