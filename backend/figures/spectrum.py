"""Spectra of a curvature matrix: its density on a logarithmic scale, both ends, and densities one above the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.figures.lines import LEGEND, Line, lines
from backend.figures.ridges import Ridge, ridges
from backend.figures.style import CATEGORIES, NULL_GREY, finish

UNIT = "eigenvalue (nats per squared unit of weight)"
SQUARED_ERROR = "eigenvalue (squared error per squared unit of weight)"  # of an energy model's loss
SMOOTHING = 0.01  # standard deviation of the Gaussian that smooths a density, in units of its extent
MARGIN = 5  # of these on either side
FLOOR = 0.2  # of the height that a single eigenvalue has: below it the density says nothing


def spectrum(table: pd.DataFrame, unit: str = UNIT) -> go.Figure:
    """Draw the density of the model before that of its null, and where the eigenvalues at both ends stand.

    `table`: of, quantity, rank, value, error, exact, at, as hessian_spectrum and energy_hessian return it.
    """
    mine = table[table["of"] == "model"]
    low, most = floor_of(mine), float(mine.loc[mine["quantity"] == "density", "value"].max())
    figure = lines(_curves(table, low), x_title=unit, y_title="density (logarithmic; band: ± s.e.)", height=380)
    found = mine[mine["quantity"].isin(["high", "low"])]
    figure.add_scatter(
        x=found["value"], y=[low] * len(found), mode="markers", name="eigenvalues found at both ends",
        marker={"symbol": "line-ns-open", "size": 14, "color": CATEGORIES[1], "line": {"width": 2}},
        text=_words(found), hovertemplate="%{text}<extra></extra>")  # fmt: skip
    span = [np.log10(low) - 0.15, np.log10(max(most, low)) + 0.3]
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", range=span)
    return figure.update_layout(showlegend=True)


def floor_of(mine: pd.DataFrame) -> float:
    """Return FLOOR of the height that one eigenvalue has in a smoothed density (the rows of one model)."""
    grid = mine.loc[mine["quantity"] == "density", "at"]
    n = float(mine.loc[mine["quantity"] == "n_params", "value"].iloc[0])
    width = (grid.max() - grid.min()) * SMOOTHING / (1 + 2 * MARGIN * SMOOTHING)
    return float(FLOOR / (n * width * np.sqrt(2 * np.pi)))


def _curves(table: pd.DataFrame, low: float) -> list[Line]:
    curves = []
    for of, name, colour in (("null", "null", NULL_GREY), ("model", "model", CATEGORIES[0])):
        rows = table[(table["of"] == of) & (table["quantity"] == "density")]
        if not len(rows):
            continue
        value, error = rows["value"].to_numpy(float), rows["error"].to_numpy(float)
        above = np.where(value > low, value, np.nan)
        band = np.clip(value - error, low, None), np.clip(value + error, low, None)
        curves.append(Line(name, rows["at"], above, *band, colour))
        if of == "model" and rows["exact"].notna().any():
            exact = rows["exact"].to_numpy(float)
            curves.append(Line("dense matrix", rows["at"], np.where(exact > low, exact, np.nan), colour=CATEGORIES[2]))
    return curves


def _words(found: pd.DataFrame) -> list[str]:
    return [f"{r['quantity']} {r['rank']}: {r['value']:.4g} ± {r['error']:.1g}" for r in found.to_dict("records")]


def ends(table: pd.DataFrame) -> go.Figure:
    """Draw the eigenvalues at both ends by rank, with residuals; grey the null's, and what else is known of them."""
    known: list[tuple[str, str, str, str, str]] = [
        ("null", "value", "null", NULL_GREY, "circle"),
        ("model", "exact", "dense matrix", CATEGORIES[2], "circle-open"),
        ("model", "pyhessian", "PyHessian", CATEGORIES[5], "x"),
        ("model", "value", "model", CATEGORIES[0], "circle"),
    ]
    figure = go.Figure()
    for of, column, name, colour, symbol in known:
        if column not in table:
            continue
        rows = table[(table["of"] == of) & table["quantity"].isin(["high", "low"]) & table[column].notna()]
        if len(rows):
            size = {"size": 13 if symbol == "circle-open" else 8, "color": colour, "symbol": symbol}
            figure.add_scatter(x=[f"{q} {r}" for q, r in zip(rows["quantity"], rows["rank"], strict=True)],
                               y=rows[column], mode="markers", name=name, marker=size,
                               error_y={"type": "data", "array": rows["error"]} if column == "value" else None,
                               hovertemplate=f"{name}: %{{x}}: %{{y:.5g}}<extra></extra>")  # fmt: skip
    highs = table[(table["of"] == "model") & (table["quantity"] == "high")]["rank"]
    order = [f"low {r}" for r in sorted(highs)] + [f"high {r}" for r in sorted(highs, reverse=True)]
    figure.update_layout(legend=LEGEND, yaxis={"title": {"text": "eigenvalue (bar: residual)"}, "zeroline": True},
                         xaxis={"title": {"text": "smallest first"}, "type": "category", "categoryorder": "array",
                                "categoryarray": order})  # fmt: skip
    return finish(figure, 340)


def ridgeline(
    table: pd.DataFrame, marks: Sequence[tuple[float, str, str]] = (), step: int | None = None, unit: str = UNIT
) -> go.Figure:
    """Draw the densities of a run's checkpoints one above the other, the first at the bottom, on a logarithmic height.

    `table`: as hessian_spectrum returns it, with a column `step`; `marks`: (step, words, colour) of transitions, drawn
    between the checkpoints around them; the checkpoint `step` is drawn in another colour.
    """
    steps = sorted(int(s) for s in table["step"].unique())
    found = {s: _ridge(table[(table["step"] == s) & (table["of"] == "model")]) for s in steps}
    rows = [Ridge(str(s), x, height, f"step {s}: {x[0]:.3g} to {x[-1]:.3g}") for s, (x, height) in found.items()]
    figure = ridges(rows, x_title=unit, y_title="step<br>(height: log of the density)",
                    chosen=None if step is None else str(step))  # fmt: skip
    for when, words, colour in marks:
        if steps[0] <= when <= steps[-1]:
            figure.add_hline(y=float(np.interp(when, steps, range(len(steps)))) + 0.02, annotation_text=words,
                             annotation_position="top right", annotation_font_size=11,
                             line={"color": colour, "width": 1.5, "dash": "dash"})  # fmt: skip
    return figure


def _ridge(mine: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (eigenvalues, decades of the density above its floor) of one checkpoint."""
    rows = mine[mine["quantity"] == "density"].sort_values("rank")
    value, low = rows["value"].to_numpy(float), floor_of(mine)
    return rows["at"].to_numpy(float), np.log10(np.maximum(value, low) / low)
