"""What a phase diagram is: two params of a recipe over a grid, n seeds per cell. No torch.

    <name>.diagram.json      the definition, small, beside the run folders: truth that must outlive the cache
    <name>.curves.parquet    only of a diagram that is handed on: its runs' curves [run, metric, step, value], thinned
    <name>.x3y1s0/           one run folder per cell and seed, as any other run
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import Broken
from backend.runs.layout import write_whole

DEFINITION, CURVES = ".diagram.json", ".curves.parquet"
KEPT_POINTS = 400  # per curve of a diagram that is handed on
COLUMNS = ["run", "metric", "step", "value"]


class Member(NamedTuple):
    """One run of a diagram: its name, column i, row j, seed and params."""

    run: str
    i: int
    j: int
    seed: int
    params: dict[str, Any]


class Diagram(BaseModel):
    """The definition: every run follows from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    recipe: str
    x: str = Field(description="name of the param along the columns")
    xs: tuple[int | float, ...] = Field(min_length=1)
    y: str = Field(description="name of the param along the rows")
    ys: tuple[int | float, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    params: dict[str, Any] = Field(default_factory=dict, description="shared by all runs, over the recipe's defaults")
    created: float = 0.0
    command: str = Field("", description="the command line that makes it")

    def members(self) -> list[Member]:
        """Return every run, seed by seed over the whole grid, so that all cells have something early."""
        return [
            Member(f"{self.name}.x{i}y{j}s{seed}", i, j, seed, {**self.params, self.x: x, self.y: y, "seed": seed})
            for seed in self.seeds for j, y in enumerate(self.ys) for i, x in enumerate(self.xs)
        ]

    def same_runs(self, other: Diagram) -> bool:
        """Say whether two definitions mean the same runs."""
        return self.members() == other.members() and self.recipe == other.recipe


def write(folder: Path, diagram: Diagram) -> Path:
    """Write the definition, whole or not at all; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{diagram.name}{DEFINITION}"
    write_whole(path, diagram.model_dump_json(indent=1).encode() + b"\n")
    return path


def read(path: Path) -> Diagram:
    """Read a definition. Raises Broken where it is none."""
    try:
        return Diagram(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, ValidationError) as error:
        words = f"{type(error).__name__} in {path.name}"
        raise Broken(f"Diagram {path.name.removesuffix(DEFINITION)}", words, "Correct or remove the file") from None


def find(folders: Iterable[Path]) -> dict[str, Path]:
    """Return {name: definition file} of the folders; of two with one name the first counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob(f"*{DEFINITION}")):
                found.setdefault(path.name.removesuffix(DEFINITION), path)
    return found


def curves_file(folder: Path, name: str) -> Path:
    """Return where the curves of a diagram that is handed on lie."""
    return folder / f"{name}{CURVES}"


def write_curves(folder: Path, name: str, curves: pd.DataFrame) -> Path:
    """Write curves [run, metric, step, value], each thinned to about KEPT_POINTS points; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = curves[COLUMNS].sort_values(["run", "metric", "step"])
    kept = [thinned(curve) for _, curve in ordered.groupby(["run", "metric"], sort=True)]
    table = pd.concat(kept, ignore_index=True) if kept else ordered
    path = curves_file(folder, name)
    table.astype({"step": "int32"}).to_parquet(path, index=False, compression="zstd")
    return path


def thinned(curve: pd.DataFrame, points: int = KEPT_POINTS) -> pd.DataFrame:
    """Return a curve (rows by step) with at most `points` rows and every new maximum: a threshold is then first
    reached at the same step as in the whole curve."""
    if len(curve) <= points:
        return curve
    values = curve["value"].fillna(-np.inf).to_numpy()
    records = np.flatnonzero(values > np.concatenate([[-np.inf], np.maximum.accumulate(values)[:-1]]))
    before = np.maximum(records - 1, 0)  # the logged step before, which is the error of the step
    spread = np.linspace(0, len(curve) - 1, points).round().astype(int)
    return curve.iloc[np.unique(np.concatenate([spread, records, before]))]


def read_curves(path: Path) -> pd.DataFrame:
    """Read curves that were handed on. Raises Broken where they cannot be read."""
    try:
        return pd.read_parquet(path)[COLUMNS]
    except (OSError, ValueError, KeyError) as error:
        found = f"{type(error).__name__} in {path.name}"
        raise Broken(f"Curves of {path.name.removesuffix(CURVES)}", found, "Make the diagram again") from None
