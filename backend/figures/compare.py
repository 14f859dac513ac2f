"""Two states of one thing and their difference: before | after share their colours, the difference is white at 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.figures import cells
from backend.figures.style import DIVERGING, SEQUENTIAL, category_axis, finish, label, plain, tick_positions

TICKS = 16  # labels that can be read along a third of the page
WORDY = 24  # columns above which words in the cells of a third of the page cannot be read


def compared(
    before: Any, after: Any, *, x: Sequence[str], y: Sequence[str], x_title: str, y_title: str, value: str,
    limits: tuple[float, float] | None = None, titles: tuple[str, str] = ("before", "after"), text: Any = None,
    reverse_y: bool = True, numbered_y: bool = True, sequential: Any = SEQUENTIAL, rank: cells.Among = "map",
) -> go.Figure:
    """Draw before | after | after - before of two maps [row, column] on shared, linked axes.

    `text` is a pair of words [row, column] for the first two. A cell that is NaN in either has no difference. The hover
    says each cell's rank in its map or row; of large maps each block's largest cell is shown.
    """
    maps = [plain(np.asarray(m, float)) for m in (before, after)]
    kept = [cells.sent(z, rank, at == 2, maps=3) for at, z in enumerate([*maps, maps[1] - maps[0]])]
    down_at, across_at = kept[0].at
    across_title, down_title = cells.said(x_title, across_at, x), cells.said(y_title, down_at, y)
    x, y = [x[i] for i in across_at], [y[i] for i in down_at]
    columns, x_axis = category_axis(x, across_title, at=across_at)
    rows, y_axis = category_axis(y, down_title, reverse_y, numbered_y, down_at)
    ticks = tick_positions(len(columns), TICKS)
    x_axis |= {"tickvals": ticks, "ticktext": [label(x[i]) for i in ticks]}
    figure = make_subplots(1, 3, subplot_titles=[*titles, "difference"],
                           shared_xaxes="all", shared_yaxes="all", horizontal_spacing=0.03)
    words = [*(text or (None, None)), None]
    for i, part in enumerate(kept, start=1):
        said = cells.ranked_words(rank, int(np.isfinite(maps[0]).sum()), i == 3, cells.short(y_title))
        figure.add_trace(_map(part, columns, rows, (x_title, y_title, value), i, words[i - 1], said), 1, i)
        figure.update_xaxes(x_axis | {"tickangle": 0 if len(columns) <= 16 else 90}, row=1, col=i)
        figure.update_yaxes(y_axis | ({} if i == 1 else {"title": {"text": ""}, "showticklabels": False}), row=1, col=i)
    low, high = limits or _range(np.stack(maps))
    difference = np.abs(kept[2].z)
    most = float(np.nanmax(difference)) if np.isfinite(difference).any() else 0.0
    bar = {"thickness": 10, "outlinewidth": 0, "orientation": "h", "yanchor": "top", "y": -0.2, "len": 0.3}
    figure.update_layout(
        coloraxis={"colorscale": sequential, "cmin": low, "cmax": high,
                   "colorbar": bar | {"x": 0.32, "title": {"text": value, "side": "bottom"}}},
        coloraxis2={"colorscale": DIVERGING, "cmin": -(most or 1.0), "cmax": most or 1.0,
                    "colorbar": bar | {"x": 0.84, "title": {"text": "after − before", "side": "bottom"}}})
    figure.update_annotations(font_size=13)
    height = int(np.clip(270 + 20 * len(rows), 420, 660))
    return finish(figure, height).update_layout(margin={"t": 54, "b": 110})


def _map(
    part: cells.Cells, columns: Any, rows: Any, words: tuple[str, str, str], place: int, text: Any, ranked: str
) -> go.Heatmap:
    signed, (x_title, y_title, value) = place == 3, words
    what = f"difference of {value}: %{{z:+.3g}}" if signed else f"{value}: %{{z:.3g}}"
    shown = text if text is not None and len(columns) <= WORDY else None
    return go.Heatmap(
        z=part.z.astype(np.float32), x=columns, y=rows, coloraxis="coloraxis2" if signed else "coloraxis", text=shown,
        texttemplate=None if shown is None else "%{text}", name=("before", "after", "difference")[place - 1],
        customdata=part.customdata, hoverongaps=False, hovertemplate=f"{cells.short(y_title)} %{{y}}<br>"
        f"{cells.short(x_title)} %{{x}}<br>{what}<br>{ranked}<extra></extra>")  # fmt: skip


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
    """Give the figures one colour range per colour axis (heatmap, points), one range per x and y axis, one order of
    categories and one set of named ticks."""
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
    for axis in {a for f in figures for letter in "xy" for a in _keys(f, f"{letter}axis")}:
        _share(figures, axis)


def _keys(figure: go.Figure, start: str) -> list[str]:
    return [k for k in figure.layout if str(k).startswith(start)]


def _share(figures: Sequence[go.Figure], axis: str) -> None:
    """Align one axis: categories in the first figure's order, given ranges and ticks joined, else one range of what is
    drawn. A log or reversed axis stays as it is."""
    layouts = [f.layout[axis] for f in figures]
    if any(a.type == "category" for a in layouts):
        _share_categories(figures, axis)
    elif all(a.type in (None, "linear") and a.autorange != "reversed" for a in layouts):
        _share_ticks(layouts)
        given = [tuple(a.range) for a in layouts if a.range is not None]
        low, high = _joined_range(given) if given else _drawn_range(figures, axis)
        for layout in layouts if low is not None else ():
            layout.range = [low, high]


def _joined_range(given: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in given), max(high for _, high in given)


def _share_ticks(layouts: Sequence[Any]) -> None:
    named = {v: t for a in layouts if a.tickvals is not None and a.ticktext is not None
             for v, t in zip(a.tickvals, a.ticktext, strict=False)}  # fmt: skip
    for layout in layouts if named else ():
        layout.update(tickvals=sorted(named), ticktext=[named[v] for v in sorted(named)])


def _share_categories(figures: Sequence[go.Figure], axis: str) -> None:
    """The first figure's order, then what only the others have; an axis that has an order of its own keeps it."""
    if any(f.layout[axis].categoryarray is not None for f in figures):
        return
    found: dict[str, None] = {}
    for values in _values(figures, axis):
        found |= dict.fromkeys(map(str, values))
    for figure in figures if found else ():
        figure.layout[axis].update(categoryorder="array", categoryarray=list(found))


def _values(figures: Sequence[go.Figure], axis: str, kinds: Sequence[str] = ("scatter", "bar")) -> list[Any]:
    letter = axis[0]
    return [t[letter] for f in figures for t in f.data if t.type in kinds and t[letter] is not None
            and (t[f"{letter}axis"] or letter).replace(letter, f"{letter}axis", 1) == axis]  # fmt: skip


def _drawn_range(figures: Sequence[go.Figure], axis: str) -> tuple[float, float] | tuple[None, None]:
    """Return the range of lines and bars with a little room, (None, None) where nothing numeric is drawn."""
    drawn = _values(figures, axis)
    try:
        values = np.concatenate([np.asarray(v, float) for v in drawn]) if drawn else np.empty(0)
    except (TypeError, ValueError):  # categories
        return None, None
    values = values[np.isfinite(values)]
    if not values.size:
        return None, None
    low, high = float(values.min()), float(values.max())
    if axis.startswith("y") and _values(figures, axis, ("bar",)):
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.06 * ((high - low) or 1.0)
    return low - room, high + room
