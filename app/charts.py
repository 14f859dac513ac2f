"""The charts of the frame: sparklines, training curves, and the linked stack of the Training page. Analyses bring
their own figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import theme
from backend.contract import Metric
from backend.figures import SEQUENTIAL, rgba

SPOKEN, SPOKEN_EACH = 12, 2  # curves that the shared hover names
STRIP, ROW, GAP, FOOT = 40, 150, 34, 86  # px
BAR = 16  # px above the strip for plotly's own buttons, which would cover a label
CLOSE, ROOM = 0.09, 0.24  # of the width: a step's label, a whole label


def sparkline(frame: pd.DataFrame) -> go.Figure:
    """Return a bare line of value over step, 44 px high."""
    figure = go.Figure(
        go.Scatter(x=frame["step"], y=frame["value"], mode="lines", line={"color": theme.LINES[0], "width": 1.5})
    )
    figure.update_layout(height=44, margin={"l": 0, "r": 0, "t": 4, "b": 4}, showlegend=False)
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)


def spark_svg(steps: Sequence[float], values: Sequence[float], width: int = 64, height: int = 22) -> str:
    """Return the same as the address of a small SVG image: in a list, a plotly chart per row would take seconds."""
    points = [(float(s), float(v)) for s, v in zip(steps, values, strict=True) if np.isfinite(v)]
    if len(points) < 2:
        return ""
    x, y = np.array(points).T
    across = (x - x.min()) / ((x.max() - x.min()) or 1) * (width - 4) + 2
    down = height - 3 - (y - y.min()) / ((y.max() - y.min()) or 1) * (height - 6)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    line = f'<polyline points="{path}" fill="none" stroke="{theme.LINES[0]}" stroke-width="1.4"></polyline>'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "data:image/svg+xml," + quote(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{line}</svg>')


def series_name(run: str, layer: Any, head: Any, several: bool) -> str:
    """Return the legend name of a series: L1H2, or the run's name, or both."""
    part = "" if pd.isna(layer) else f"L{int(layer)}" + ("" if pd.isna(head) else f"H{int(head)}")
    return " ".join(p for p in (run if several or not part else "", part) if p)


def curves(
    frames: dict[str, pd.DataFrame], metric: str, axis: str, step: int | None = None, words: Metric | None = None
) -> go.Figure:
    """Return one metric over steps; `step` is marked. One run: a colour per head. Several: a colour per run."""
    said = words or Metric(metric, metric.replace("_", " "))
    figure = go.Figure()
    for number, (run, frame) in enumerate(frames.items()):
        rows = frame[frame["metric"] == metric]
        for at, ((layer, head), line) in enumerate(rows.groupby(["layer", "head"], dropna=False, sort=True)):
            colour = theme.LINES[(number if len(frames) > 1 else at) % len(theme.LINES)]
            name = series_name(run, layer, head, len(frames) > 1)
            figure.add_trace(_curve(Curve(name, colour, line["step"], line["value"], run), said.unit, "y", True))
    if step is not None:
        figure.add_vline(x=step, line={"color": theme.NULL, "dash": "dot"})
    figure.update_layout(
        title={"text": said.title, "font": {"size": 14}}, height=300, uirevision="keep", template=theme.template(),
        margin={"l": 56, "r": 12, "t": 40, "b": 44},
        legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "font": {"size": 11}},
        showlegend=len(figure.data) > 1, dragmode="zoom",
    )  # fmt: skip
    figure.update_xaxes(title="step", type="log" if axis == "log" else "linear")
    return figure.update_yaxes(title=said.unit or None)


# ---------------------------------------------------------------- the linked stack


@dataclass
class Curve:
    """One line of a row; `run` is whose step a click chooses. A band has `low` and `high`."""

    name: str
    colour: str
    x: Any
    y: Any
    run: str = ""
    low: Any = None
    high: Any = None
    width: float = 1.6
    faint: bool = False
    silent: bool = False  # not named by the shared hover; it can still be clicked
    dash: str = "solid"


@dataclass
class Heat:
    """A family of metrics: value over step (x) and frequency (y)."""

    x: Any
    y: Any
    z: Any


@dataclass
class Row:
    """One chart of the stack."""

    title: str
    unit: str = ""
    curves: list[Curve] = field(default_factory=list)
    heat: Heat | None = None
    legend: bool = False
    log_y: bool = False


@dataclass
class Mark:
    """One transition: where, its interval, and what its label says."""

    run: str
    step: float
    low: float
    high: float
    label: str
    colour: str
    hover: str = ""
    short: str = ""  # what its label says where there is no room
    vague: bool = False  # the interval is much wider than the change: its band is an outline


