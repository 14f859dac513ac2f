"""Heat maps: `pixels` (one, with token labels) and `grid` (several small ones that share their colours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.figures.style import DIVERGING, SEQUENTIAL, category_axis, finish, label, plain

CLICKABLE = 2000  # cells above which no click targets are laid over the map (each is a point the browser draws)
#: cells sent at most, bare and with a hover of their own (some 130 bytes each): the house allows 2 MB per interaction
MOST_CELLS, MOST_WORDED = 190_000, 7_000
WORDY = 48  # columns above which a cell is too narrow for words: none would show, yet each would be laid out


def pixels(
    z: Any, *, x: Sequence[str], y: Sequence[str], x_title: str, y_title: str, value: str,
    limits: tuple[float, float] | None = None, diverging: bool = False, text: Any = None, hover: Any = None,
    reverse_y: bool = True, numbered_y: bool = True, title: str = "", height: int | None = None,
    colour_ticks: Mapping[str, Any] | None = None,
) -> go.Figure:
    """Draw z [row, column]. `text` stands in the cells, `hover` [row, column] replaces the hover's last line.

    Above WORDY columns `text` is left out: laying out 13 x 128 words took the browser 230 of 350 ms, to hide them all.
    A click gives customdata [row, column] where the map is small enough (CLICKABLE). A larger map than MOST_CELLS shows
    of each block of cells the one farthest from 0, with its own hover; the axis then says "n of N".
    """
    z, hover, (down_at, across_at) = _thinned(plain(z), hover)
    columns, x_axis = category_axis([x[i] for i in across_at], _said(x_title, across_at, x), at=across_at)
    rows, y_axis = category_axis([y[i] for i in down_at], _said(y_title, down_at, y), reverse_y, numbered_y, down_at)
    text = text if len(columns) <= WORDY and len(rows) == len(y) else None
    bar: dict[str, Any] = {"title": {"text": value, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    down, across = [f"{_short(y_title)} {r}" for r in rows], [f"{_short(x_title)} {c}" for c in columns]
    heat = go.Heatmap(
        z=z, x=columns, y=rows, colorbar=bar | dict(colour_ticks or {}), text=text,
        texttemplate=None if text is None else "%{text}", **_colours(z, limits, diverging),
    )
    targets = _targets(columns, rows, _words(z, value, hover, down, across))
    if targets:
        heat.hoverinfo = "skip"
    else:
        heat.customdata, last = hover, f"{value}: %{{z:.3g}}" if hover is None else "%{customdata}"
        heat.hovertemplate = f"{_short(y_title)} %{{y}}<br>{_short(x_title)} %{{x}}<br>{last}<extra></extra>"
    figure = go.Figure([heat, *targets])
    figure.update_layout(hoverdistance=-1 if targets else 20)
    figure.update_layout(xaxis=x_axis, yaxis=y_axis)
    return finish(figure, height or int(np.clip(120 + 26 * len(rows), 320, 720)), title)


def _thinned(z: np.ndarray, hover: Any) -> tuple[np.ndarray, Any, tuple[list[int], list[int]]]:
    """Return z and hover of at most as many cells as may be sent, and the first row and column of each block."""
    most, shape = MOST_CELLS if hover is None else MOST_WORDED, list(z.shape)
    long = int(np.argmax(shape))
    shape[long] = max(min(shape[long], most // max(shape[1 - long], 1)), min(shape[1 - long], int(most**0.5)))
    shape[1 - long] = min(shape[1 - long], max(1, most // shape[long]))
    starts = [list(range(0, n, -(-n // m))) if n else [] for n, m in zip(z.shape, shape, strict=True)]
    if [len(s) for s in starts] == list(z.shape):
        return z, hover, (starts[0], starts[1])
    words = None if hover is None else np.asarray(hover, object)
    for axis, first in enumerate(starts):
        size = np.abs(np.nan_to_num(z, nan=-np.inf, posinf=np.inf, neginf=np.inf)) * np.where(np.isnan(z), -1, 1)
        blocks = np.split(size, first[1:], axis)
        pick = np.stack([b.argmax(axis) + f for b, f in zip(blocks, first, strict=True)], axis)
        z = np.take_along_axis(z, pick, axis)
        words = None if words is None else np.take_along_axis(words, pick, axis)
    return z, None if words is None else words.tolist(), (starts[0], starts[1])


def _said(title: str, at: Sequence[int], labels: Sequence[str]) -> str:
    return title if len(at) == len(labels) else f"{title}, {len(at)} of {len(labels)}: the largest of each block"


def _short(title: str) -> str:
    return title.split(" (")[0]


def _words(z: np.ndarray, value: str, hover: Any, rows: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the hover of every cell, row by row."""
    last = [f"{value}: {v:.3g}" for v in z.flat] if hover is None else [str(h) for row in hover for h in row]
    places = [f"{r}<br>{c}" for r in rows for c in columns]
    return [f"{place}<br>{words}" for place, words in zip(places, last, strict=True)]


