"""The panels of the Training page."""

from __future__ import annotations

import html
from typing import Any

import streamlit as st

from app import theme, url, widgets
from app.charts import WORDS, curves
from app.links import PAGES, link
from backend.errors import PhasescopeError

FIRST = ("loss", "second_copy_accuracy", "induction_score", "previous_token_score")
LIVE = ("running", "queued")


def run_list(house: Any) -> list[str]:
    """Choose up to eight runs; the first visit shows the newest one that lives, else a shipped one."""
    known = {r["name"]: r for r in house.runs(expected=url.get("runs"))}
    if not known:
        return []
    living = [n for n, r in known.items() if r["state"] in LIVE]
    fallback = [n for n in url.get("runs") if n in known] or living[:1] or list(known)[:1]
    url.put(runs=[n for n in url.get("runs") if n in known])
    return (
        url.bound(
            st.multiselect,
            "Runs",
            "runs",
            fallback=fallback,
            options=list(known),
            max_selections=8,
            format_func=lambda n: f"{n} · {known[n]['state']}",
        )
        or fallback
    )


def start_form(house: Any) -> None:
    """A form made from the recipe's params; starting shows the run at once."""
    with st.expander("Start a run", icon=":material/play_arrow:", expanded=not url.get("runs")):
        recipes = house.recipes()
        name = url.bound(
            st.selectbox,
            "Recipe",
            "recipe",
            fallback=next(iter(recipes)),
            options=list(recipes),
            format_func=lambda n: recipes[n].title,
        )
        recipe = recipes[name]
        st.caption(recipe.asks)
        with st.form("start-run", border=False):
            run_name = st.text_input(
                "Name", placeholder="chosen for you", help="Folder of the run; letters, digits, . - _"
            )
            params = widgets.form(recipe.params, key=f"train:{name}", columns=2)
            pressed = st.form_submit_button("Start training", type="primary")
        if pressed and params is not None:
            try:
                started = house.train(name, params, name=run_name.strip())
            except PhasescopeError as error:
                widgets.error_panel(error)
                return
            url.put(runs=[started["run"]])
            st.rerun()


def live_charts(house: Any, chosen: list[str]) -> None:
    """Controls of each run and its charts; this part reruns alone every second while something trains."""
    if not chosen:
        widgets.empty_state("No run yet", "Press “Start training” on the left: the charts then move as it learns.")
        return
    axis = url.bound(st.segmented_control, "Step axis", "axis", options=["linear", "log"]) or "linear"
    busy = any(_state(house, n) in LIVE for n in chosen)
    st.fragment(_live, run_every=1.0 if busy else None)(house, chosen, axis, busy)


def _state(house: Any, name: str) -> str:
    job = house.job_of_run(name)
    known = {r["name"]: r for r in house.runs()}
    return job["state"] if job else known[name]["state"] if name in known else "starting"


def _live(house: Any, chosen: list[str], axis: str, busy: bool) -> None:
    states = {n: _state(house, n) for n in chosen}
    if busy and not any(s in LIVE for s in states.values()):
        st.rerun()
    for number, name in enumerate(chosen):
        _run_row(house, name, states[name], theme.CATEGORICAL[number % 8] if len(chosen) > 1 else "")
    frames = {n: house.metrics(n) for n in chosen}
    metrics = {m for f in frames.values() for m in f["metric"].unique()} if frames else set()
    if not metrics:
        st.info("Waiting for the first numbers: the worker starts and logs step 0.", icon=":material/hourglass_empty:")
        return
    _charts(frames, metrics, axis)
    _thinned(frames)


def _run_row(house: Any, name: str, state: str, colour: str) -> None:
    known = {r["name"]: r for r in house.runs()}
    run, job = known.get(name), house.job_of_run(name)
    kind = {"running": "accent", "finished": "good", "failed": "bad"}.get(state, "neutral")
    dot = f'<span style="color:{colour}">&#9632;</span>' if colour else ""  # the colour of its curves
    words = [f"{dot} <b>{html.escape(name)}</b>", theme.badge(state, kind)]
    if run:
        words += [theme.badge(f"step {theme.count(run['last_step'])}")]
        words += [theme.badge(f"{len(run['checkpoints'])} checkpoints")]
        words += [theme.badge("shipped example")] if run.get("shipped") else []
    words += [theme.badge(f"{job['progress']:.0%}")] if job and job["state"] == "running" else []
    st.html('<div class="ps-row">' + " ".join(words) + "</div>")
    with st.container(horizontal=True, vertical_alignment="center"):
        if job:
            st.button("Stop", key=f"stop:{name}", icon=":material/stop:", on_click=house.cancel, args=(job["id"],))
        elif run and _resumable(run, state):
            _resume_button(house, name)
        if run and run["checkpoints"]:
            _open_at(name, run["checkpoints"])
    if run and run.get("error") and not job:
        st.caption(f":material/error: {run['error']}")


def _resumable(run: dict[str, Any], state: str) -> bool:
    return state in ("stopped", "interrupted", "failed") and bool(run.get("recipe")) and not run.get("shipped")


def _resume_button(house: Any, name: str) -> None:
    if not st.button("Resume", key=f"resume:{name}", icon=":material/play_arrow:"):
        return
    try:
        house.resume_run(name)
        st.rerun()
    except PhasescopeError as error:
        widgets.error_panel(error)


def _open_at(name: str, checkpoints: list[int]) -> None:
    step = checkpoints[-1]
    link("attention", label=f"Attention at step {step}", icon="grid_on", query=_at(name, step))


def _at(name: str, step: int) -> dict[str, str]:
    return {"model": f"run:{name}", "step": str(step), "layer": "1"}


def _charts(frames: dict[str, Any], metrics: set[str], axis: str) -> None:
    ordered = [m for m in FIRST if m in metrics]
    more = sorted(metrics - set(ordered))
    columns = st.columns(2)
    for i, metric in enumerate(ordered):
        with columns[i % 2]:
            _chart(frames, metric, axis)
    names = "; ".join(WORDS.get(m, (m,))[0].lower() for m in more)
    if more and url.bound(st.segmented_control, f"More charts: {names}", "more", options=["no", "yes"]) == "yes":
        for i, metric in enumerate(more):
            with columns[i % 2]:
                _chart(frames, metric, axis)


def _chart(frames: dict[str, Any], metric: str, axis: str) -> None:
    """Draw one metric; a click on a point opens Attention at the checkpoint nearest to its step."""
    event = st.plotly_chart(
        curves(frames, metric, axis), key=f"chart:{metric}", on_select="rerun", selection_mode="points"
    )
    for point in event["selection"]["points"] if event else []:
        custom = point.get("customdata")
        values = list(custom.values()) if isinstance(custom, dict) else custom
        name = values[0] if isinstance(values, list) else values
        if name in frames:
            st.switch_page(PAGES / "attention.py", query_params=_at(name, int(point["x"])))


def _thinned(frames: dict[str, Any]) -> None:
    counts = [c for f in frames.values() for c in f.attrs.get("thinned", {}).values()]
    if any(n < total for n, total in counts):
        st.caption(f"{sum(n for n, _ in counts)} of {sum(t for _, t in counts)} points; minima and maxima are kept.")
