"""Scatter plots: named points with intervals on both axes, and the line on which the two quantities are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from backend.figures.lines import LEGEND
from backend.figures.style import CATEGORIES, NULL_GREY, finish, plain

WORDY = 24  # points above which names would cover each other: only the outermost keep theirs
CROWD = 0.1  # share of the range around the median within which points go unnamed; the hover names all


def paired(
    x: Any, y: Any, *, names: Sequence[str], hover: Sequence[str], x_title: str, y_title: str,
    x_span: tuple[Any, Any] | None = None, y_span: tuple[Any, Any] | None = None, groups: Sequence[str] | None = None,
    title: str = "", height: int = 420,
) -> go.Figure:  # fmt: skip
    """Draw points with their intervals (low, high) as error bars; `groups` colours them; dashed: x = y."""
    x, y = plain(x), plain(y)
    figure, kinds = go.Figure(), np.array(groups if groups is not None else [""] * len(x), object)
    ends = [float(x.min()), float(x.max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", hoverinfo="skip",
                       line={"color": NULL_GREY, "dash": "dash", "width": 1})  # fmt: skip
    words = _outermost(x, y, names)
    for i, kind in enumerate(dict.fromkeys(kinds)):
        mine = kinds == kind
        figure.add_scatter(
            x=x[mine], y=y[mine], mode="markers+text", name=kind or "measured", text=words[mine],
            textposition="top center", textfont={"size": 10}, customdata=np.array(hover, object)[mine],
            hovertemplate="%{customdata}<extra></extra>", marker={"size": 7, "color": CATEGORIES[i % len(CATEGORIES)]},
            error_x=_errors(x, x_span, mine), error_y=_errors(y, y_span, mine),
        )  # fmt: skip
    figure.update_layout(xaxis={"title": {"text": x_title}}, yaxis={"title": {"text": y_title}}, legend=LEGEND)
    finish(figure, height, title).update_layout(margin={"t": 84 if title else 30})
    return figure.update_layout(title={"font": {"size": 13}}) if title else figure


def _outermost(x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the names of at most WORDY points that stand out of the crowd around the median, '' for the others."""
    out = np.max([np.abs(v - np.median(v)) / (np.ptp(v) or 1.0) for v in (x, y)], 0)
    kept = np.zeros(len(out), bool)
    kept[np.argsort(-out)[:WORDY]] = True
    return np.where(kept & (out > CROWD), np.array(names, object), "")


def _errors(at: np.ndarray, span: tuple[Any, Any] | None, mine: np.ndarray) -> dict[str, Any] | None:
    if span is None:
        return None
    low, high = (np.maximum(v, 0)[mine] for v in (at - plain(span[0]), plain(span[1]) - at))
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1, "width": 2}
