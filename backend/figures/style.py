"""Colours, the template and token labels that every figure shares (reference: ui.md section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

SEQUENTIAL = "Viridis"  # ordered quantities
#: signed quantities, white at 0
DIVERGING = [[0.0, "#2166ac"], [0.25, "#92c5de"], [0.5, "#f7f7f7"], [0.75, "#f4a582"], [1.0, "#b2182b"]]
#: Okabe and Ito (2008), Color Universal Design: distinguishable with any colour vision
CATEGORIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999"]
NULL_GREY = "#9a9a9a"  # nulls and controls
BAND = 0.2  # opacity of an interval band
GRID = "rgba(128,128,128,0.22)"
MAX_TICKS = 40  # labels that can be read along one axis
MAX_LABEL = 14  # characters of a token label
SHOWN = {" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥"}

#: of the toolbar: what dragging and a double click do, and what nothing here answers to
LEFT_OUT = ["zoomIn2d", "zoomOut2d", "autoScale2d", "select2d", "lasso2d"]

_AXIS = {"automargin": True, "gridcolor": GRID, "zeroline": False, "linecolor": GRID, "ticks": ""}
TEMPLATE = go.layout.Template(layout={
    "font": {"family": "inherit", "size": 13, "color": "#7d818c"}, "colorway": CATEGORIES,
    "xaxis": _AXIS, "yaxis": _AXIS, "hovermode": "closest",
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#7d818c", "activecolor": CATEGORIES[0]},
})


def label(text: str, longest: int = MAX_LABEL) -> str:
    """Return a token as it may stand in a figure: white space visible, cut, and no markup left to interpret."""
    seen = "".join(SHOWN.get(c, c if c.isprintable() else "�") for c in str(text)) or "∅"
    cut = seen if len(seen) <= longest else seen[: longest - 1] + "…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def tick_positions(count: int, most: int = MAX_TICKS) -> list[int]:
    """Return at most `most` evenly spaced positions of 0..count-1, the first always among them."""
    step = -(-count // most)
    return list(range(0, count, step)) if count else []


def category_axis(
    labels: Sequence[str], title: str, reverse: bool = False, numbered: bool = True, at: Sequence[int] | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """Return (one unique category per position, axis settings that label as many as can be read).

    A category is "position label", so that repeated tokens stay apart and the hover says both; without `numbered` it
    is the label alone, which must then be unique. `at` gives the positions where they are not 0, 1, 2, ...
    """
    shown = [label(x) for x in labels]
    # plotly takes a tick 0 for the category "0" where there is one, wherever it stands: no category may be a number
    unique = [f"{i} {x}" if numbered and x != str(i) else f"\u200b{x}"
              for i, x in zip(at if at is not None else range(len(shown)), shown, strict=True)]
    ticks = tick_positions(len(shown))
    return unique, {
        "type": "category", "title": {"text": title}, "tickmode": "array", "tickvals": ticks,
        "ticktext": [shown[i] for i in ticks], "showgrid": False, "categoryorder": "array",
        "categoryarray": unique, "autorange": "reversed" if reverse else True,
    }


def finish(figure: go.Figure, height: int, title: str = "") -> go.Figure:
    """Give a figure the house's looks. uirevision keeps zoom and selection over redraws."""
    figure.update_layout(
        template=TEMPLATE, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", uirevision="keep",
        height=height, margin={"l": 8, "r": 8, "t": 36 if title else 20, "b": 8}, autosize=True,
        modebar={"remove": LEFT_OUT},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    if title:
        figure.update_layout(title={"text": title, "font": {"size": 15}, "x": 0, "xref": "paper"})
    return figure


def rgba(colour: str, opacity: float) -> str:
    """Return a #rrggbb colour as rgba(...)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def plain(values: Any) -> np.ndarray:
    """Return numbers that JSON and plotly's typed arrays both know (no float16)."""
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array
