"""The experiments whose tables are committed: `python -m benchmarks.experiments transitions` and `energy`.

Trains what is missing below --place (a finished run is kept, a broken-off one goes on), then writes its tables to
--out. `--only runs` leaves out the synthetic benchmark of detection and the phase diagram, which take minutes more.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from backend.settings import SHIPPED_RUNS
from benchmarks import table
from benchmarks.experiments import detected, energy, milestones, plan, work

RESULTS = Path(__file__).resolve().parent.parent / "results" / "transitions"
PARTS = ("runs", "detection", "diagram")
#: the diagram that ships with the app: its definition holds the command that made it
DIAGRAM = SHIPPED_RUNS / "grokking-phases.diagram.json"


def diagram_command(out: Path) -> list[str]:
    """Return the command that makes the shipped phase diagram anew, below `out` and under a name of its own."""
    made = shlex.split(json.loads(DIAGRAM.read_text())["command"])
    made[made.index("--name") + 1] += "-again"
    return [sys.executable, *made[1:], "--out", str(out)]


def seeds_of(said: str) -> range:
    """Return the seeds of `20-24`, or of `3`."""
    first, _, last = said.partition("-")
    return range(int(first), int(last or first) + 1)


def tables(runs: Sequence[plan.Run], place: Path) -> dict[str, pd.DataFrame]:
    """Return every table of the trained runs, by its file's name."""
    found = {"detection_runs": detected.detection(runs, place), "controls": detected.controls(runs, place)}
    made = {"induction": "induction", "grokking": "modular_addition"}
    found |= {name: milestones.table(list(runs), place, recipe) for name, recipe in made.items()}
    return {**found, "times": pd.DataFrame([{"run": r.name, **milestones.spent(place / r.name)} for r in runs])}


def show(title: str, rows: pd.DataFrame) -> None:
    """Print a table as markdown."""
    print(f"\n### {title}\n", flush=True)  # noqa: T201
    table.head(*rows.columns)
    for row in rows.itertuples(index=False):
        table.line(*("" if pd.isna(x) else f"{x:g}" if isinstance(x, float) else str(x) for x in row))


def train_and_tell(runs: Sequence[plan.Run], place: Path, out: Path, workers: int) -> None:
    """Train what is missing, write the tables and print them."""
    work.train_all(runs, place, workers)
    out.mkdir(parents=True, exist_ok=True)
    found = tables(runs, place)
    for name, rows in found.items():
        rows.to_csv(out / f"{name}.csv", index=False, lineterminator="\n", float_format="%.6g")
        show(name, rows)
    show("within 5 % of the reference step", detected.score(found["detection_runs"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts asked for; returns 1 where one failed."""
    asked = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__.split("\n")[0])
    asked.add_argument("name", choices=["transitions", "energy"])
    asked.add_argument("--place", type=Path, default=Path("runs") / "experiments", help="folder of the runs")
    asked.add_argument("--out", type=Path, default=None, help="folder of the tables")
    asked.add_argument("--workers", type=int, default=2, help="runs that train at once")
    asked.add_argument("--seeds", type=seeds_of, default=plan.SEEDS, metavar="20-24", help="first and last seed")
    asked.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts; default: all")
    args = asked.parse_args(argv)
    if args.name == "energy":
        return energy.main(args.place / "energy", args.out or RESULTS.parent / "energy")
    args.out = args.out or RESULTS
    if "runs" in args.only:
        train_and_tell(plan.runs(args.seeds), args.place, args.out, args.workers)
    calls = {"detection": [sys.executable, "-m", "benchmarks.detection"], "diagram": diagram_command(args.out)}
    return max((subprocess.run(calls[part]).returncode for part in PARTS[1:] if part in args.only), default=0)


if __name__ == "__main__":
    raise SystemExit(main())
