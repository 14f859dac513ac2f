"""Many points as densities: hexagons coloured by how many lie in each, a panel per group on one pair of axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from backend.figures.style import SEQUENTIAL, finish, plain

ACROSS = 22  # hexagons along x
CLASSES = 12  # colours
CORNERS = np.deg2rad(np.arange(30, 390, 60))


def hexbin(groups: Mapping[str, tuple[Any, Any]], *, x_title: str, y_title: str, height: int = 380) -> go.Figure:
    """Draw {title: (x [n], y [n])}; colours are logarithmic in the number of points and shared. Zooming is linked."""
    points = {name: (plain(x).astype(float), plain(y).astype(float)) for name, (x, y) in groups.items()}
    low, step = _frame(points)
    bins = {name: _bins(np.stack(xy), low, step) for name, xy in points.items()}
    most = max((int(n.max()) for _, n in bins.values() if len(n)), default=1)
    figure = make_subplots(1, max(1, len(bins)), shared_xaxes="all", shared_yaxes="all", subplot_titles=list(bins),
                           horizontal_spacing=0.03)  # fmt: skip
    for i, (centres, counts) in enumerate(bins.values(), start=1):
        figure.add_traces(_hexagons(centres, counts, step, most), rows=1, cols=i)
        figure.add_trace(_words(centres, counts, most, bar=i == len(bins)), 1, i)
        figure.update_xaxes(title={"text": x_title if i == (len(bins) + 1) // 2 else ""}, row=1, col=i)
    figure.update_yaxes(title={"text": y_title}, row=1, col=1)
    figure.update_annotations(font_size=12)
    return finish(figure, height).update_layout(showlegend=False, margin={"t": 34})


def _frame(points: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (the lower left corner, the width and height of a hexagon) that hold all points."""
    x, y = (np.concatenate([xy[i] for xy in points.values()]) for i in (0, 1))
    spans = np.array([np.ptp(v) or 1.0 for v in (x, y)])
    return np.array([x.min(), y.min()]), spans / ACROSS


def _bins(points: np.ndarray, low: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (centres [hexagon, 2], counts): every point goes to the nearest centre of the two lattices of a honeycomb.

    Rows are sqrt(3) hexagon widths apart in the space where hexagons are regular.
    """
    u = (points.T - low) / step * np.array([1.0, 2 / 3**0.5])  # hexagons of width 1 there
    lattice = np.array([1.0, 3**0.5])
    even, odd = np.round(u / lattice) * lattice, (np.floor(u / lattice) + 0.5) * lattice
    nearest = np.where((((u - even) ** 2).sum(1) <= ((u - odd) ** 2).sum(1))[:, None], even, odd)
    centres, counts = np.unique(nearest.round(6), axis=0, return_counts=True)
    return low + centres / np.array([1.0, 2 / 3**0.5]) * step, counts


def _hexagons(centres: np.ndarray, counts: np.ndarray, step: np.ndarray, most: int) -> list[go.Scatter]:
    """Return a trace per colour: closed hexagons with a gap after each."""
    shade = np.log(counts) / (np.log(most) or 1.0)
    classes = np.minimum((shade * CLASSES).astype(int), CLASSES - 1)
    around = np.stack([np.cos(CORNERS), np.sin(CORNERS) * 3**0.5 / 2], 1) * step / 3**0.5
    traces = []
    for one in np.unique(classes):
        corners = centres[classes == one][:, None] + np.concatenate([around, around[:1], np.full((1, 2), np.nan)])
        colour = sample_colorscale(SEQUENTIAL, [(one + 0.5) / CLASSES])[0]
        x, y = corners.reshape(-1, 2)[:-1].T
        traces.append(go.Scatter(x=x, y=y, mode="lines", fill="toself", fillcolor=colour, hoverinfo="skip",
                                 line={"width": 0.5, "color": colour}))  # fmt: skip
    return traces


def _words(centres: np.ndarray, counts: np.ndarray, most: int, bar: bool) -> go.Scatter:
    """Return invisible points that say how many lie there, and carry the colour bar."""
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n <= most]
    return go.Scatter(
        x=centres[:, 0], y=centres[:, 1], mode="markers", customdata=counts,
        hovertemplate="%{customdata} points around %{x:.3g}, %{y:.3g}<extra></extra>",
        marker={"size": 12, "opacity": 0, "color": np.log(counts), "cmin": 0, "cmax": float(np.log(most)) or 1.0,
                "colorscale": SEQUENTIAL, "showscale": bar, "colorbar": {
                    "title": {"text": "points", "side": "right"}, "thickness": 12, "outlinewidth": 0,
                    "tickvals": np.log(ticks), "ticktext": [str(n) for n in ticks]}})  # fmt: skip
