"""One value of an analysis over the checkpoints of a run: a curve per part, those that change most first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from backend.figures.lines import Line, lines, stacked_lines
from backend.figures.style import CATEGORIES, NULL_GREY

SHOWN = 8  # curves that are told apart by colour
PARTS = 500  # parts that are offered to choose from
BANDS = (("{}_low", "{}_high"), ("{}_se", "{}_se"))


LETTERS = {"layer": "L", "head": "H"}


def part_names(table: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """Return the name of each row's part: L1H2, a word as it is, `axis number` of the rest; "" without axes.

    -1 is no layer or head: beside a word (a component, a metric) it says nothing, else layer -1 is the embedding.
    """
    named, before = pd.Series("", index=table.index), ""
    counted = {axis: pd.api.types.is_numeric_dtype(table[axis]) for axis in axes}
    for axis in axes:
        words = table[axis].astype("string").fillna("-")
        if pd.api.types.is_float_dtype(table[axis]):
            words = words.where(table[axis].isna(), table[axis].map("{:.4g}".format))
        if axis in LETTERS:
            none = "embed" if axis == "layer" and all(counted.values()) else ""
            words = (LETTERS[axis] + words).where(words != "-1", none)
        elif counted[axis]:
            words = f"{axis} " + words
        named += ("" if axis in LETTERS and before in LETTERS else " ") + words
        before = axis
    return named.str.replace(r"\s+", " ", regex=True).str.strip()


def by_change(table: pd.DataFrame, axes: Sequence[str], value: str) -> list[str]:
    """Return the parts of a table [step, axes, value], at most PARTS: the largest range of the value first."""
    part = part_names(table, axes)
    ranges = table[value].astype(float).groupby(part).agg(lambda v: v.max() - v.min())
    return list(ranges.sort_values(ascending=False, kind="stable").index[:PARTS])


def over_steps(
    table: pd.DataFrame,
    axes: Sequence[str],
    value: str,
    *,
    unit: str = "",
    parts: Sequence[str] | None = None,
    step: int | None = None,
) -> Any:
    """Draw the value over steps, one curve per part (by default the SHOWN of largest range), with its interval where
    the table has one, and a dotted line at `step`."""
    chosen = list(parts) if parts is not None else by_change(table, axes, value)[:SHOWN]
    named = table.assign(part=part_names(table, axes)).sort_values("step")
    curves = [_curve(part, named[named["part"] == part], value) for part in chosen]
    figure = lines(curves, x_title="step", y_title=f"{value} ({unit})" if unit else value)
    if step is not None:
        figure.add_vline(step, line={"dash": "dot", "width": 1})
    return figure


def effect_over_steps(table: pd.DataFrame, step: int | None = None) -> Any:
    """Draw an effect over steps: `before` and `after`; the effect with its 95 % band beside its control; its size.

    `table` has a row per step: step, before, after, effect, effect_low, effect_high, effect_size, control (NaN where
    there is none).
    """
    rows = table.sort_values("step")
    at = rows["step"]
    effect = [Line("effect", at, rows["effect"], rows["effect_low"], rows["effect_high"], CATEGORIES[1])]
    if rows["control"].notna().any():
        effect = [Line("control", at, rows["control"], colour=NULL_GREY), *effect]
    ends = [Line(name, at, rows[name], colour=CATEGORIES[i]) for i, name in enumerate(("before", "after"))]
    size = [Line("effect size", at, rows["effect_size"], colour=CATEGORIES[1])]
    zero = {"zeroline": True}
    panels = [(ends, "logit_diff", zero), (effect, "effect (logits)", zero), (size, "effect size", zero)]
    words = "blue: before · orange: after, its effect (band: 95 %)"
    words += " · grey: control" if len(effect) > 1 else ""
    figure = stacked_lines(panels, x_title="step", title=words)
    if step is not None:
        figure.add_vline(step, line={"dash": "dot", "width": 1})
    return figure


def _curve(part: str, rows: pd.DataFrame, value: str) -> Line:
    low, high = _interval(rows, value)
    return Line(part or value, rows["step"], rows[value].astype(float), low, high)


def _interval(rows: pd.DataFrame, value: str) -> tuple[Any, Any]:
    for low, high in ((a.format(value), b.format(value)) for a, b in BANDS):
        if low == high and low in rows:
            error = rows[low].astype(float)
            return rows[value].astype(float) - error, rows[value].astype(float) + error
        if low != high and low in rows and high in rows:
            return rows[low].astype(float), rows[high].astype(float)
    return None, None