def _colours(z: np.ndarray, limits: tuple[float, float] | None, diverging: bool) -> dict[str, Any]:
    if limits is None:
        finite = z[np.isfinite(z)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        most = max(abs(low), abs(high))
        limits = (-most, most) if diverging else (low, high)
    return {"zmin": limits[0], "zmax": limits[1], "colorscale": DIVERGING if diverging else SEQUENTIAL}


def _targets(columns: Sequence[str], rows: Sequence[str], words: Sequence[str]) -> list[go.Scatter]:
    """Return almost transparent squares that hear clicks: streamlit reports points, never heat map cells.

    They lie above the map, so they carry its hover too.
    """
    if len(columns) * len(rows) > CLICKABLE:
        return []
    row, column = (axis.ravel() for axis in np.indices((len(rows), len(columns))))
    return [go.Scatter(  # arrays, not lists: plotly looks at every item of a list
        x=np.array(columns, object)[column], y=np.array(rows, object)[row], text=np.array(words, object),
        customdata=np.stack([row, column], 1),
        mode="markers", marker={"symbol": "square", "size": 14, "color": "rgba(0,0,0,0.004)"}, showlegend=False,
        hovertemplate="%{text}<extra></extra>", name="cells",
    )]


def grid(
    maps: Mapping[str, Any], *, x_title: str, y_title: str, value: str,
    limits: tuple[float, float], marks: Mapping[str, Any] | None = None,
) -> go.Figure:
    """Draw one small map per entry, side by side, on one colour axis. `marks` are texts [row, column] per entry."""
    figure = make_subplots(1, len(maps), subplot_titles=[label(w, 40) for w in maps], shared_yaxes=True,
                           horizontal_spacing=0.03)
    for i, (words, z) in enumerate(maps.items(), start=1):
        z = plain(z)
        columns, x_axis = category_axis([str(c) for c in range(z.shape[1])], x_title)
        rows, y_axis = category_axis([str(r) for r in range(z.shape[0])], y_title if i == 1 else "", reverse=True)
        text = None if marks is None else marks[words]
        figure.add_trace(go.Heatmap(
            z=z, x=columns, y=rows, coloraxis="coloraxis", text=text, name=words,
            texttemplate=None if text is None else "%{text}",
            hovertemplate=f"{y_title} %{{y}}<br>{x_title} %{{x}}<br>{words}: %{{z:.3g}}<extra></extra>"), 1, i)
        hover = _words(z, words, None, [f"{y_title} {r}" for r in rows], [f"{x_title} {c}" for c in columns])
        for targets in _targets(columns, rows, hover):
            figure.data[-1].hoverinfo = "skip"
            figure.add_trace(targets, 1, i)
            figure.update_layout(hoverdistance=-1)
        figure.update_xaxes(x_axis, row=1, col=i)
        figure.update_yaxes(y_axis | ({} if i == 1 else {"showticklabels": False}), row=1, col=i)
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "cmin": limits[0], "cmax": limits[1], "colorbar": {
        "title": {"text": value, "side": "right"}, "thickness": 12, "outlinewidth": 0}})
    figure.update_annotations(font_size=12)
    height = int(np.clip(140 + 24 * len(next(iter(maps.values()))), 260, 720))
    return finish(figure, height).update_layout(margin={"t": 44})
