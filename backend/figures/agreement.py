"""An approximate value against the exact one: points with the interval of the exact, and the line where they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from backend.figures.lines import LEGEND
from backend.figures.style import CATEGORIES, NULL_GREY, finish, label, plain


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
    for name, colour, x, y, below, above, names, hover in groups:
        error = {"type": "data", "symmetric": False, "thickness": 1, "width": 3,
                 "array": plain(above) - plain(y), "arrayminus": plain(y) - plain(below)}  # fmt: skip
        figure.add_scatter(
            x=plain(x), y=plain(y), error_y=error, mode="markers+text", text=[label(n) for n in names], name=name,
            textposition="top center", textfont={"size": 11}, marker={"color": colour or CATEGORIES[0], "size": 8},
            customdata=list(hover), hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(xaxis={"title": {"text": x_title}}, yaxis={"title": {"text": y_title}}, legend=LEGEND)
    return finish(figure, height, title)
