"""Small maps in several rows: one per quantity, each with colours and limits of its own, or all on one scale."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.figures import cells
from backend.figures.style import DIVERGING, SEQUENTIAL, category_axis, finish, label, plain, tick_positions

SQUARE = 500  # px that square maps side by side have, titles and bars apart
NARROW_TITLE, LINE = 18, 14  # characters and px of a line of a title above one of several maps
NARROW = 16  # token labels that can be read along one of two maps side by side


@dataclass
class Panel:
    """One map z [row, column]: limits None for its own range; marks stand in the cells, hover replaces the words; a
    line runs around the cells that are `outlined` [row, column] of bool. Without `bar` it shares that of the next."""

    z: Any
    limits: tuple[float, float] | None = None
    diverging: bool = False
    marks: Any = None
    hover: Any = None
    outlined: Any = None
    bar: bool = True


def panels(
    maps: Mapping[str, Panel], *, x_title: str, y_title: str, columns: int = 4, value: str = "", square: bool = False
) -> go.Figure:
    """Draw the maps in rows of `columns`, numbered axes. With `value` all share the first one's scale and one bar;
    `square`: cells are as wide as high."""
    rows = -(-len(maps) // columns)
    titles = [_title(words, columns) for words in maps]
    more = LINE * max(title.count("<br>") for title in titles)
    height = _height(maps, rows, columns if square else 0) + rows * more
    apart = 0.02 if value else 0.1 if columns > 4 else 0.08  # bars of their own stand between the maps
    figure = make_subplots(rows, min(columns, len(maps)), subplot_titles=titles, horizontal_spacing=apart,
                           vertical_spacing=min(0.9 / rows, (84 + more) / height))
    for i, (words, panel) in enumerate(maps.items()):
        row, column = i // columns + 1, i % columns + 1
        z = plain(panel.z)
        across, x_axis = category_axis([str(c) for c in range(z.shape[1])], x_title)
        down, y_axis = category_axis([str(r) for r in range(z.shape[0])], y_title if column == 1 else "", reverse=True)
        below = i + columns >= len(maps)  # nothing stands under it: it names the axis
        figure.update_xaxes(x_axis | ({} if below else {"title": {"text": ""}}), row=row, col=column)
        figure.update_yaxes(y_axis | ({} if column == 1 else {"showticklabels": False}), row=row, col=column)
        figure.add_trace(_map(z, across, down, words, panel, (x_title, y_title)), row, column)
        _scale(figure, panel, z, value, (row, column))
        for x, y in borders(panel.outlined):
            figure.add_shape(type="line", x0=x[0], x1=x[1], y0=y[0], y1=y[1], line={"color": "#000000", "width": 2},
                             row=row, col=column)  # fmt: skip
        if square:
            anchor = figure.get_subplot(row, column).yaxis.anchor
            figure.update_yaxes(scaleanchor=anchor, constrain="domain", row=row, col=column,
                                constraintoward="top" if value else "middle")  # bars of their own stay beside
            figure.update_xaxes(constrain="domain", row=row, col=column)
            for update, axis in ((figure.update_xaxes, x_axis), (figure.update_yaxes, y_axis)):
                few = tick_positions(len(axis["ticktext"]), max(3, 18 // columns))
                shown = {name: [axis[name][t] for t in few] for name in ("tickvals", "ticktext")}
                update(shown, row=row, col=column)
    if value:
        first = next(iter(maps.values()))
        figure.update_layout(coloraxis=_colours(first, plain(first.z), "c") | {"colorbar": _bar(value)})
    figure.update_annotations(font_size=12)
    return finish(figure, height).update_layout(margin={"t": 34 + more})


def _title(words: str, columns: int) -> str:
    """Return a map's title; of three or more in a row in lines that do not reach the next one's."""
    said = label(words, 34).replace("·", " ")
    return "<br>".join(textwrap.wrap(said, NARROW_TITLE)) if columns > 2 else said


def beside(
    maps: Mapping[str, tuple[Any, str]], *, limits: tuple[float, float], x: Sequence[str], y: Sequence[str],
    x_title: str, y_title: str, more: Mapping[str, tuple[Any, str]] | None = None,
) -> go.Figure:  # fmt: skip
    """Draw maps [query, key] of the same tokens side by side, {title: (z, word for the hover)}, on one colour scale.

    The hover says the rank among the row's cells, and the second number that `more` has of a title. A title may have
    lines. Of large maps each block's largest cell is shown and the axes say "n of N".
    """
    titles = ["<br>".join(label(part, 40).replace("·", " ") for part in words.split("\n")) for words in maps]
    figure = make_subplots(1, len(maps), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    for i, (name, (z, word)) in enumerate(maps.items(), start=1):
        second, second_word = (more or {}).get(name, (None, ""))
        kept = cells.sent(plain(z), "row", more=second, maps=len(maps))
        down_at, across_at = kept.at
        across, x_axis = category_axis([x[i] for i in across_at], cells.said(x_title, across_at, x), at=across_at)
        down, y_axis = category_axis([y[i] for i in down_at], cells.said(y_title, down_at, y) if i == 1 else "", True,
                                     at=down_at)  # fmt: skip
        ticks = tick_positions(len(across), NARROW)
        x_axis |= {"tickvals": ticks, "ticktext": [label(x[across_at[t]]) for t in ticks]}
        figure.update_xaxes(x_axis, row=1, col=i)
        figure.update_yaxes(y_axis | ({} if i == 1 else {"showticklabels": False}), row=1, col=i)
        figure.add_trace(_map(kept.z.astype(np.float32), across, down, word, Panel(z), ("key", "query")), 1, i)
        number = "%{customdata}" if second is None else "%{customdata[0]}"
        last = f"{word}: %{{z:.3g}}" + (f"<br>{second_word}: %{{customdata[1]:.3g}}" if second is not None else "")
        figure.data[-1].update(
            coloraxis="coloraxis", customdata=kept.customdata, hovertemplate="query %{y}<br>key %{x}<br>"
            f"{last}<br>{cells.ranked_words('row', 0, row='query', rank=number)}<extra></extra>")  # fmt: skip
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "cmin": limits[0], "cmax": limits[1],
                                    "colorbar": _bar("")})  # fmt: skip
    figure.update_annotations(font_size=12)
    return finish(figure, int(np.clip(140 + 18 * len(y), 320, 640))).update_layout(margin={"t": 50})


def borders(inside: Any) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the edges ((x0, x1), (y0, y1)) between cells inside and outside of a region [row, column], its own places
    being 0, 1, 2, ..; the outermost edges belong to it as well."""
    if inside is None:
        return []
    framed = np.pad(np.asarray(inside, bool), 1)
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for row, column in np.argwhere(framed[:, 1:] != framed[:, :-1]).tolist():
        found.append(((column - 0.5, column - 0.5), (row - 1.5, row - 0.5)))
    for row, column in np.argwhere(framed[1:] != framed[:-1]).tolist():
        found.append(((column - 1.5, column - 0.5), (row - 0.5, row - 0.5)))
    return found


