"""Line charts with interval bands, and bars with error bars beside their null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.figures.style import BAND, CATEGORIES, NULL_GREY, finish, label, plain, rgba

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARK = "#d55e00"  # where the page's slider stands
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


@dataclass
class Line:
    """One curve: x, y, and where known the interval [low, high] drawn as a band."""

    name: str
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    colour: str = ""
    hover: Sequence[str] | None = None
    dash: str = ""


def lines(curves: Sequence[Line], *, x_title: str, y_title: str, log_x: bool = False, height: int = 340) -> go.Figure:
    """Draw curves on one pair of axes; titles carry the unit. Several grey ones are told apart by their dashes."""
    figure = go.Figure([t for i, c in enumerate(_dashed(curves)) for t in _traces(c, i)])
    figure.update_layout(xaxis={"title": {"text": x_title}} | (_decades([t.x for t in figure.data]) if log_x else {}),
                         yaxis={"title": {"text": y_title}}, showlegend=len(curves) > 1,
                         legend=LEGEND)
    return finish(figure, height)


def _dashed(curves: Sequence[Line]) -> list[Line]:
    grey = [c for c in curves if c.colour == NULL_GREY]
    if len(grey) < 2:
        return list(curves)
    dashes = {id(c): DASHES[i % len(DASHES)] for i, c in enumerate(grey)}
    return [replace(c, dash=c.dash or dashes.get(id(c), "")) for c in curves]


def stacked_lines(
    panels: Sequence[tuple[Line | Sequence[Line], str, Mapping[str, Any]]], *, x_title: str,
    x_axis: Mapping[str, Any] | None = None, title: str = "",
) -> go.Figure:
    """Draw one (line or lines, y title, y axis settings) per row under a shared x axis.

    The lines of a row say their names in their hover, or are told apart in `title`: there is no legend.
    """
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (line, y_title, settings) in enumerate(panels, start=1):
        drawn = [line] if isinstance(line, Line) else line
        for at, one in enumerate(drawn):
            figure.add_traces(_traces(one, row - 1 + at), rows=row, cols=1)
        figure.update_yaxes({"title": {"text": y_title}} | dict(settings), row=row, col=1)
        figure.update_xaxes(dict(x_axis or {}), row=row, col=1)
    figure.update_xaxes(title={"text": x_title}, row=len(panels), col=1)
    figure.update_layout(showlegend=False)
    return finish(figure, 160 + 150 * len(panels), title)


def _traces(line: Line, index: int) -> list[go.Scatter]:
    colour = line.colour or CATEGORIES[index % len(CATEGORIES)]
    x, y = plain(line.x), plain(line.y)
    name = label(line.name, 40).replace("·", " ")  # a line is named in words, not by a token
    template = ("%{text}" if line.hover is not None else f"{name}: %{{y:.3g}}") + "<extra></extra>"
    mode = "lines+markers" if len(x) <= 60 and line.dash in ("", "solid") else "lines"
    curve = go.Scatter(x=x, y=y, name=name, mode=mode, text=line.hover, hovertemplate=template,
                       line={"color": colour, "width": 2} | ({"dash": line.dash} if line.dash else {}))
    if line.low is None or line.high is None:
        return [curve]
    edge = {"width": 0, "color": colour}
    common = {"x": x, "mode": "lines", "line": edge, "hoverinfo": "skip", "showlegend": False}
    low = go.Scatter(y=plain(line.low), name=f"{name} low", **common)
    fill = {"fill": "tonexty", "fillcolor": rgba(colour, BAND)}
    return [low, go.Scatter(y=plain(line.high), name=f"{name} high", **fill, **common), curve]


def bars(
    names: Sequence[str], values: Any, *, errors: Any = None, null: Any = None, colours: Sequence[str] | None = None,
    x_title: str, y_title: str, hover: Sequence[str] | None = None, height: int = 340, errors_below: Any = None,
    names_of: tuple[str, str] = ("measured", "null"),
) -> go.Figure:
    """Draw bars with error bars (`errors_below` where the interval is lopsided); the null is grey behind each.

    `names_of` calls the two in the legend.
    """
    figure = go.Figure()
    if null is not None:
        figure.add_trace(go.Bar(x=list(names), y=plain(null), name=names_of[1], marker={"color": NULL_GREY}, width=0.85,
                                opacity=0.6, hovertemplate=names_of[1] + ": %{y:.3g}<extra></extra>"))
    figure.add_trace(go.Bar(
        x=list(names), y=plain(values), name=names_of[0], width=0.5,
        marker={"color": list(colours or [CATEGORIES[0]] * len(names))},
        error_y=None if errors is None else {
            "type": "data", "array": plain(errors), "thickness": 1, "width": 3,
            **({} if errors_below is None else {"arrayminus": plain(errors_below), "symmetric": False})},
        text=list(hover) if hover is not None else None, textposition="none",
        hovertemplate=("%{text}" if hover is not None else f"%{{x}}<br>{y_title}: %{{y:.3g}}") + "<extra></extra>"))
    figure.update_layout(barmode="overlay", showlegend=null is not None, legend=LEGEND,
                         xaxis={"title": {"text": x_title}, "type": "category"}, yaxis={"title": {"text": y_title}})
    return finish(figure, height)


def level(figure: go.Figure, labels: Sequence[str], height: float, name: str) -> go.Figure:
    """Add a grey dotted line at one height across the bars of `labels`, such as the upper edge of a null."""
    return figure.add_scatter(
        x=list(labels), y=[height] * len(labels), mode="lines", name=name, hoverinfo="skip",
        line={"color": NULL_GREY, "dash": "dot", "width": 1},
    )  # fmt: skip


def marked(figure: go.Figure, chosen: Mapping[str, Any], axis: str = "level") -> go.Figure:
    """Add a dashed vertical line where the chosen part of an axis stands; nothing where none is chosen."""
    if axis not in chosen:
        return figure
    at = int(chosen[axis])
    figure.add_vline(x=at, line={"color": MARK, "width": 1.5, "dash": "dash"}, layer="below")
    return figure.add_annotation(x=at, y=0, yref="paper", yanchor="bottom", xanchor="left", text=f"{axis} {at}",
                                 showarrow=False, font={"size": 11, "color": MARK})  # fmt: skip


def logarithmic(figure: go.Figure) -> go.Figure:
    """Make the y axis logarithmic, with a label at every decade, or so many that they can be read."""
    return figure.update_yaxes(_decades([t.y for t in figure.data]))


def _decades(values: Sequence[Any]) -> dict[str, Any]:
    """Return the settings of a logarithmic axis that holds these values."""
    found = np.concatenate([np.asarray(v, float) for v in values if v is not None] or [np.ones(1)])
    found = found[np.isfinite(found) & (found > 0)]
    decades = float(np.ptp(np.log10(found))) if len(found) else 0.0
    if decades < 1:  # Plotly's own ticks are evenly spaced numbers then
        return {"type": "log", "exponentformat": "none", "nticks": 6}
    return {"type": "log", "exponentformat": "power", "dtick": "D2" if decades < 2.5 else max(1, round(decades / 8))}


def scatter(
    x: Any, y: Any, *, x_title: str, y_title: str, group: Sequence[str] | None = None,
    hover: Sequence[str] | None = None, height: int = 380,
) -> go.Figure:
    """Draw points, coloured by group; eight groups at most have a colour of their own."""
    x, y = plain(x), plain(y)
    names = list(group) if group is not None else [""] * len(x)
    figure = go.Figure()
    for at, name in enumerate(dict.fromkeys(names)):
        mine = [i for i, n in enumerate(names) if n == name]
        figure.add_trace(go.Scatter(
            x=x[mine], y=y[mine], mode="markers", name=name,
            text=[hover[i] for i in mine] if hover is not None else None,
            marker={"size": 6, "opacity": 0.65, "color": CATEGORIES[at % len(CATEGORIES)]},
            hovertemplate=("%{text}" if hover is not None else "%{x:.3g}, %{y:.3g}") + "<extra></extra>"))
    figure.update_layout(xaxis={"title": {"text": x_title}}, yaxis={"title": {"text": y_title}},
                         showlegend=len(figure.data) > 1, legend=LEGEND)  # fmt: skip
    return finish(figure, height)