def linked(rows: Sequence[Row], axis: str = "linear", marks: Sequence[Mark] = (), step: int | None = None) -> go.Figure:
    """Return the rows under each other on one step axis: zoom and hover are shared because the axis is.

    Transitions stand in a strip on top (a click on one gives customdata ["mark", run, step]) and as a line with its
    interval through all rows; `step` is the scrubber's. A click on a curve gives customdata ["step", run].
    """
    figure = go.Figure()
    _hush(rows)
    tall = (STRIP if marks else 0) + len(rows) * (ROW + GAP)
    domains = _domains(len(rows), tall, bool(marks))
    for number, row in enumerate(rows, start=1):
        _add_row(figure, row, "y" if number == 1 else f"y{number}", domains[number - 1], step)
    if marks:
        _add_marks(figure, marks, f"y{len(rows) + 1}", axis, tall, _last_step(rows))
    if step is not None and (step > 0 or axis != "log"):
        figure.add_shape(type="line", x0=step, x1=step, y0=0, y1=1, xref="x", yref="paper",
                         line={"color": theme.ACCENT["light"], "width": 1.5, "dash": "dot"})
    last = "y" if len(rows) == 1 else f"y{len(rows)}"
    named = sum(len(row.curves) for row in rows if row.legend)
    foot = FOOT + 19 * max(0, (named + 1) // 2 - 2)  # a legend of many lines wraps to two a line on a narrow page
    figure.update_layout(
        template=theme.template(), uirevision="keep", height=tall + foot + BAR, hovermode="x unified",
        hoversubplots="axis",
        dragmode="zoom", margin={"l": 62, "r": 12, "t": 8 + BAR, "b": foot - 8},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "font": {"size": 11}},
        hoverlabel={"font": {"size": 11}}, hoverdistance=30,
        xaxis={"title": {"text": "step"}, "type": "log" if axis == "log" else "linear", "anchor": last,
               "hoverformat": ",.0f",
               "showspikes": True, "spikemode": "across", "spikethickness": 1, "spikecolor": theme.NULL,
               "spikedash": "solid"},
    )
    return figure


def _hush(rows: Sequence[Row]) -> None:
    """Above SPOKEN curves only the SPOKEN_EACH highest of a row are named by the hover: it would cover the charts."""
    if sum(not c.faint for r in rows for c in r.curves) > SPOKEN:
        for row in rows:
            for curve in sorted(row.curves, key=lambda c: -_last(c.y))[SPOKEN_EACH:]:
                curve.silent = True


def _last(values: Any) -> float:
    finite = np.asarray(values, float)[np.isfinite(np.asarray(values, float))]
    return float(finite[-1]) if len(finite) else -np.inf


def _domains(n: int, tall: int, strip: bool) -> list[tuple[float, float]]:
    """Return each row's share of the height, the first on top."""
    tops = [(tall - (STRIP if strip else 0) - GAP * 0.8 - i * (ROW + GAP)) / tall for i in range(n)]
    return [(max(top - ROW / tall, 0.0), min(top, 1.0)) for top in tops]


def _add_row(figure: go.Figure, row: Row, axis: str, domain: tuple[float, float], step: int | None) -> None:
    said = f"<b>{row.title}</b>"
    figure.add_annotation(text=said, x=0, xref="paper", xanchor="left", y=domain[1], yref="paper", yanchor="bottom",
                          showarrow=False, font={"size": 13})
    settings: dict[str, Any] = {"domain": domain, "anchor": "x", "title": {"text": row.unit, "font": {"size": 11}},
                                "nticks": 5, "type": "log" if row.log_y else "linear", "exponentformat": "power"}
    figure.update_layout({axis.replace("y", "yaxis"): settings})
    if row.heat is not None:
        figure.add_trace(_heat(row.heat, axis, domain))
        figure.update_layout({axis.replace("y", "yaxis"): {"title": {"text": "frequency"}, "type": "linear"}})
    named = {t.name for t in figure.data if t.showlegend}  # a head has one colour and one entry in all rows
    title = row.title.split(":")[0].split(" (")[0]
    for curve in row.curves:
        figure.add_traces(_band(curve, axis))
        figure.add_trace(_curve(curve, row.unit, axis, row.legend and curve.name not in named, title))


