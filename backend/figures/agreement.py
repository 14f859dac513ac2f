"""An approximate value against the exact one: points with the interval of the exact, and the line where they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from backend.figures.lines import LEGEND
from backend.figures.style import CATEGORIES, NULL_GREY, finish, label, plain

ROOM = (0.1, 0.05)  # what a name takes of the width and of the height


def agreement(
    groups: Sequence[tuple[str, str, Any, Any, Any, Any, Sequence[str], Sequence[str]]], *, x_title: str, y_title: str,
    title: str = "", height: int = 420,
) -> go.Figure:
    """Draw groups of (name, colour, approximate, exact, exact low, exact high, point names, hovers)."""
    figure = go.Figure()
    values = np.concatenate([np.zeros(1), *(plain(g[i]) for g in groups for i in (2, 3))])
    low, high = float(values.min()), float(values.max())
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", name="agreement", hoverinfo="skip",
                       line={"color": NULL_GREY, "dash": "dot", "width": 1})  # fmt: skip
    points = [point for g in groups for point in zip(g[6], plain(g[2]), plain(g[3]), strict=True)]
    named = _apart(points, high - low)
    for name, colour, x, y, below, above, names, hover in groups:
        error = {"type": "data", "symmetric": False, "thickness": 1, "width": 3,
                 "array": plain(above) - plain(y), "arrayminus": plain(y) - plain(below)}  # fmt: skip
        figure.add_scatter(
            x=plain(x), y=plain(y), error_y=error, mode="markers+text", name=name, textposition="middle right",
            text=[label(n, 40).replace("·", " ") if n in named else "" for n in names],
            textfont={"size": 11}, marker={"color": colour or CATEGORIES[0], "size": 8},
            customdata=list(hover), hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    room = 0.12 * ((high - low) or 1.0)  # a name stands to the right of its point: the rightmost has to fit, too
    figure.update_layout(xaxis={"title": {"text": x_title}, "range": [low - room / 3, high + room]},
                         yaxis={"title": {"text": y_title}}, legend=LEGEND)  # fmt: skip
    figure = finish(figure, height, title)
    return figure.update_layout(margin={"t": 72}, title={"y": 0.98}) if title else figure


def _apart(points: Sequence[tuple[str, float, float]], width: float) -> set[str]:
    """Return the points with room for a name: from the outermost inwards, none near one that has its own."""
    taken: list[tuple[float, float]] = []
    names = set()
    for name, x, y in sorted(points, key=lambda p: -abs(p[1]) - abs(p[2])):
        if all(abs(x - a) > ROOM[0] * width or abs(y - b) > ROOM[1] * width for a, b in taken):
            taken.append((x, y))
            names.add(name)
    return names
