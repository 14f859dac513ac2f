"""One line per compared run above its charts: state, progress, and what can be done with it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import theme, widgets
from app.links import link
from backend.errors import PhasescopeError

KINDS = {"running": "accent", "finished": "good", "failed": "bad"}


def run_row(house: Any, name: str, run: Mapping[str, Any] | None, state: str, colour: str) -> None:
    """Draw name, state, step, checkpoints, and the buttons that fit the state."""
    job = house.job_of_run(name)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<div class="ps-row">' + " ".join(_words(name, run, state, colour, job)) + "</div>", width="content")
        if job:
            st.button("Stop", key=f"stop:{name}", icon=":material/stop:", on_click=house.cancel, args=(job["id"],))
            if state == "running":
                _checkpoint_now(house, name)
        elif run and _resumable(run, state):
            _resume_button(house, name)
        if run and run["checkpoints"]:
            step = run["checkpoints"][-1]
            link("attention", label=f"Attention at step {step}", icon="grid_on", query=at(name, step))
    if run and run.get("error") and not job:
        st.caption(f":material/error: {run['error']}")
    for words in (run or {}).get("saw", []):
        st.caption(f":material/info: {words}")


def _words(name: str, run: Mapping[str, Any] | None, state: str, colour: str, job: Any) -> list[str]:
    dot = f'<span style="color:{colour}">&#9632;</span>' if colour else ""  # the colour of its curves
    pulse = '<span class="ps-pulse"></span>' if state == "running" else ""
    found = [f"{dot} {pulse}<b>{html.escape(name)}</b>", theme.badge(state, KINDS.get(state, "neutral"))]
    if run:
        found += [theme.badge(f"step {theme.count(run['last_step'])}")]
        found += [theme.badge(f"{len(run['checkpoints'])} checkpoints")]
        found += [theme.badge("shipped example")] if run.get("shipped") else []
    return found + ([theme.badge(f"{job['progress']:.0%}")] if job and job["state"] == "running" else [])


def at(name: str, step: int) -> dict[str, str]:
    """Return the query of a page about one checkpoint."""
    return {"model": f"run:{name}", "step": str(step), "layer": "1"}


def _checkpoint_now(house: Any, name: str) -> None:
    pressed = st.button("Checkpoint now", key=f"keep:{name}", icon=":material/save:",
                        help="Keeps the weights at the next step, so that you can look into them.")  # fmt: skip
    if pressed:
        try:
            house.checkpoint_now(name)
            st.toast("Asked for; it is kept at the next step.")
        except PhasescopeError as error:
            widgets.error_panel(error)


def _resumable(run: Mapping[str, Any], state: str) -> bool:
    return state in ("stopped", "interrupted", "failed") and bool(run.get("recipe")) and not run.get("shipped")


def _resume_button(house: Any, name: str) -> None:
    if not st.button("Resume", key=f"resume:{name}", icon=":material/play_arrow:"):
        return
    try:
        house.resume_run(name)
        st.rerun()
    except PhasescopeError as error:
        widgets.error_panel(error)
