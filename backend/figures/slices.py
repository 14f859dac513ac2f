"""Plane slices of a function as filled contours side by side, on one colour scale, with points and a path upon them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.figures.lines import LEGEND
from backend.figures.style import SEQUENTIAL, finish, plain

CONTOURS = 18  # lines between the lowest and the highest value
PATH, INK = "#d55e00", "#ffffff"
SYMBOLS = ("cross", "star", "diamond", "square")


@dataclass
class Slice:
    """Values z [row, column] at heights and abscissae `at`; named points {words: (x, y)}; a path of (x, y, words).

    A plane beside another leaves `y_title` empty: there is no room for it.
    """

    z: Any
    at: Any
    x_title: str
    y_title: str
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    path: Sequence[tuple[float, float, str]] = ()
    path_name: str = "path"


def slices(planes: Mapping[str, Slice], *, value: str, height: int = 420) -> go.Figure:
    """Draw the planes with equal scales on both axes. What lies outside of a plane's square is not drawn."""
    figure = make_subplots(1, len(planes), subplot_titles=list(planes), horizontal_spacing=0.12)
    low, high = (f([f(plain(p.z)) for p in planes.values()]) for f in (np.nanmin, np.nanmax))
    step = float(high - low) / CONTOURS or 1.0
    for i, plane in enumerate(planes.values(), start=1):
        at = plain(plane.at)
        figure.add_trace(go.Contour(
            z=plain(plane.z), x=at, y=at, coloraxis="coloraxis", line={"width": 0.9, "color": "rgba(255,255,255,0.7)"},
            contours={"start": float(low), "end": float(high), "size": step, "coloring": "heatmap"}, name=value,
            hovertemplate=f"%{{x:.3g}}, %{{y:.3g}}<br>{value}: %{{z:.4g}}<extra></extra>"), 1, i)  # fmt: skip
        figure.add_traces([*_path(plane), *_points(plane, first=i == 1)], rows=1, cols=i)
        ends = [float(at[0]), float(at[-1])]
        square = {"range": ends, "constrain": "domain"}
        figure.update_xaxes(square | {"title": {"text": plane.x_title}}, row=1, col=i)
        anchor = "x" if i == 1 else f"x{i}"
        figure.update_yaxes(square | {"title": {"text": plane.y_title}, "scaleanchor": anchor}, row=1, col=i)
    bar = {"title": {"text": value, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "cmin": float(low), "cmax": float(high), "colorbar": bar},
                         legend=LEGEND | {"y": -0.16, "yanchor": "top"})  # fmt: skip
    figure.update_annotations(font_size=12)
    return finish(figure, height).update_layout(margin={"t": 34})


def _path(plane: Slice) -> list[go.Scatter]:
    if not plane.path:
        return []
    x, y, words = zip(*plane.path, strict=True)
    return [go.Scatter(x=list(x), y=list(y), text=list(words), mode="lines+markers", name=plane.path_name,
                       line={"color": PATH, "width": 2}, marker={"size": 6, "color": PATH},
                       hovertemplate="%{text}<extra></extra>")]  # fmt: skip


def _points(plane: Slice, first: bool) -> list[go.Scatter]:
    return [go.Scatter(x=[x], y=[y], mode="markers", name=name, legendgroup=name, showlegend=first,
                       marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 12, "color": INK,
                               "line": {"color": "#000000", "width": 1}},
                       hovertemplate=f"{name}<extra></extra>")
            for i, (name, (x, y)) in enumerate(plane.points.items())]  # fmt: skip
