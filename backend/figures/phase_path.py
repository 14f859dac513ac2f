"""A run's path through two metrics, with the step as colour."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.figures.style import CATEGORIES, SEQUENTIAL, finish, label, rgba

PATH_POINTS = 1500  # of one run's path that are drawn


def path(
    frames: Mapping[str, pd.DataFrame], *, x_title: str, y_title: str, log_x: bool = False, log_y: bool = False,
    log_time: bool = True, height: int = 480,
) -> go.Figure:
    """Draw one metric against another, [step, x, y] per run, with the step as colour (its logarithm where `log_time`);
    a ring marks the start, a square the end. Where a run has more than PATH_POINTS points every n-th is drawn."""
    figure = go.Figure()
    drawn = {run: _fewer(frame) for run, frame in frames.items() if len(frame)}
    most = max((float(f["step"].max()) for f in drawn.values()), default=1.0)
    for at, (run, frame) in enumerate(drawn.items()):
        figure.add_traces(_one_path(run, frame, CATEGORIES[at % 8], most, log_time, at == 0))
    figure.update_xaxes(title={"text": x_title}, type="log" if log_x else "linear")
    figure.update_yaxes(title={"text": y_title}, type="log" if log_y else "linear")
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
                         showlegend=len(drawn) > 1)  # fmt: skip
    return finish(figure, height).update_layout(margin={"t": 12})


def _fewer(frame: pd.DataFrame) -> pd.DataFrame:
    keep = np.unique(np.linspace(0, len(frame) - 1, min(len(frame), PATH_POINTS)).round().astype(int))
    return frame.sort_values("step").iloc[keep]


def _one_path(
    run: str, frame: pd.DataFrame, colour: str, most: float, log_time: bool, first: bool
) -> list[go.Scatter]:
    name, time = label(run, 40), np.log10(frame["step"] + 1) if log_time else frame["step"]
    top = float(np.log10(most + 1)) if log_time else most
    ticks = _step_ticks(most) if log_time else None
    bar = {"title": {"text": "step", "side": "right"}, "thickness": 12, "outlinewidth": 0}
    if ticks:
        bar |= {"tickvals": [float(np.log10(t + 1)) for t in ticks], "ticktext": [f"{t:g}" for t in ticks]}
    dots = {"color": time, "colorscale": SEQUENTIAL, "cmin": 0, "cmax": top or 1, "size": 6, "showscale": first,
            "colorbar": bar}  # fmt: skip
    hover = f"{name}<br>step %{{customdata}}<br>%{{x:.3g}}, %{{y:.3g}}<extra></extra>"
    line = go.Scatter(x=frame["x"], y=frame["y"], mode="lines+markers", name=name, customdata=frame["step"],
                      marker=dots, line={"color": rgba(colour, 0.6), "width": 1.5}, hovertemplate=hover)  # fmt: skip
    ends = [_end(frame.iloc[at], word, symbol, colour, place) for at, word, symbol, place in
            ((0, "start", "circle-open", "top center"), (-1, "end", "square-open", "bottom center"))]  # fmt: skip
    return [line, *ends]


def _end(row: pd.Series, word: str, symbol: str, colour: str, place: str) -> go.Scatter:
    """A mark with its word above (start) or below (end), so that two that lie together can both be read."""
    return go.Scatter(x=[row["x"]], y=[row["y"]], mode="markers+text", text=[word], textposition=place,
                      marker={"symbol": symbol, "size": 14, "color": colour, "line": {"width": 2}}, showlegend=False,
                      textfont={"size": 11}, hoverinfo="skip")  # fmt: skip


def _step_ticks(most: float) -> list[int]:
    return [0, *(10**k for k in range(1, 8) if 10**k <= most)]
