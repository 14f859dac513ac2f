"""The linked charts of the Training page: what is drawn of which runs, live."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import theme, url, widgets
from app.charts import Curve, Heat, Mark, Row, linked
from app.components.chart_clicks import chart_clicks
from app.training_data import (
    BUDGET,
    CHARTS,
    LIVE,
    band,
    charts_of,
    chosen_charts,
    clip,
    configurations,
    families,
    interval_words,
    located,
    nearest,
    on_grid,
    strongest,
    thinning,
    whole,
    words,
)  # fmt: skip
from app.training_rows import run_row, seed_row
from backend.errors import PhasescopeError

HEADS = 8  # series of one metric that get a colour of their own
MARK_COLOUR = {"smooth": "#8C8C8C", "kink": "#56B4E9", "rapid crossover": "#D55E00"}
_HEAD = re.compile(r"/L(\d+)H(\d+)$")
LOOK = 5.0  # s between two searches for transitions in a run that moves
_LOOKING = ThreadPoolExecutor(1, "transitions")
TICK = 1.0  # s between two redraws while something trains


def live_charts(house: Any, chosen: list[str]) -> None:
    """Controls and charts; the charts rerun alone every second while something trains, unless paused."""
    if not chosen:
        widgets.empty_state("No run yet", "Open “Start a run” on the left and press “Start training”: the charts then "
                            "move as it learns.")  # fmt: skip
        return
    runs = {r["name"]: r for r in house.runs(expected=chosen)}
    busy = any(_state(house, runs, n) in LIVE for n in chosen)
    paused = _controls(house, chosen, runs, busy)
    looking = _looking(house, runs, chosen)
    ticks = (busy and not paused) or looking
    st.fragment(_live, run_every=TICK if ticks else None)(house, chosen, busy, paused, looking)


def _looking(house: Any, runs: Mapping[str, Any], chosen: Sequence[str]) -> bool:
    """Say whether transitions are being looked for just now."""
    for name in chosen:
        transitions_of(house, runs.get(name))
    kept = st.session_state.get("transitions", {})
    return any(n in kept and kept[n][3] is not None for n in chosen)


def _state(house: Any, runs: Mapping[str, Any], name: str) -> str:
    job = house.job_of_run(name)
    return job["state"] if job else runs[name]["state"] if name in runs else "starting"


def recipes_of(runs: Mapping[str, Any], chosen: Sequence[str]) -> set[str]:
    """Return the recipes of the chosen runs; "" for one that names none."""
    return {str(runs[n].get("recipe") or "") for n in chosen if n in runs}


def _controls(house: Any, chosen: list[str], runs: Mapping[str, Any], busy: bool) -> bool:
    """Axis, charts, seeds, pause. Returns whether the charts stand still."""
    row, more = st.container(horizontal=True, vertical_alignment="bottom", key="chart-controls"), st.container()
    with row:
        url.bound(st.segmented_control, "Step axis", "axis", options=["linear", "log"])
    known = house.metric_words(recipes_of(runs, chosen))
    charts, drawn = _charts(house, runs, chosen)
    with more:
        url.bound(st.multiselect, f"Charts ({len(drawn)} of {len(charts)})", "charts", fallback=drawn, options=charts,
                  max_selections=CHARTS, format_func=lambda m: words(known, m).title)  # fmt: skip
    several = [c for c in configurations([runs[n] for n in chosen if n in runs]) if len(c) > 1]
    with row:
        if several:
            url.bound(st.segmented_control, "Seeds as", "seeds", options=["band", "lines"],
                      help="Band: median and range of the seeds of one configuration; each seed is a thin line.")
    with row:
        paused = bool(busy and st.toggle("Pause", key="pause", help="Freezes the charts; training goes on."))
    _remember(house, chosen, runs, paused)
    return paused


def _charts(house: Any, runs: Mapping[str, Any], chosen: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (what can be charted, what is)."""
    each = {n: house.metric_names(n) for n in chosen}
    charts = charts_of({m for there in each.values() for m in there})
    main = main_metrics(house, runs, chosen)
    return charts, chosen_charts(charts, main, url.get("charts"), [charts_of(there) for there in each.values()])


