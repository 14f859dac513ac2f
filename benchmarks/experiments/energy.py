"""The ten experiments on the five energy presets: what was expected, its null, what was found.

Trains the presets below --place where they are missing (as `make zoo` does), asks every experiment through the house,
and writes the claims: `energy-claims.json` beside the shipped runs, which the page Experiment queue shows, and
`results/energy/{claims,times}.csv`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from backend import Backend
from backend.facade.queue import CLAIMS
from backend.runs import layout, zoo
from backend.settings import Settings

COMMAND = "python -m benchmarks.experiments energy"
MODELS = ("gauss-4", "add-8", "inverse-3", "inverse-5", "rank1-5")
PROBLEMS = 64


def main(place: Path, out: Path, models: Sequence[str] = MODELS, claims: Path = CLAIMS) -> int:
    """Train, ask, write; returns 1 where an experiment failed on a model that it fits."""
    times = [trained(name, place / "runs") for name in models]
    house = Backend(Settings(runs=place / "runs", cache=place / "cache", device="cpu"), inline=True)
    try:
        rows, more, failed = asked(house, models)
    finally:
        house.close()
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out / "claims.csv", index=False, lineterminator="\n")
    pd.DataFrame([*times, *more]).to_csv(out / "times.csv", index=False, lineterminator="\n", float_format="%.3g")
    spent = round(sum(t["seconds"] for t in more), 1)
    versions = {name: house.analysis(name).version for name in house.experiments()}
    told = {"command": COMMAND, "seconds": spent, "machine": f"{os.cpu_count()} CPU cores", "problems": PROBLEMS,
            "versions": versions, "claims": rows}  # fmt: skip
    claims.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(pd.DataFrame(rows).to_string(index=False))
    for line in failed:
        print(f"failed: {line}")
    return int(bool(failed))


def trained(name: str, place: Path) -> dict[str, Any]:
    """Train a preset where its run is missing; return {what, model, seconds from its first logged line to the last}."""
    if not layout.steps_in(place / name):
        zoo.make(name, place)
    log = place / name / layout.METRICS
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    at = [json.loads(line)["time"] for line in (lines[0], lines[-1])] if lines else [0.0, 0.0]
    return {"what": "training", "model": name, "seconds": at[1] - at[0]}


def asked(house: Backend, models: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Ask every experiment of every model: (claims, times, what failed). One that does not fit a model says why."""
    claims: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in house.experiments():
        for model in models:
            place = _computed(house, name, f"run:{model}")
            if place.state == "kept":
                took = house.results(name).set_index("key")["seconds"][place.key]  # of the result, when it was computed
                times.append({"what": name, "model": model, "seconds": float(took)})
                claims += [{"model": model, "experiment": f"EXP-{name[3:6]}", **c} for c in house.claims(place.key)]
            elif place.state == "unfit":
                print(f"{name} of {model}: not possible, {place.why}")
            else:
                failed.append(f"{name} of {model}: {place.why}")
    return claims, times, failed


def _computed(house: Backend, name: str, spec: str) -> Any:
    about, params = {"n": PROBLEMS, "seed": 0}, {}
    steps = house.run(spec.removeprefix("run:"))["checkpoints"]
    if "first_step" in house.analysis(name).params.model_fields and len(steps) > 1:
        params = {name: {"first_step": steps[0]}}  # what has changed since the first checkpoint, where one is kept
    tried = False
    while True:
        place = house.queue([name], [spec], about, params)[0]
        if place.state == "missing" or (place.state == "failed" and not tried):  # a failure of an earlier day is none
            tried = bool(house.run_queue([name], [spec], about, params))
        elif place.state not in ("waits", "queued", "running"):
            return place
        time.sleep(0.05)
