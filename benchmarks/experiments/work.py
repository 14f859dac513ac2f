"""Train the runs of a plan, as many at once as there are processes; what is finished is kept."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from backend.runs.folder import RunFolder
from benchmarks.experiments.plan import Run

SPENT = "spent.json"


def finished(folder: Path) -> bool:
    """Say whether a run is there whole."""
    return (folder / "run.json").exists() and RunFolder(folder).state() == "finished" and (folder / SPENT).exists()


def train_one(run: Run, folder: Path) -> str:
    """Train a run (or go on with it) and note the CPU and wall seconds of this process; returns its name."""
    from backend.runs.train import train

    cpu, wall = time.process_time(), time.monotonic()
    resume = (folder / "run.json").exists()
    train(run.recipe, {**run.params, "seed": run.seed}, folder, resume, lambda fraction, words: None)
    spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - wall, "resumed": resume}
    (folder / SPENT).write_text(json.dumps(spent))
    return run.name


def train_all(runs: Sequence[Run], place: Path, workers: int) -> None:
    """Train what is missing below `place`."""
    missing = [r for r in runs if not finished(place / r.name)]
    place.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(train_one, run, place / run.name) for run in missing]
        for done, job in enumerate(as_completed(jobs), 1):
            print(f"{done}/{len(jobs)} {job.result()}", file=sys.stderr, flush=True)
