"""The small charts of the frame: sparklines and training curves. Analyses bring their own figures."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from app import theme

WORDS = {
    "loss": ("Loss", "cross-entropy, nats"),
    "second_copy_accuracy": ("Accuracy on the second half", "share of tokens"),
    "induction_score": ("Induction score per head", "attention probability"),
    "previous_token_score": ("Previous-token score", "attention probability"),
    "icl_score": ("In-context-learning score", "nats"),
    "first_half_loss": ("Loss, first half", "nats"),
    "second_half_loss": ("Loss, second half", "nats"),
    "steps_per_second": ("Speed", "steps/s"),
}


def sparkline(frame: pd.DataFrame) -> go.Figure:
    """Return a bare line of value over step, 44 px high."""
    figure = go.Figure(
        go.Scatter(x=frame["step"], y=frame["value"], mode="lines", line={"color": theme.CATEGORICAL[0], "width": 1.5})
    )
    figure.update_layout(height=44, margin={"l": 0, "r": 0, "t": 4, "b": 4}, showlegend=False)
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)


def series_name(run: str, layer: Any, head: Any, several: bool) -> str:
    """Return the legend name of a series: L1H2, or the run's name, or both."""
    part = "" if pd.isna(layer) else f"L{int(layer)}" + ("" if pd.isna(head) else f"H{int(head)}")
    return " ".join(p for p in (run if several or not part else "", part) if p)


def curves(frames: dict[str, pd.DataFrame], metric: str, axis: str, step: int | None = None) -> go.Figure:
    """Return one metric over steps; `step` is marked. One run: a colour per head. Several: a colour per run."""
    title, unit = WORDS.get(metric, (metric.replace("_", " "), ""))
    figure = go.Figure()
    for number, (run, frame) in enumerate(frames.items()):
        rows = frame[frame["metric"] == metric]
        for at, ((layer, head), line) in enumerate(rows.groupby(["layer", "head"], dropna=False, sort=True)):
            colour = theme.CATEGORICAL[(number if len(frames) > 1 else at) % len(theme.CATEGORICAL)]
            name = series_name(run, layer, head, len(frames) > 1)
            figure.add_scatter(
                x=line["step"],
                y=line["value"],
                name=name,
                mode="lines+markers",
                customdata=[run] * len(line),
                marker={"size": 5, "opacity": 0.35},
                line={"color": colour, "width": 2 if len(frames) == 1 else 1.4},
                hovertemplate=f"{name}<br>step %{{x}}<br>%{{y:.3g}} {unit}<extra></extra>",
            )
    if step is not None:
        figure.add_vline(x=step, line={"color": theme.NULL, "dash": "dot"})
    figure.update_layout(
        title={"text": title, "font": {"size": 14}},
        height=300,
        uirevision="keep",
        template=theme.template(),
        margin={"l": 56, "r": 12, "t": 40, "b": 44},
        legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "font": {"size": 11}},
        showlegend=len(frames) == 1 and len(figure.data) > 1,  # several runs: the rows above say whose colour it is
        clickmode="event+select",
        dragmode="zoom",
    )
    figure.update_xaxes(title="step", type="log" if axis == "log" else "linear")
    return figure.update_yaxes(title=unit or None)
