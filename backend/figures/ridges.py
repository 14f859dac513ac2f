"""Densities one above the other (Joy plot): a ridge per part, each over a baseline of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from backend.figures.style import CATEGORIES, finish, plain, rgba

HEIGHT = 1.7  # of a ridge, in distances between two baselines
LOWEST = 360  # px: a figure of few ridges has room for its title


@dataclass
class Ridge:
    """Heights over x of one part, its label on the axis and its words in the hover."""

    label: str
    x: Any
    height: Any
    words: str = ""


def ridges(
    rows: Sequence[Ridge], *, x_title: str, y_title: str, chosen: str | None = None, each: bool = False
) -> go.Figure:
    """Draw the ridges, the first at the bottom, on one scale or (`each`) on one of their own; `chosen` is a label that
    is drawn in another colour."""
    most = max((float(np.nanmax(plain(r.height))) for r in rows), default=1.0) or 1.0
    figure = go.Figure()
    for at, row in reversed(list(enumerate(rows))):
        x, height = plain(row.x), plain(row.height)
        colour = CATEGORIES[1] if row.label == chosen else CATEGORIES[0]
        top = at + HEIGHT * height / ((float(np.nanmax(height)) or 1.0) if each else most)
        figure.add_scatter(x=[x[0], *x, x[-1]], y=[at, *top, at], mode="lines", fill="toself", name=row.words,
                           line={"color": colour, "width": 1}, fillcolor=rgba(colour, 0.35), hoveron="fills",
                           text=row.words, hoverinfo="text")  # fmt: skip
    shown = range(0, len(rows), max(1, len(rows) // 20))
    figure.update_layout(showlegend=False, xaxis={"title": {"text": x_title}}, yaxis={
        "title": {"text": y_title}, "tickvals": list(shown), "showgrid": False,
        "ticktext": [rows[i].label for i in shown]})  # fmt: skip
    return finish(figure, max(LOWEST, int(200 + 34 * len(rows))))


def density(values: Any, grid: np.ndarray, least: float) -> np.ndarray:
    """Return the density of values on an even grid, smoothed by Silverman's rule, by `least` at the narrowest."""
    values, step = plain(values).ravel().astype(float), grid[1] - grid[0]
    counts, _ = np.histogram(values, np.append(grid - step / 2, grid[-1] + step / 2))
    middle = np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.349
    width = max(0.9 * min(values.std(), middle or values.std()) * len(values) ** -0.2, least)
    reach = np.arange(-int(4 * width / step) - 1, int(4 * width / step) + 2) * step
    kernel = np.exp(-((reach / width) ** 2) / 2)
    return np.convolve(counts, kernel / (kernel.sum() * step * len(values)), "full")[len(reach) // 2 :][: len(grid)]
