"""Heat maps: `pixels` (one, with token labels) and `grid` (several small ones that share their colours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.figures import cells
from backend.figures.style import DIVERGING, SEQUENTIAL, category_axis, finish, label, plain

CLICKABLE = 2000  # cells above which no click targets are laid over the map (each is a point the browser draws)
WORDY = 48  # columns above which a cell is too narrow for words: none would show, yet each would be laid out


def pixels(
    z: Any, *, x: Sequence[str], y: Sequence[str], x_title: str, y_title: str, value: str,
    limits: tuple[float, float] | None = None, diverging: bool = False, text: Any = None, hover: Any = None,
    reverse_y: bool = True, numbered_y: bool = True, title: str = "", height: int | None = None,
    colour_ticks: Mapping[str, Any] | None = None, rank: cells.Among | None = None, blank: str = "no value",
) -> go.Figure:
    """Draw z [row, column]. `text` stands in the cells, `hover` [row, column] replaces the hover's value.

    The hover says each cell's rank in the map, or in its row (`rank`); with `hover` only where asked for. A cell that
    is NaN is not drawn and says `blank`, if anything.
    Above WORDY columns `text` is left out: laying out 13 x 128 words took the browser 230 of 350 ms, to hide them all.
    A click gives customdata [row, column] where the map is small enough (CLICKABLE). A map too large to send shows of
    each block of cells the one farthest from 0, with its own hover; the axis then says "n of N".
    """
    among: cells.Among = rank if rank is not None else "map" if hover is None else ""
    row, full = cells.short(y_title), plain(z)
    n_values = int(np.isfinite(full).sum())
    kept = cells.sent(full, among, diverging, words=hover)
    z, (down_at, across_at) = kept.z, kept.at
    columns, x_axis = category_axis([x[i] for i in across_at], cells.said(x_title, across_at, x), at=across_at)
    y_title = cells.said(y_title, down_at, y)
    rows, y_axis = category_axis([y[i] for i in down_at], y_title, reverse_y, numbered_y, down_at)
    text = text if len(columns) <= WORDY and len(rows) == len(y) else None
    bar: dict[str, Any] = {"title": {"text": value, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    heat = go.Heatmap(
        z=z, x=columns, y=rows,
        colorbar=bar | dict(colour_ticks or {}), text=text, hoverongaps=False,
        texttemplate=None if text is None else "%{text}", **_colours(z, limits, diverging),
    )
    places = [f"{row} {r}" for r in rows], [f"{cells.short(x_title)} {c}" for c in columns]
    ranked = cells.ranks_in_words(kept.rank, among, n_values, diverging, row)
    targets = _targets(columns, rows, z, value, kept.more, places, ranked, blank)
    if targets:
        heat.hoverinfo = "skip"
    elif hover is None:
        said = cells.ranked_words(among, n_values, diverging, row)
        heat.customdata, last = kept.customdata, f"{value}: %{{z:.3g}}" + (f"<br>{said}" if said else "")
    else:
        heat.customdata, last = cells.joined(kept.more, ranked), "%{customdata}"
    if not targets:
        heat.hovertemplate = f"{row} %{{y}}<br>{cells.short(x_title)} %{{x}}<br>{last}<extra></extra>"
    figure = go.Figure([heat, *targets])
    figure.update_layout(hoverdistance=-1 if targets else 20)
    figure.update_layout(xaxis=x_axis, yaxis=y_axis)
    return finish(figure, height or int(np.clip(120 + 26 * len(rows), 320, 720)), title)


def _colours(z: np.ndarray, limits: tuple[float, float] | None, diverging: bool) -> dict[str, Any]:
    if limits is None:
        finite = z[np.isfinite(z)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        most = max(abs(low), abs(high))
        limits = (-most, most) if diverging else (low, high)
    return {"zmin": limits[0], "zmax": limits[1], "colorscale": DIVERGING if diverging else SEQUENTIAL}


def _targets(
    columns: Sequence[str], rows: Sequence[str], z: np.ndarray, value: str, hover: Any,
    places: tuple[list[str], list[str]], ranked: Any, blank: str = "no value",
) -> list[go.Scatter]:  # fmt: skip
    """Return almost transparent squares that hear clicks: of a heat map a click would bring what its hover says.

    They lie above the map, so they carry its hover too.
    """
    if len(columns) * len(rows) > CLICKABLE:
        return []
    words = cells.worded(z, value, hover, *places, ranked, blank)
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
        text, n_values = None if marks is None else marks[words], int(np.isfinite(z).sum())
        figure.add_trace(go.Heatmap(
            z=z, x=columns, y=rows, coloraxis="coloraxis", text=text, name=words,
            texttemplate=None if text is None else "%{text}",
            customdata=(rank := cells.ranks(z)), hovertemplate=f"{y_title} %{{y}}<br>{x_title} %{{x}}<br>{words}: "
            f"%{{z:.3g}}<br>{cells.ranked_words('map', n_values)}<extra></extra>"), 1, i)
        places = [f"{y_title} {r}" for r in rows], [f"{x_title} {c}" for c in columns]
        ranked = cells.ranks_in_words(rank, "map", n_values)
        for targets in _targets(columns, rows, z, words, None, places, ranked):
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
