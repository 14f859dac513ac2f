"""The phase diagram (a cell per pair of params, hatched where seeds disagree), the curves behind a cell, and a run's
path through two metrics. Cells are bars: plotly can hatch those, a heat map it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale, unlabel_rgb

from backend.figures.style import CATEGORIES, NULL_GREY, SEQUENTIAL, finish, label, rgba

#: one colour per phase, of the colour-blind safe set
COLOURS = {"comprehension": CATEGORIES[2], "grokking": CATEGORIES[0], "memorisation": CATEGORIES[1],
           "confusion": NULL_GREY}  # fmt: skip
#: in more than WIDE columns the whole word would run over the cell on a narrow page
WIDE = 3
SHORT = {"comprehension": "compr.", "grokking": "grok", "memorisation": "memor.", "confusion": "confus."}
GAP = 0.03  # between two cells, in cells
HATCH = {"shape": "/", "fgcolor": "rgba(20,20,20,0.75)", "bgcolor": "rgba(0,0,0,0)", "size": 9, "solidity": 0.18}
CLEAR = "rgba(128,128,128,0.10)"
DASH = {"train": "dot", "test": "solid"}
PATH_POINTS = 1500  # of one run's path that are drawn


def diagram(
    cells: pd.DataFrame, *, x: Sequence[float], y: Sequence[float], x_title: str, y_title: str, shade: str,
    value: str = "", height: int = 480,
) -> go.Figure:
    """Draw cells [i, j, phase, agree, n, n_seeds, delay, running, waiting, failed, words] and, where `shade` is
    "final", value. `words` is the hover.

    `shade`: "phase" (a colour per phase), "delay" (delay in steps where both were reached, else the phase's colour) or
    "final" (`value` names what the column `value` holds). A click gives customdata [i, j].
    """
    colours, bar = _fills(cells, shade, value)
    figure = go.Figure([_tiles(cells, colours), *_hatched(cells), _written(cells, shade, colours), _targets(cells)])
    if bar is not None:
        figure.add_trace(bar)
    figure.update_layout(
        barmode="overlay", bargap=0, showlegend=False, clickmode="event+select", dragmode="zoom", hoverdistance=-1,
        xaxis=_axis(x, x_title), yaxis=_axis(y, y_title),
    )
    return finish(figure, height).update_layout(margin={"t": 12})


def _axis(values: Sequence[float], title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "tickmode": "array", "tickvals": list(range(len(values))),
            "ticktext": [f"{v:g}" for v in values], "range": [-0.5, len(values) - 0.5], "showgrid": False}


def _fills(cells: pd.DataFrame, shade: str, value: str) -> tuple[list[str], go.Scatter | None]:
    phase = [COLOURS.get(p, CLEAR) for p in cells["phase"]]
    if shade == "phase":
        return phase, None
    numbers = cells["value" if shade == "final" else "delay"].to_numpy(float)
    known = np.isfinite(numbers)
    if not known.any():
        return (phase if shade == "delay" else [CLEAR] * len(cells)), None
    low, high = float(numbers[known].min()), float(numbers[known].max())
    place = np.where(known, (numbers - low) / ((high - low) or 1.0), 0.0)
    scale = sample_colorscale(SEQUENTIAL, place.clip(0, 1).tolist())
    empty = phase if shade == "delay" else [CLEAR] * len(cells)
    title = value if shade == "final" else "delay (steps)"
    return [c if k else e for c, k, e in zip(scale, known, empty, strict=True)], _colour_bar(low, high, title)


def _colour_bar(low: float, high: float, title: str) -> go.Scatter:
    """A trace without points that brings its colour bar."""
    bar = {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    limits = {"cmin": low, "cmax": high if high > low else low + 1}
    return go.Scatter(x=[None], y=[None], mode="markers", hoverinfo="skip",
                      marker={"color": [low], "colorscale": SEQUENTIAL, "showscale": True, "colorbar": bar, **limits})


def _bars(cells: pd.DataFrame) -> dict[str, Any]:
    return {"x": cells["i"].to_numpy(), "base": cells["j"].to_numpy() - 0.5 + GAP / 2,
            "y": np.full(len(cells), 1 - GAP), "width": 1 - GAP}  # fmt: skip


def _tiles(cells: pd.DataFrame, colours: list[str]) -> go.Bar:
    same: dict[str, Any] = {"marker": {"opacity": 1}}
    return go.Bar(
        **_bars(cells), marker={"color": colours, "line": {"width": 0}}, name="cells", hoverinfo="skip",
        selected=same, unselected=same,
    )


def _targets(cells: pd.DataFrame) -> go.Scatter:
    """Almost transparent squares that carry the hover and hear clicks: a hatched bar would lie over the one below."""
    return go.Scatter(
        x=cells["i"], y=cells["j"], mode="markers", text=cells["words"].tolist(), name="targets",
        customdata=cells[["i", "j"]].to_numpy().tolist(), hovertemplate="%{text}<extra></extra>",
        marker={"symbol": "square", "size": 24, "color": "rgba(0,0,0,0.004)"},
    )


def _hatched(cells: pd.DataFrame) -> list[go.Bar]:
    mixed = cells[~cells["agree"].astype(bool)]
    if mixed.empty:
        return []
    return [go.Bar(**_bars(mixed), name="seeds disagree", hoverinfo="skip",
                   marker={"color": "rgba(0,0,0,0)", "pattern": HATCH, "line": {"width": 0}})]  # fmt: skip


def _written(cells: pd.DataFrame, shade: str, colours: list[str]) -> go.Scatter:
    """The words in the cells."""
    return go.Scatter(
        x=cells["i"], y=cells["j"], mode="text", hoverinfo="skip", name="words",
        text=[_in_cell(c, shade, len(cells), cells["i"].nunique()) for c in cells.to_dict("records")],
        textfont={"size": 11, "color": [_ink(c) for c in colours]},
    )


def _in_cell(cell: Mapping[Any, Any], shade: str, n: int, narrow: int) -> str:
    lines = []
    if shade == "final" and np.isfinite(cell["value"]):
        lines.append(f"{cell['value']:.3g}")
    elif shade != "final" and cell["phase"]:
        lines.append(cell["phase"] if narrow <= WIDE else SHORT[cell["phase"]])
        lines += [f"{cell['delay']:,.0f}".replace(",", "\u2009")] if np.isfinite(cell["delay"]) else []
    if np.isfinite(cell["running"]):
        lines.append(f"running {cell['running']:.0%}")
    if cell["failed"]:
        lines.append(f"{cell['failed']} failed")
    if 0 < cell["n"] < cell["n_seeds"]:
        lines.append(f"{cell['n']} of {cell['n_seeds']} seeds")
    return "<b>" + "<br>".join(lines) + "</b>" if lines and n <= 150 else ""


def _ink(colour: str) -> str:
    """Return a text colour that can be read on this fill; on an empty cell the grey of the axes."""
    if colour == CLEAR:
        return "#7d818c"
    numbers = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if colour[0] == "#" else unlabel_rgb(colour)
    red, green, blue = (float(n) for n in numbers)
    return "#1c1e26" if 0.299 * red + 0.587 * green + 0.114 * blue > 125 else "#ffffff"


def behind(
    curves: pd.DataFrame, runs: Sequence[Mapping[str, Any]], pair: Sequence[str], accuracy: float | None,
    budget: float | None = None, height: int = 340,
) -> go.Figure:
    """Draw the two curves of each run of one cell (training dotted, held-out solid, a colour per seed) and the
    thresholds. `runs` holds {run, seed}; `curves` [run, metric, step, value]."""
    figure = go.Figure()
    for at, run in enumerate(runs):
        for metric, kind in zip(pair, DASH, strict=False):
            rows = curves[(curves["run"] == run["run"]) & (curves["metric"] == metric)].sort_values("step")
            name = f"seed {run['seed']}, {label(metric.replace('_', ' '), 40).replace('·', ' ')}"
            figure.add_scatter(x=rows["step"], y=rows["value"], mode="lines", name=name,
                               line={"color": CATEGORIES[at % 8], "dash": DASH[kind], "width": 2},
                               hovertemplate=f"{name}<br>step %{{x}}<br>%{{y:.3g}}<extra></extra>")  # fmt: skip
    if accuracy is not None:
        figure.add_hline(y=accuracy, line={"color": NULL_GREY, "dash": "dash", "width": 1},
                         annotation={"text": f"threshold {accuracy:g}", "font": {"size": 11}})  # fmt: skip
    if budget is not None:
        figure.add_vline(x=budget, line={"color": NULL_GREY, "dash": "dash", "width": 1})
    figure.update_layout(xaxis={"title": {"text": "step"}}, yaxis={"title": {"text": "accuracy" if accuracy else ""}},
                         legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 11}})
    return finish(figure, height).update_layout(margin={"t": 12})


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
    ends = [_end(frame.iloc[at], word, symbol, colour) for at, word, symbol in
            ((0, "start", "circle-open"), (-1, "end", "square-open"))]  # fmt: skip
    return [line, *ends]


def _end(row: pd.Series, word: str, symbol: str, colour: str) -> go.Scatter:
    return go.Scatter(x=[row["x"]], y=[row["y"]], mode="markers+text", text=[word], textposition="top center",
                      marker={"symbol": symbol, "size": 14, "color": colour, "line": {"width": 2}}, showlegend=False,
                      textfont={"size": 11}, hoverinfo="skip")  # fmt: skip


def _step_ticks(most: float) -> list[int]:
    return [0, *(10**k for k in range(1, 8) if 10**k <= most)]
