"""When a curve first passes a mark, read from run folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from backend.runs.folder import RunFolder
from benchmarks.experiments.plan import Run
from benchmarks.experiments.work import SPENT


def curves(folder: Path) -> pd.DataFrame:
    """Return all rows of a run folder's metrics: step, metric, layer, head, value."""
    reader, parts, offset = RunFolder(folder), [], 0
    while (chunk := reader.read(offset)).offset != offset:
        parts.append(chunk.rows)
        offset = chunk.offset
    return pd.concat(parts, ignore_index=True)


def first(series: pd.Series, passed: Callable[[Any], Any]) -> int | None:
    """Return the first step of {step: value} where `passed` holds, None where it never does."""
    steps = series.index[passed(series)]
    return int(steps[0]) if len(steps) else None


def series(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Return {step: value} of a metric; of a per-head metric the largest over heads."""
    return rows[rows["metric"] == metric].groupby("step")["value"].max()


def induction(rows: pd.DataFrame) -> dict[str, Any]:
    """Steps at which induction heads form, and where the run ends."""
    score, accuracy = series(rows, "induction_score"), series(rows, "second_copy_accuracy")
    found: dict[str, Any] = {f"induction_score>{mark}": first(score, lambda s, m=mark: s > m) for mark in (0.1, 0.5)}
    found |= {f"second_copy_accuracy>{m}": first(accuracy, lambda s, m=m: s > m) for m in (0.5, 0.9, 0.99)}
    previous = series(rows, "previous_token_score")
    return found | {"final_induction_score": score.iloc[-1], "final_previous_token_score": previous.iloc[-1],
                    "final_second_copy_accuracy": accuracy.iloc[-1]}  # fmt: skip


def grokking(rows: pd.DataFrame) -> dict[str, Any]:
    """Steps of memorisation and of generalisation, of the restricted loss, and where the run ends."""
    test = series(rows, "test_accuracy")
    found: dict[str, Any] = {"train_loss<0.01": first(series(rows, "train_loss"), lambda s: s < 0.01)}
    found |= {f"test_accuracy>{m}": first(test, lambda s, m=m: s > m) for m in (0.5, 0.9, 0.99)}
    found |= {f"{name}<1": first(series(rows, name), lambda s: s < 1) for name in ("restricted_loss", "test_loss")}
    last = {f"final_{n}": series(rows, n).iloc[-1] for n in ("test_loss", "n_key_frequencies", "explained_fraction")}
    return found | {"largest_test_loss": series(rows, "test_loss").max()} | last


def spent(folder: Path) -> dict[str, float]:
    """Return CPU and wall seconds of a run's process."""
    kept = json.loads((folder / SPENT).read_text())
    return {"cpu_s": round(kept["cpu_s"], 1), "wall_s": round(kept["wall_s"], 1)}


def table(runs: list[Run], place: Path, recipe: str) -> pd.DataFrame:
    """Return one row per run of a recipe."""
    milestones = {"induction": induction, "modular_addition": grokking}[recipe]
    rows = [
        {"run": r.name, "seed": r.seed, "control": r.control, **milestones(curves(place / r.name)),
         **spent(place / r.name)}
        for r in runs if r.recipe == recipe
    ]  # fmt: skip
    return pd.DataFrame(rows)
