"""Heights over a plane: filled contours with the middle marked, on equal axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from backend.figures.style import NULL_GREY, SEQUENTIAL, finish, plain


def surface(
    x: Any, y: Any, z: Any, *, x_title: str, y_title: str, value: str, marked: str = "", height: int = 460
) -> go.Figure:
    """Draw z [y, x] over x and y as contours; `marked` names the cross at (0, 0)."""
    z = plain(z)
    finite = z[np.isfinite(z)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    high = high if high > low else low + 1.0
    figure = go.Figure(go.Contour(
        x=plain(x), y=plain(y), z=z, colorscale=SEQUENTIAL, line={"width": 0.6, "color": "rgba(255,255,255,0.7)"},
        contours={"start": low, "end": high, "size": (high - low) / 16},
        colorbar={"title": {"text": value, "side": "right"}, "thickness": 12, "outlinewidth": 0,
                  "tickformat": ".3~g"},
        hovertemplate=f"{x_title} %{{x:.3g}}<br>{y_title} %{{y:.3g}}<br>{value}: %{{z:.4g}}<extra></extra>",
    ))  # fmt: skip
    if marked:
        figure.add_scatter(x=[0], y=[0], mode="markers", name=marked, showlegend=False,
                           marker={"symbol": "cross-thin-open", "size": 14, "color": NULL_GREY, "line": {"width": 3}},
                           hovertemplate=f"{marked}<extra></extra>")  # fmt: skip
    figure.update_layout(xaxis={"title": {"text": x_title}, "constrain": "domain"},
                         yaxis={"title": {"text": y_title}, "scaleanchor": "x", "constrain": "domain"})  # fmt: skip
    return finish(figure, height)
