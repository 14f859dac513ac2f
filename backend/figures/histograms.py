"""Spectra: a histogram of values beside the density that noise would give, one panel per matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.figures.style import CATEGORIES, NULL_GREY, finish, label

BINS = 40


@dataclass
class Spectrum:
    """Values, the density (x, y) of noise in the same unit, and where noise ends."""

    name: str
    values: Any
    noise_x: Any
    noise_y: Any
    edge: float


def spectra(shown: Sequence[Spectrum], *, x_title: str, noise: str, height: int = 340) -> go.Figure:
    """Draw a histogram of each spectrum as a density; the noise's density in grey, its edge dotted."""
    figure = make_subplots(1, max(1, len(shown)), subplot_titles=[label(s.name, 40).replace("·", " ") for s in shown],
                           horizontal_spacing=0.09)  # fmt: skip
    for i, one in enumerate(shown, start=1):
        high, edges = _histogram(np.asarray(one.values, float), one.edge)
        middle, hover = (edges[1:] + edges[:-1]) / 2, _words(one.values, edges)
        first = {"showlegend": i == 1}
        figure.add_trace(go.Bar(x=middle, y=high, width=np.diff(edges), name="this matrix", text=hover, **first,
                                textposition="none", marker={"color": CATEGORIES[0], "opacity": 0.75},
                                hovertemplate="%{text}<extra></extra>"), 1, i)  # fmt: skip
        figure.add_trace(go.Scatter(x=one.noise_x, y=one.noise_y, mode="lines", name=noise, hoverinfo="skip", **first,
                                    line={"color": NULL_GREY, "width": 2}), 1, i)  # fmt: skip
        top = float(max(high.max(), np.max(one.noise_y)))
        figure.add_trace(go.Scatter(x=[one.edge] * 2, y=[0, top], mode="lines", name="edge of the noise", **first,
                                    hovertemplate=f"edge of the noise: {one.edge:.3g}<extra></extra>",
                                    line={"color": CATEGORIES[5], "dash": "dot", "width": 1.5}), 1, i)  # fmt: skip
        figure.update_xaxes(title={"text": x_title}, row=1, col=i)
        figure.update_yaxes(title={"text": "density" if i == 1 else ""}, row=1, col=i)
    figure.update_annotations(font_size=12)
    figure.update_layout(legend={"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0})
    return finish(figure, height).update_layout(margin={"t": 40})


def _histogram(values: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (density, edges): bins as fine as the number of values allows, a few within the noise at least."""
    most = max(float(values.max()), edge) * 1.02
    bins = int(np.clip(2 * np.sqrt(len(values)) * most / max(edge, 1e-30) / 2, 8, 2 * BINS))
    high, edges = np.histogram(values, bins=bins, range=(0, most), density=True)
    return high, edges


def _words(values: Any, edges: np.ndarray) -> list[str]:
    counts = np.histogram(values, edges)[0]
    return [f"{a:.3g} to {b:.3g}: {n} of {len(values)}" for a, b, n in zip(edges, edges[1:], counts, strict=False)]
