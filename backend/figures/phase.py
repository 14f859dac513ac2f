"""The phase diagram (a cell per pair of params, hatched where seeds disagree) and the curves behind a cell. Cells are
bars: plotly can hatch those, a heat map it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale, unlabel_rgb

from backend.figures.style import CATEGORIES, NULL_GREY, SEQUENTIAL, finish, label

#: one colour per phase, of the colour-blind safe set
COLOURS = {"comprehension": CATEGORIES[2], "grokking": CATEGORIES[0], "memorisation": CATEGORIES[1],
           "confusion": NULL_GREY}  # fmt: skip
#: in more than WIDE columns the whole word would run over the cell on a narrow page
WIDE = 3
SHORT = {"comprehension": "compr.", "grokking": "grok", "memorisation": "memor.", "confusion": "confus."}
GAP = 0.03  # between two cells, in cells
HATCH = {"shape": "/", "fgcolor": "rgba(20,20,20,0.5)", "bgcolor": "rgba(0,0,0,0)", "size": 9, "solidity": 0.18}
CLEAR = "rgba(128,128,128,0.10)"
LIGHTER = 0.3  # opacity of a cell of which no run has ended
RING = ("#ffffff", 6), ("#1c1e26", 2.5)  # around the chosen cell: seen on any fill, in both themes
DASH = {"train": "dot", "test": "solid"}


def diagram(
    cells: pd.DataFrame, *, x: Sequence[float], y: Sequence[float], x_title: str, y_title: str, shade: str,
    value: str = "", chosen: tuple[int, int] | None = None, height: int = 480,
) -> go.Figure:
    """Draw cells [i, j, phase, agree, counts, provisional, n, n_seeds, delay, running, waiting, failed, words] and,
    where `shade` is "final", value. `words` is the hover; provisional cells are lighter; the `chosen` one (i, j) is
    outlined.

    `shade`: "phase" (a colour per phase), "delay" (delay in steps where both were reached, else the phase's colour) or
    "final" (`value` names what the column `value` holds). A click gives customdata [i, j].
    """
    colours, bar = _fills(cells, shade, value)
    figure = go.Figure([_tiles(cells, colours), *_hatched(cells), *_written(cells, shade, colours), _targets(cells)])
    if bar is not None:
        figure.add_trace(bar)
    figure.update_layout(
        barmode="overlay", bargap=0, showlegend=False, clickmode="event", dragmode="zoom", hoverdistance=-1,
        xaxis=_axis(x, x_title), yaxis=_axis(y, y_title), shapes=_outline(chosen),
    )
    return finish(figure, height).update_layout(margin={"t": 12})


def _axis(values: Sequence[float], title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "tickmode": "array", "tickvals": list(range(len(values))),
            "ticktext": [f"{v:g}" for v in values], "range": [-0.5, len(values) - 0.5], "showgrid": False}


def _outline(chosen: tuple[int, int] | None) -> list[dict[str, Any]]:
    if chosen is None:
        return []
    half = 0.5 - GAP / 2
    corners = {f"{a}{k}": at + s * half for a, at in zip("xy", chosen, strict=True) for k, s in ((0, -1), (1, 1))}
    return [{"type": "rect", **corners, "line": {"color": colour, "width": width}} for colour, width in RING]


def _fills(cells: pd.DataFrame, shade: str, value: str) -> tuple[list[str], go.Scatter | None]:
    """Return a colour per cell, lighter where provisional, and the colour bar where numbers are coloured."""
    colours, bar = _solid(cells, shade, value)
    return [_lighter(c) if p else c for c, p in zip(colours, cells["provisional"], strict=True)], bar


def _lighter(colour: str) -> str:
    if colour == CLEAR:
        return colour
    red, green, blue = _rgb(colour)
    return f"rgba({red:.0f},{green:.0f},{blue:.0f},{LIGHTER})"


def _solid(cells: pd.DataFrame, shade: str, value: str) -> tuple[list[str], go.Scatter | None]:
    phase = [COLOURS.get(p, CLEAR) for p in cells["phase"]]
    if shade == "phase":
        return phase, None
    numbers = cells["value" if shade == "final" else "delay"].to_numpy(float)
    known = np.isfinite(numbers)
    if not known.any():
        return (phase if shade == "delay" else [CLEAR] * len(cells)), None
    low, high = _limits(numbers[known])
    place = np.where(known, (numbers - low) / (high - low), 0.0)
    scale = sample_colorscale(SEQUENTIAL, place.clip(0, 1).tolist())
    empty = phase if shade == "delay" else [CLEAR] * len(cells)
    title = value if shade == "final" else "delay (steps)"
    return [c if k else e for c, k, e in zip(scale, known, empty, strict=True)], _colour_bar(low, high, title)


def _limits(numbers: np.ndarray) -> tuple[float, float]:
    """The ends of the colours; a single number is shown against 0."""
    low, high = float(numbers.min()), float(numbers.max())
    if high > low:
        return low, high
    return (min(low, 0.0), max(high, 0.0)) if low else (0.0, 1.0)


def _colour_bar(low: float, high: float, title: str) -> go.Scatter:
    """A trace without points that brings its colour bar."""
    bar = {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    return go.Scatter(x=[None], y=[None], mode="markers", hoverinfo="skip",
                      marker={"color": [low], "colorscale": SEQUENTIAL, "showscale": True, "colorbar": bar,
                              "cmin": low, "cmax": high})  # fmt: skip


def _bars(cells: pd.DataFrame) -> dict[str, Any]:
    return {"x": cells["i"].to_numpy(), "base": cells["j"].to_numpy() - 0.5 + GAP / 2,
            "y": np.full(len(cells), 1 - GAP), "width": 1 - GAP}  # fmt: skip


def _tiles(cells: pd.DataFrame, colours: list[str]) -> go.Bar:
    return go.Bar(**_bars(cells), marker={"color": colours, "line": {"width": 0}}, name="cells", hoverinfo="skip")


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


def _written(cells: pd.DataFrame, shade: str, colours: list[str]) -> list[go.Scatter]:
    """The words in the cells, a trace per ink."""
    words = [_in_cell(c, shade, len(cells), cells["i"].nunique()) for c in cells.to_dict("records")]
    by_ink = cells.assign(text=words, ink=[_ink(c) for c in colours]).groupby("ink", sort=True)
    return [go.Scatter(x=part["i"], y=part["j"], mode="text", hoverinfo="skip", name="words", text=part["text"],
                       textfont={"size": 11, "color": ink}) for ink, part in by_ink]  # fmt: skip


def _in_cell(cell: Mapping[Any, Any], shade: str, n: int, narrow: int) -> str:
    lines = []
    if shade == "final" and np.isfinite(cell["value"]):
        lines.append(f"{cell['value']:.3g}")
    elif shade != "final" and cell["phase"]:
        lines += _phase_lines(cell, narrow)
        one = cell["agree"] and np.isfinite(cell["delay"])  # of several phases it would be unclear whose delay it is
        lines += [f"{cell['delay']:,.0f}".replace(",", "\u2009")] if one else []
    if np.isfinite(cell["running"]):
        lines.append(("running " if narrow <= WIDE else "at ") + f"{cell['running']:.0%}")
    if cell["failed"]:
        lines.append(f"{cell['failed']} failed")
    if 0 < cell["n"] < cell["n_seeds"]:
        lines.append(f"{cell['n']} of {cell['n_seeds']}" + (" seeds" if narrow <= WIDE else ""))
    return "<b>" + "<br>".join(lines) + "</b>" if lines and n <= 150 else ""


def _phase_lines(cell: Mapping[Any, Any], narrow: int) -> list[str]:
    """The phase; each phase with its seeds where they disagree; "so far" where none has ended."""
    if not cell["agree"]:
        several = sorted(cell["counts"].items(), key=lambda c: c[0] != cell["phase"])
        return [f"{n} of {cell['n']} {SHORT[p]}" if narrow <= WIDE else f"{n} {SHORT[p]}" for p, n in several]
    word = cell["phase"] if narrow <= WIDE else SHORT[cell["phase"]]
    return [word, "so far"] if cell["provisional"] else [word]


def _rgb(colour: str) -> tuple[float, ...]:
    numbers = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if colour[0] == "#" else unlabel_rgb(colour)
    return tuple(float(n) for n in numbers)


def _ink(colour: str) -> str:
    """Return a text colour that can be read on this fill; on an empty or a light cell the grey of the axes."""
    if colour.startswith("rgba"):
        return "#7d818c"
    red, green, blue = _rgb(colour)
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