def _height(maps: Mapping[str, Panel], rows: int, across: int = 0) -> int:
    """Return px; `across` square maps beside each other are no higher than the page lets them be wide."""
    tallest = max(len(p.z) for p in maps.values())
    return int(rows * min(np.clip(70 + 22 * tallest, 150, 330), SQUARE / across + 70 if across else 330) + 50)


def _map(z: np.ndarray, across: list[str], down: list[str], words: str, panel: Panel,
         titles: tuple[str, str]) -> go.Heatmap:  # fmt: skip
    rank, n = cells.ranks(z, "map", panel.diverging), int(np.isfinite(z).sum())
    said = cells.ranked_words("map", n, panel.diverging)
    if panel.hover is None:
        data, last = rank, f"{words}: %{{z:.3g}}<br>{said}"
    else:
        data, last = cells.joined(panel.hover, cells.ranks_in_words(rank, "map", n, panel.diverging)), "%{customdata}"
    return go.Heatmap(
        z=z, x=across, y=down, text=panel.marks, texttemplate=None if panel.marks is None else "%{text}",
        customdata=data, name=words, hoverongaps=False,
        hovertemplate=f"{titles[1]} %{{y}}<br>{titles[0]} %{{x}}<br>{last}<extra></extra>",
    )  # fmt: skip


def _scale(figure: go.Figure, panel: Panel, z: np.ndarray, value: str, place: tuple[int, int]) -> None:
    """Give the newest map the shared scale, or one of its own with a bar at its right edge."""
    if value:
        figure.data[-1].coloraxis = "coloraxis"
        return
    sub = figure.get_subplot(*place)
    (_, right), (low, high) = sub.xaxis.domain, sub.yaxis.domain
    bar = _bar("") | {"x": right + 0.004, "xanchor": "left", "y": (low + high) / 2, "len": high - low, "nticks": 4,
                      "tickfont": {"size": 10}, "xpad": 0, "ypad": 0}  # fmt: skip
    figure.data[-1].update(_colours(panel, z, "z") | {"colorbar": bar, "showscale": panel.bar})


def _bar(value: str) -> dict[str, Any]:
    return {"title": {"text": value, "side": "right"}, "thickness": 8 if not value else 12, "outlinewidth": 0}


def _colours(panel: Panel, z: np.ndarray, letter: str) -> dict[str, Any]:
    """Return colour scale and limits, as a trace ("z") or a shared axis ("c") words them."""
    finite = z[np.isfinite(z)]
    low, high = panel.limits or ((float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0))
    if panel.diverging:
        high = max(abs(low), abs(high))
        low = -high
    if low == high:  # a constant map is drawn in one colour, not left white
        high = low + 1.0
    return {"colorscale": DIVERGING if panel.diverging else SEQUENTIAL, f"{letter}min": low, f"{letter}max": high}
