"""Two states of one thing and their difference: before | after share their colours, the difference is white at 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.figures.style import DIVERGING, SEQUENTIAL, category_axis, finish, label, plain, tick_positions

TICKS = 16  # labels that can be read along a third of the page
WORDY = 24  # columns above which words in the cells of a third of the page cannot be read


def compared(
    before: Any, after: Any, *, x: Sequence[str], y: Sequence[str], x_title: str, y_title: str, value: str,
    limits: tuple[float, float] | None = None, titles: tuple[str, str] = ("before", "after"), text: Any = None,
    reverse_y: bool = True, numbered_y: bool = True, sequential: Any = SEQUENTIAL,
) -> go.Figure:
    """Draw before | after | after - before of two maps [row, column] on shared, linked axes.

    `text` is a pair of words [row, column] for the first two. A cell that is NaN in either has no difference.
    """
    maps = [plain(np.asarray(m, float)) for m in (before, after)]
    difference = maps[1] - maps[0]
    columns, x_axis = category_axis(x, x_title)
    rows, y_axis = category_axis(y, y_title, reverse_y, numbered_y)
    ticks = tick_positions(len(columns), TICKS)
    x_axis |= {"tickvals": ticks, "ticktext": [label(x[i]) for i in ticks]}
    figure = make_subplots(1, 3, subplot_titles=[*titles, "difference"],
                           shared_xaxes="all", shared_yaxes="all", horizontal_spacing=0.03)
    words = [*(text or (None, None)), None]
    for i, z in enumerate([*maps, difference], start=1):
        figure.add_trace(_map(z, columns, rows, x_title, y_title, value, i, words[i - 1]), 1, i)
        figure.update_xaxes(x_axis | {"tickangle": 0 if len(columns) <= 16 else 90}, row=1, col=i)
        figure.update_yaxes(y_axis | ({} if i == 1 else {"title": {"text": ""}, "showticklabels": False}), row=1, col=i)
    low, high = limits or _range(np.stack(maps))
    most = float(np.nanmax(np.abs(difference))) if np.isfinite(difference).any() else 0.0
    bar = {"thickness": 10, "outlinewidth": 0, "orientation": "h", "yanchor": "top", "y": -0.2, "len": 0.3}
    figure.update_layout(
        coloraxis={"colorscale": sequential, "cmin": low, "cmax": high,
                   "colorbar": bar | {"x": 0.32, "title": {"text": value, "side": "bottom"}}},
        coloraxis2={"colorscale": DIVERGING, "cmin": -(most or 1.0), "cmax": most or 1.0,
                    "colorbar": bar | {"x": 0.84, "title": {"text": "after − before", "side": "bottom"}}})
    figure.update_annotations(font_size=13)
    height = int(np.clip(270 + 20 * len(rows), 420, 660))
    return finish(figure, height).update_layout(margin={"t": 54, "b": 110})


def _map(z: Any, columns: Any, rows: Any, x_title: str, y_title: str, value: str, place: int, text: Any) -> go.Heatmap:
    signed = place == 3
    what = f"difference of {value}: %{{z:+.3g}}" if signed else f"{value}: %{{z:.3g}}"
    shown = text if text is not None and len(columns) <= WORDY else None
    return go.Heatmap(
        z=z, x=columns, y=rows, coloraxis="coloraxis2" if signed else "coloraxis", text=shown,
        texttemplate=None if shown is None else "%{text}", name=("before", "after", "difference")[place - 1],
        hovertemplate=f"{y_title.split(' (')[0]} %{{y}}<br>{x_title.split(' (')[0]} %{{x}}<br>{what}<extra></extra>")


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def differences(
    names: Sequence[str], before: Any, after: Any, *, x_title: str, y_title: str, height: int = 300
) -> go.Figure:
    """Draw after - before as bars around 0, one per name."""
    change = plain(np.asarray(after, float) - np.asarray(before, float))
    colours = ["#b2182b" if c > 0 else "#2166ac" for c in change]
    figure = go.Figure(go.Bar(x=list(names), y=change, marker={"color": colours}, name="difference",
                              hovertemplate="%{x}<br>%{y:+.3g}<extra></extra>"))
    most = float(np.nanmax(np.abs(change))) if np.isfinite(change).any() else 1.0
    figure.update_layout(xaxis={"title": {"text": x_title}, "type": "category"},
                         yaxis={"title": {"text": y_title}, "range": [-1.1 * (most or 1), 1.1 * (most or 1)]})
    return finish(figure, height)


def share_limits(figures: Sequence[go.Figure]) -> None:
    """Give the figures one colour range per colour axis (heatmap, points) and one range per y axis."""
    for axis in {a for f in figures for a in _keys(f, "coloraxis")}:
        ends = [(f.layout[axis].cmin, f.layout[axis].cmax) for f in figures if axis in f.layout]
        lows, highs = [low for low, _ in ends if low is not None], [high for _, high in ends if high is not None]
        if lows and highs:
            for figure in figures:
                figure.layout[axis].update(cmin=min(lows), cmax=max(highs))
    heats = [t for f in figures for t in f.data if t.type == "heatmap" and t.zmin is not None]
    for trace in heats:
        trace.update(zmin=min(t.zmin for t in heats), zmax=max(t.zmax for t in heats))
    dots = [t for f in figures for t in f.data if t.type == "scatter" and t.marker.cmin is not None]
    for trace in dots:
        trace.marker.update(cmin=min(t.marker.cmin for t in dots), cmax=max(t.marker.cmax for t in dots))
    for axis in {a for f in figures for a in _keys(f, "yaxis")}:
        _share_y(figures, axis)


def _keys(figure: go.Figure, start: str) -> list[str]:
    return [k for k in figure.layout if str(k).startswith(start)]


def _share_y(figures: Sequence[go.Figure], axis: str) -> None:
    """Lines and bars on this axis get one range; a category, log or hand-set axis stays."""
    layouts = [f.layout[axis] for f in figures]
    if any(a.type not in (None, "linear") or a.range is not None or a.autorange == "reversed" for a in layouts):
        return
    drawn = [t for f in figures for t in f.data if t.type in ("scatter", "bar")
             and (t.yaxis or "y").replace("y", "yaxis") == axis and t.y is not None]
    try:
        values = np.concatenate([np.asarray(t.y, float) for t in drawn]) if drawn else np.empty(0)
    except (TypeError, ValueError):  # categories
        return
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if any(t.type == "bar" for t in drawn):
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.06 * ((high - low) or 1.0)
    for layout in layouts:
        layout.range = [low - room, high + room]