def _remember(house: Any, chosen: list[str], runs: Mapping[str, Any], paused: bool) -> None:
    """Pressing pause keeps the last step of each run: what comes after is not drawn until it is released."""
    if not paused:
        st.session_state.pop("paused-at", None)
    elif "paused-at" not in st.session_state:
        st.session_state["paused-at"] = {n: runs[n]["last_step"] for n in chosen if n in runs}


def main_metrics(house: Any, runs: Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    """Return what the recipes of these runs declare, in their order, less the constants to compare with."""
    recipes = [house.recipes().get(runs[n].get("recipe") or "") for n in chosen if n in runs]
    told = [m for r in recipes if r for m in r.metrics]
    return list(dict.fromkeys(m.name for m in told if not m.still))


# ---------------------------------------------------------------- what reruns alone


def _live(house: Any, chosen: list[str], busy: bool, paused: bool, looking: bool) -> None:
    runs = {r["name"]: r for r in house.runs()}
    states = {n: _state(house, runs, n) for n in chosen}
    if busy and not paused and not any(s in LIVE for s in states.values()):
        st.rerun()
    if looking and not _looking(house, runs, chosen):
        st.rerun()  # the search has ended, and with it this ticking
    colours = colours_of(runs, chosen)
    for group in configurations([runs.get(n, {"name": n}) for n in chosen]):
        if len(group) > 2 and not seed_row(house, group, runs, states, colours[group[0]]):
            continue
        for name in group:
            run_row(house, name, runs.get(name), states[name], colours[name] if len(chosen) > 1 else "")
    charts, shown = _charts(house, runs, chosen)
    if not charts:
        _no_numbers(states)
        return
    frames = fetch(house, chosen, shown)
    found = {n: transitions_of(house, runs.get(n)) for n in chosen}
    _table_follows({n: [(whole(t["step"]), t["verdict"]) for t in ts] for n, ts in found.items()})
    said = house.metric_words(recipes_of(runs, chosen))
    rows = rows_of(frames, runs, shown, said, colours, url.get("seeds") == "band")
    _draw(house, rows, found, colours, runs)
    unseen = [n for n, f in frames.items() if not len(f)]
    said = [thinning(frames.values()), f"in none of these charts: {', '.join(unseen)}" if unseen else "",
            "step 0 has no place on a log axis" if url.get("axis") == "log" else "",
            "paused" if paused else "", "looking for transitions" if looking else ""]
    if any(said):
        st.caption(" · ".join(s for s in said if s))


def _table_follows(now: dict[str, Any]) -> None:
    """The table of transitions stands outside of the part that ticks: it must say what the markers say."""
    before, st.session_state["shown-transitions"] = st.session_state.get("shown-transitions"), now
    if before is not None and before != now and set(before) == set(now):
        st.rerun()


def _no_numbers(states: Mapping[str, str]) -> None:
    if any(s in LIVE or s == "starting" for s in states.values()):
        st.info("Waiting for the first numbers: the worker starts and logs step 0.", icon=":material/hourglass_empty:")
    else:
        widgets.empty_state("Nothing was logged", "This run ended before its first line. Start it again, or choose "
                            "another one on the left.")  # fmt: skip


def colours_of(runs: Mapping[str, Any], chosen: Sequence[str]) -> dict[str, str]:
    """Return a colour per run; seeds drawn as a band share theirs."""
    if url.get("seeds") != "band":
        return {n: theme.LINES[i % 8] for i, n in enumerate(chosen)}
    groups = configurations([runs.get(n, {"name": n}) for n in chosen])
    return {n: theme.LINES[i % 8] for i, group in enumerate(groups) for n in group}


def fetch(house: Any, chosen: Sequence[str], shown: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the metrics of each run that the charts need, thinned so that one figure stays within BUDGET points."""
    stops = st.session_state.get("paused-at", {})
    frames = {}
    for name in chosen:
        there = house.metric_names(name)
        grouped = families(there)
        wanted = [m for c in shown for m in (grouped[c].values() if c in grouped else [c]) if m in there]
        points = max(60, min(1000, BUDGET // max(1, len(chosen) * len(wanted))))
        frame = house.metrics(name, wanted, points=points) if wanted else house.metrics(name, ["-"], points=8)
        frames[name] = clip(frame, stops.get(name))
    return frames


def transitions_of(house: Any, run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the transitions of a run as known now. They are looked for in a thread of its own, of a run that moves
    at most every LOOK seconds: a million steps take longer than a page may wait."""
    if run is None or not run["last_step"]:
        return []
    kept = st.session_state.setdefault("transitions", {})
    stamp, at, found, asked = kept.get(run["name"], (None, -LOOK, [], None))
    now = (run.get("created"), run["last_step"], run["state"])
    if asked is None and stamp != now and (run["state"] not in LIVE or time.monotonic() - at > LOOK):
        stamp, at, asked = now, time.monotonic(), _LOOKING.submit(house.transitions, run["name"])
    patience = 0.5 / max(len(kept), 1) if time.monotonic() - at < 1.0 else 0.0  # s; all runs of a page share it
    if asked is not None and not wait([asked], timeout=patience).not_done:
        found, asked = _answer(asked, found), None
    kept[run["name"]] = (stamp, at, found, asked)
    return found


def _answer(asked: Any, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return list(asked.result())
    except PhasescopeError:  # the run was deleted meanwhile
        return before
    except Exception:  # a defect of the search must not take the charts with it
        logging.getLogger(__name__).exception("The search for transitions failed")
        return before


def _draw(house: Any, rows: list[Row], found: Mapping[str, Any], colours: Mapping[str, str], runs: Any) -> None:
    several = len(found) > 1
    marks = [mark_of(t, colours[n] if several else "") for n, ts in found.items() for t in ts]
    figure = linked(rows, url.get("axis"), marks, _scrubbed(runs, list(found)))
    st.plotly_chart(figure, key="linked")
    picked = chart_clicks("linked")
    if picked:
        _pick(*picked, found, runs)


def _pick(custom: list[Any], x: Any, found: Mapping[str, Any], runs: Mapping[str, Any]) -> None:
    kind, name, *step = custom
    if kind == "mark" and name in found:
        near = min(found[name], key=lambda t: abs(float(t["step"]) - float(step[0])), default=None)
        if near is not None:  # of a live run it may have moved, or gone, since it was drawn
            choose(near)
    if name in runs and runs[name]["checkpoints"]:
        url.put(focus=name, at=nearest(runs[name]["checkpoints"], float(x)))
        st.rerun()


def choose(found: Mapping[str, Any]) -> None:
    """Open a transition: its marker goes into the address, with the head that carried it where one did."""
    heads = [m for c in found.get("channels") or [] if (m := _HEAD.search(str(c)))]
    place = {"layer": int(heads[0][1]), "head": int(heads[0][2])} if heads else {}
    url.put(focus=found["run"], marker=whole(found["step"]), **place)
    widgets.scroll_to("around")
    st.rerun()


def _scrubbed(runs: Mapping[str, Any], chosen: list[str]) -> int | None:
    focus = focused(runs, chosen)
    steps = runs[focus]["checkpoints"] if focus in runs else []
    return nearest(steps, url.get("at")) if steps and url.get("at") is not None else None


def focused(runs: Mapping[str, Any], chosen: Sequence[str]) -> str:
    """Return the run that scrubber and views are about: the one in the address, else the first with checkpoints."""
    if url.get("focus") in chosen:
        return url.get("focus")
    return next((n for n in chosen if n in runs and runs[n]["checkpoints"]), chosen[0])


def mark_of(found: Mapping[str, Any], colour: str = "") -> Mark:
    """Return the marker of a transition."""
    verdict, step = str(found["verdict"]), float(found["step"])
    low, high = (float(found[k]) if found.get(k) is not None else step for k in ("low", "high"))
    at, vague = theme.count(whole(step)), not located(found)
    hover = f"{verdict}, {interval_words(found)}" + (", not located well" if vague else "") + "; click to compare"
    colour = colour or MARK_COLOUR.get(verdict, "#D55E00")
    return Mark(str(found["run"]), step, low, high, f"{verdict} · {at}", colour, hover, at, vague)


# ---------------------------------------------------------------- from metrics to rows


def rows_of(
    frames: Mapping[str, pd.DataFrame], runs: Mapping[str, Any], shown: Sequence[str], known: Mapping[str, Any],
    colours: Mapping[str, str], banded: bool,
) -> list[Row]:
    """Return one Row per chart: a family as a heat map of the first run that has it, else curves."""
    rows = []
    grouped = families({m for f in frames.values() for m in f["metric"].unique()})
    for chart in shown:
        if chart in grouped:
            rows.append(_family(chart, grouped[chart], frames, known))
        else:
            rows.append(_curves(chart, frames, runs, known, colours, banded))
    return [r for r in rows if r.curves or r.heat is not None]


def _family(name: str, members: Mapping[int, str], frames: Mapping[str, pd.DataFrame], known: Mapping[str, Any]) -> Row:
    said = words(known, name)
    run, frame = next((n, f) for n, f in frames.items() if f["metric"].isin(members.values()).any())
    lines = {w: frame[frame["metric"] == m] for w, m in members.items()}
    steps, values = on_grid(list(lines.values()), 240)
    of = f" of {run}" if len(frames) > 1 else ""
    return Row(f"{said.title} by frequency{of}", said.unit, heat=Heat(steps, list(lines), values))


def _curves(
    name: str, frames: Mapping[str, pd.DataFrame], runs: Mapping[str, Any], known: Mapping[str, Any],
    colours: Mapping[str, str], banded: bool,
) -> Row:
    said = words(known, name)
    rows = {n: f[f["metric"] == name] for n, f in frames.items()}
    rows = {n: r for n, r in rows.items() if len(r)}
    placed = any(r["layer"].notna().any() for r in rows.values())
    if len(frames) == 1:
        return _one_run(said, rows, placed)
    row = Row(said.title + (": strongest of each run" if placed else ""), said.unit, log_y=False)
    lines = {n: strongest(r) if placed else r[["step", "value"]] for n, r in rows.items()}
    for group in configurations([runs.get(n, {"name": n}) for n in lines]):
        row.curves += _group(group, lines, colours, banded)
    return row


def _one_run(said: Any, rows: Mapping[str, pd.DataFrame], placed: bool) -> Row:
    row = Row(said.title, said.unit, legend=placed)
    for run, frame in rows.items():
        groups: list[Any] = list(frame.groupby(["layer", "head"], dropna=False))
        series = sorted(groups, key=lambda s: -_peak(s[1]))
        kept = sorted(series[:HEADS], key=lambda s: tuple(-1 if pd.isna(v) else v for v in s[0]))
        everyone = sorted({k for k, _ in series}, key=lambda k: tuple(-1 if pd.isna(v) else v for v in k))
        for (layer, head), line in kept:
            place = everyone.index((layer, head)) if len(everyone) <= HEADS else len(row.curves)
            label = f"L{layer}" + ("" if pd.isna(head) else f"H{head}") if not pd.isna(layer) else said.title
            row.curves.append(Curve(label, theme.LINES[place % 8], line["step"], line["value"], run))
        row.title += f": {HEADS} strongest of {len(series)}" if len(series) > HEADS else ""
    return row


def _peak(line: pd.DataFrame) -> float:
    values = line["value"].to_numpy(float)
    return float(values[np.isfinite(values)].max()) if np.isfinite(values).any() else -np.inf


def _group(
    names: Sequence[str], lines: Mapping[str, pd.DataFrame], colours: Mapping[str, str], banded: bool
) -> list[Curve]:
    """Seeds of one configuration: thin lines, and over them the median with the range as a band."""
    as_band = banded and len(names) > 1
    drawn = [Curve(n, colours[n], lines[n]["step"], lines[n]["value"], n, width=0.8 if as_band else 1.6, faint=as_band)
             for n in names]  # fmt: skip
    if as_band:
        found = band([lines[n] for n in names])
        title = f"median of {len(names)} seeds ({names[0]} …)"
        drawn.append(Curve(title, colours[names[0]], found["step"], found["median"], names[0], found["low"],
                           found["high"], width=2.4))  # fmt: skip
    return drawn
