"""Two metrics of a run against each other, with time as colour."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import url, widgets
from backend.figures import phase_path as figures

#: shown first where a run has them: accuracy against a norm of the weights
ACROSS = ("A_param", "weight_norm", "weight_norm_W_E", "train_loss", "loss")
UP = ("test_accuracy", "second_copy_accuracy", "accuracy", "test_loss", "loss")
FIRST = ("weight_norm_W_E", "test_accuracy")
POINTS = 20_000  # per series: two that are thinned share few steps
LOOKED_AT = 40  # runs among which a first visit chooses
MANY = 40  # names of a run that are tried in search of a pair
LOGS = {"x": "x axis", "y": "y axis", "step": "colour"}


def show(house: Any) -> None:
    """Draw the tab: runs, the two metrics, the paths."""
    known = [r["name"] for r in house.runs(expected=url.get("runs"))]
    if not known:
        widgets.empty_state("No run yet", "Start one on the page Training: its path through any two of its metrics is "
                            "drawn here.")  # fmt: skip
        return
    side, main = st.columns([3, 8], gap="medium")
    with side:
        runs = [n for n in url.get("runs") if n in known] or [_opened_on(house, known)]
        url.put(runs=[n for n in url.get("runs") if n in known])
        runs = url.bound(st.multiselect, "Runs", "runs", fallback=runs, options=known, max_selections=8) or runs
        series = {run: _series(house, run) for run in runs}
        names = sorted({n for s in series.values() for n in s})
        if not names:
            st.caption("These runs have logged nothing yet.")
            return
        across, up = proposed(series, url.get("across"), url.get("up"))
        x = url.bound(st.selectbox, "Across", "across", fallback=across, options=names)
        y = url.bound(st.selectbox, "Up", "up", fallback=up, options=names)
        logs = url.bound(st.pills, "Logarithmic", "logs", options=list(LOGS), format_func=LOGS.get,
                         selection_mode="multi")  # fmt: skip
    with main.container(key="wide"):
        _draw({run: _joined(s, x, y) for run, s in series.items()}, x, y, logs or [])


def _opened_on(house: Any, known: list[str]) -> str:
    """Return the run that a first visit shows: one whose path is known to bend, a shipped one before others."""
    runs = sorted(house.runs(), key=lambda r: not r.get("shipped"))[:LOOKED_AT]
    fits = (r["name"] for r in runs if r["name"] in known and set(FIRST) <= set(house.metric_names(r["name"])))
    return next(fits, known[0])


def proposed(series: dict[str, dict[str, pd.DataFrame]], across: str | None, up: str | None) -> tuple[str, str]:
    """Return two metrics with many steps at which both were logged, the preferred ones first; what is given stays."""
    steps = {run: {n: set(f["step"]) for n, f in known.items()} for run, known in series.items()}
    names = sorted({n for known in series.values() for n in known})
    common = {(x, y): sum(len(s[x] & s[y]) for s in steps.values() if x in s and y in s)
              for y in _ordered(UP, names, up) for x in _ordered(ACROSS, names, across) if x != y}  # fmt: skip
    enough = max(common.values(), default=0) / 2
    return next((pair for pair, n in common.items() if n >= enough), (names[0], names[-1]))


def _ordered(wanted: tuple[str, ...], names: list[str], given: str | None) -> list[str]:
    if given in names:
        return [str(given)]
    first = [w for w in wanted if w in names]
    return first + [n for n in names if n not in first][: MANY - len(first)]


def _series(house: Any, run: str) -> dict[str, pd.DataFrame]:
    """Return {name, name/L1, name/L1H2: [step, value]} of all a run logged."""
    frame = house.metrics(run, points=POINTS)
    groups = frame.groupby(["metric", "layer", "head"], dropna=False)
    return {m + ("" if pd.isna(a) else f"/L{a}") + ("" if pd.isna(h) else f"H{h}"): g[["step", "value"]]
            for (m, a, h), g in groups}  # fmt: skip


def _joined(series: dict[str, pd.DataFrame], x: str, y: str) -> pd.DataFrame:
    """Return [step, x, y] at the steps where both were logged."""
    if x not in series or y not in series:
        return pd.DataFrame({"step": [], "x": [], "y": []})
    across, up = (series[n].rename(columns={"value": v}) for n, v in ((x, "x"), (y, "y")))
    return across.merge(up, on="step").sort_values("step")


def _draw(frames: dict[str, pd.DataFrame], x: str, y: str, logs: list[str]) -> None:
    for run in [r for r, f in frames.items() if f.empty]:
        st.caption(f"{run} has no step at which both {x} and {y} were logged.")
    shown = {r: f for r, f in frames.items() if len(f)}
    if not shown:
        return
    figure = figures.path(shown, x_title=_words(x), y_title=_words(y), log_x="x" in logs, log_y="y" in logs,
                        log_time="step" in logs)  # fmt: skip
    st.plotly_chart(figure, key="path")
    st.caption(f"{sum(map(len, shown.values()))} steps at which both were logged. The ring is the start, the square "
               "the end of a run.")  # fmt: skip


def _words(name: str) -> str:
    return name.replace("_", " ")
