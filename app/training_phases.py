"""The three phases of grokking on the time axis, by a rule: memorisation, circuit formation, clean-up.

Memorisation ends where the train loss first falls below 0.01; from then on circuit formation ends where the restricted
loss is first below the excluded loss; clean-up ends where the test loss is first below 0.1.
Source: Nanda et al. (2023), section 5.2; the paper places the limits by eye.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from app import theme

MEMORISED, CLEAN = 0.01, 0.1
RULE = ("Phases by rule: memorisation until train loss < 0.01, circuit formation until restricted < excluded loss, "
        "clean-up until test loss < 0.1.")  # fmt: skip


def phases(frame: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Return (phase, first step, last step) of those that have ended, from [step, metric, value] of one run."""
    wide = frame.pivot_table(index="step", columns="metric", values="value", aggfunc="last").sort_index()
    found: list[tuple[str, int, int]] = []
    since = 0
    for name, below, above in (("memorisation", "train_loss", MEMORISED), ("circuit formation", "restricted_loss",
                               "excluded_loss"), ("clean-up", "test_loss", CLEAN)):  # fmt: skip
        end = _first(wide, below, above, since)
        if end is None:
            return found
        found.append((name, since, end))
        since = end
    return found


def _first(wide: pd.DataFrame, low: str, high: float | str, since: int) -> int | None:
    if low not in wide or (isinstance(high, str) and high not in wide):
        return None
    rows = wide[wide.index >= since].dropna(subset=[low] if isinstance(high, float) else [low, high])
    passed = rows.index[rows[low] < (rows[high] if isinstance(high, str) else high)]
    return int(passed[0]) if len(passed) else None


def shade(figure: Any, found: list[tuple[str, int, int]]) -> Any:
    """Draw the limits of the phases through all rows of a figure, each named at its top."""
    log = figure.layout.xaxis.type == "log"  # there plotly wants a shape in steps and a note in log10(step)
    for name, _, end in found:
        if log and end <= 0:
            continue
        figure.add_shape(type="line", x0=end, x1=end, y0=0, y1=1, xref="x", yref="paper",
                         line={"color": theme.NULL, "width": 1, "dash": "dash"})  # fmt: skip
        figure.add_annotation(x=math.log10(end) if log else end, y=0.93, xref="x", yref="paper", text=f"{name} ends",
                              textangle=-90, xanchor="right", yanchor="top", showarrow=False,
                              font={"size": 10, "color": theme.NULL})  # fmt: skip
    return figure