def _curve(curve: Curve, unit: str, axis: str, legend: bool, title: str = "") -> go.Scatter:
    few = len(curve.x) <= 600
    said = title if curve.name == title or not title else f"{title} {curve.name}"
    hover = f"{said or curve.name}: %{{y:.3g}} {unit}<extra></extra>"
    return go.Scatter(
        x=curve.x, y=curve.y, yaxis=axis, name=curve.name, mode="lines+markers", showlegend=legend and not curve.faint,
        customdata=[["step", curve.run]] * len(curve.x), legendgroup=curve.name, connectgaps=False,
        marker={"size": 5 if few else 3, "opacity": 0.0 if curve.faint else 0.3, "color": curve.colour},
        line={"color": curve.colour, "width": curve.width, "dash": curve.dash}, opacity=0.45 if curve.faint else 1.0,
        hoverinfo="skip" if curve.faint else "none" if curve.silent else None,
        hovertemplate=None if curve.faint or curve.silent else hover,
    )  # fmt: skip


def _band(curve: Curve, axis: str) -> list[go.Scatter]:
    if curve.low is None:
        return []
    common = {"x": curve.x, "yaxis": axis, "mode": "lines", "line": {"width": 0, "color": curve.colour},
              "hoverinfo": "skip", "showlegend": False, "legendgroup": curve.name}
    low = go.Scatter(y=curve.low, name=f"{curve.name} least", **common)
    fill = {"fill": "tonexty", "fillcolor": rgba(curve.colour, 0.18)}
    return [low, go.Scatter(y=curve.high, name=f"{curve.name} greatest", **fill, **common)]


def _heat(heat: Heat, axis: str, domain: tuple[float, float]) -> go.Heatmap:
    bar = {"thickness": 8, "outlinewidth": 0, "len": domain[1] - domain[0], "y": sum(domain) / 2, "x": 1.0}
    return go.Heatmap(x=heat.x, y=heat.y, z=heat.z, yaxis=axis, colorscale=SEQUENTIAL, colorbar=bar, name="",
                      hovertemplate="frequency %{y}: %{z:.3g}<extra></extra>")


def _last_step(rows: Sequence[Row]) -> float:
    """Return the last step that anything is drawn at."""
    drawn = [c.x for row in rows for c in row.curves] + [row.heat.x for row in rows if row.heat]
    return max((float(np.nanmax(np.asarray(x, float))) for x in drawn if len(x)), default=1.0)


def placed(marks: Sequence[Mark], last: float, log: bool) -> list[tuple[str, float]]:
    """Return (label, height in the strip) of each mark: the whole label where there is room for it to its right, else
    the step alone, and marks that stand close above and below each other."""
    across = [math.log(max(m.step, 1.0)) if log else m.step for m in marks]
    span = (math.log(max(last, 2.0)) if log else last) or 1.0
    found: list[tuple[str, float]] = [("", 0.5)] * len(marks)
    before, height = -math.inf, 0.5
    for i in sorted(range(len(marks)), key=lambda i: across[i]):
        later = [a for j, a in enumerate(across) if j != i and a >= across[i]]
        room = (min([*later, span]) - across[i]) / span
        height = (0.2 if height > 0.5 else 0.8) if (across[i] - before) / span < CLOSE or room < CLOSE else 0.5
        found[i] = (marks[i].label if room > ROOM else marks[i].short or marks[i].label, height)
        before = across[i]
    return found


def _add_marks(
    figure: go.Figure, marks: Sequence[Mark], axis: str, plot_axis: str, tall: int, last: float
) -> None:
    shown = [m for m in marks if plot_axis != "log" or m.step > 0]
    said = placed(shown, last, plot_axis == "log")
    for mark in shown:
        low = max(mark.low, 1e-9) if plot_axis == "log" else mark.low
        figure.add_shape(type="rect", x0=low, x1=mark.high, y0=0, y1=1, xref="x", yref="paper", layer="below",
                         line={"width": 1 if mark.vague else 0, "color": rgba(mark.colour, 0.5), "dash": "dot"},
                         fillcolor=rgba(mark.colour, 0.03 if mark.vague else 0.13))
        figure.add_shape(type="line", x0=mark.step, x1=mark.step, y0=0, y1=1, xref="x", yref="paper",
                         line={"color": mark.colour, "width": 1.2})
    figure.add_scatter(
        x=[m.step for m in shown], y=[height for _, height in said], yaxis=axis, mode="markers+text", name="transition",
        marker={"symbol": "triangle-down", "size": 15, "color": [m.colour for m in shown],
                "line": {"width": 1, "color": theme.MUTED["light"]}},
        text=[label for label, _ in said], textposition="middle right", textfont={"size": 11}, showlegend=False,
        customdata=[["mark", m.run, m.step] for m in shown], cliponaxis=False,
        hovertemplate=[f"{m.hover or m.label}<extra></extra>" for m in shown],
    )  # fmt: skip
    figure.update_layout({axis.replace("y", "yaxis"): {
        "domain": [1 - STRIP / tall, 1], "anchor": "x", "range": [0, 1], "visible": False, "fixedrange": True}})
