"""What every recipe's params share, and where its checkpoints lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from backend.contract import Params


class RecipeParams(Params):
    """Seed, machine and cadence. A recipe overrides the defaults it needs (keep the names)."""

    steps: int = Field(1200, ge=1, le=1_000_000, description="number of updates")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="fixes the first weights, the data and the held-out rows")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it trains; auto: a GPU if any")
    dtype: Literal["float32", "float64", "bfloat16"] = Field(
        "float32", description="precision of the forward; bfloat16 keeps float32 master weights"
    )
    log_every: int = Field(20, ge=1, le=10_000, description="steps between two lines of cheap metrics")
    monitor_every: int = Field(100, ge=1, le=100_000, description="steps between two readings of the monitors")
    n_checkpoints: int = Field(20, ge=2, le=500, description="checkpoints, log-spaced, first and last included")


def heads_divide_width(params: Any) -> Any:
    """Return the params; raises ValueError where n_heads does not divide d_model. For a `model_validator`."""
    if params.d_model % params.n_heads:
        raise ValueError(f"d_model = {params.d_model} cannot be divided by n_heads = {params.n_heads}")
    return params


def log_steps(steps: int, n: int, unit: int = 1) -> set[int]:
    """Return about n steps from 0 to `steps`, log-spaced, each a multiple of `unit` (or the last)."""
    for count in range(n, 20 * n):  # neighbours snap to one step, so ask for more until there are enough
        chosen = {0, steps} | snapped((steps ** (i / count) for i in range(count)), unit, steps)
        if len(chosen) >= n:
            break
    return chosen


def snapped(places: Iterable[float], unit: int, steps: int) -> set[int]:
    """Return each place as the nearest multiple of `unit`, at most `steps`."""
    return {min(round(place / unit) * unit, steps) for place in places}
