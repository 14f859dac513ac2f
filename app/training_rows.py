"""One line per compared run above its charts: state, progress, and what can be done with it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import theme, widgets
from app.links import link
from app.subject import family_of, openable
from backend.errors import PhasescopeError

KINDS = {"running": "accent", "finished": "good", "failed": "bad"}


def run_row(house: Any, name: str, run: Mapping[str, Any] | None, state: str, colour: str) -> None:
    """Draw name, state, step, checkpoints, and the buttons that fit the state."""
    job = house.job_of_run(name)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<div class="ps-row">' + " ".join(_words(name, run, state, colour, job)) + "</div>", width="content")
        if job:
            st.button("Stop", key=f"stop:{name}", icon=":material/stop:", on_click=_stop,
                      args=(house, job["id"], name, bool(run and run["last_step"])))
            if state == "running":
                _checkpoint_now(house, name)
        elif run and _resumable(run, state):
            _resume_button(house, name)
        if run and openable(run):
            step = run["checkpoints"][-1]
            if family_of(run) == "energy":
                link("energy_landscapes", label=f"Landscape at step {step}", icon="landscape",
                     query={"energy": f"run:{name}", "energy_step": str(step)})  # fmt: skip
            else:
                link("attention", label=f"Attention at step {step}", icon="grid_on", query=at(name, step))
    if run and run.get("error") and not job:
        st.caption(f":material/error: {run['error']}")
    for words in (run or {}).get("saw", []):
        st.caption(f":material/info: {words}")


def seed_row(
    house: Any, names: Sequence[str], runs: Mapping[str, Any], states: Mapping[str, str], colour: str
) -> bool:
    """Draw the seeds of one configuration in one line; return whether a line for each is wanted, too."""
    jobs = [job["id"] for n in names if (job := house.job_of_run(n))]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<div class="ps-row">' + " ".join(seed_words(names, runs, states, colour)) + "</div>", width="content")
        if jobs:
            st.button("Stop all", key=f"stop-all:{names[0]}", icon=":material/stop:", on_click=stop_all,
                      args=(house.cancel, jobs))  # fmt: skip
        return bool(st.toggle("Each seed", key=f"each:{names[0]}"))


def seed_words(
    names: Sequence[str], runs: Mapping[str, Any], states: Mapping[str, str], colour: str
) -> list[str]:
    """Return the parts of that line: how many seeds, how many in which state, how far."""
    counts = {s: sum(states[n] == s for n in names) for s in dict.fromkeys(states[n] for n in names)}
    steps = [int(runs[n]["last_step"]) for n in names if n in runs] or [0]
    far = theme.count(min(steps)) + (f" to {theme.count(max(steps))}" if max(steps) > min(steps) else "")
    pulse = '<span class="ps-pulse"></span>' if "running" in counts else ""
    named = f'<b title="{html.escape(", ".join(names))}">{len(names)} seeds: {html.escape(names[0])} …</b>'
    return [f'<span style="color:{colour}">&#9632;</span> {pulse}{named}',
            *(theme.badge(f"{n} {s}", KINDS.get(s, "neutral")) for s, n in counts.items()), theme.badge(f"step {far}")]


def stop_all(cancel: Any, jobs: Sequence[str]) -> None:
    """Stop many: what waits first, or it would begin when the others have ended."""
    for job in reversed(jobs):
        cancel(job)
    st.toast(f"{len(jobs)} runs stop; one that had not begun leaves nothing behind.")


def _stop(house: Any, job: str, name: str, begun: bool) -> None:
    house.cancel(job)
    st.toast(f"{name} stops after its present step and keeps what it has logged." if begun else
             f"{name} had not begun: nothing of it is kept.")


def _words(name: str, run: Mapping[str, Any] | None, state: str, colour: str, job: Any) -> list[str]:
    dot = f'<span style="color:{colour}">&#9632;</span>' if colour else ""  # the colour of its curves
    pulse = '<span class="ps-pulse"></span>' if state == "running" else ""
    found = [f"{dot} {pulse}<b>{html.escape(name)}</b>", theme.badge(state, KINDS.get(state, "neutral"))]
    if run:
        found += [theme.badge(f"step {theme.count(run['last_step'])}")]
        found += [theme.badge(f"{len(run['checkpoints'])} checkpoint" + "s" * (len(run["checkpoints"]) != 1))]
        found += [theme.badge("shipped example")] if run.get("shipped") else []
    return found + ([theme.badge(f"{job['progress']:.0%}")] if job and job["state"] == "running" else [])


def at(name: str, step: int) -> dict[str, str]:
    """Return the query of a page about one checkpoint."""
    return {"model": f"run:{name}", "step": str(step), "layer": "1"}


def _checkpoint_now(house: Any, name: str) -> None:
    if widgets.pressed(st.button, "Checkpoint now", f"keep:{name}", icon=":material/save:",
                       help="Keeps the weights at the next step, so that you can look into them."):  # fmt: skip
        try:
            house.checkpoint_now(name)
            st.toast("Asked for; it is kept at the next step.")
        except PhasescopeError as error:
            widgets.error_panel(error)


def _resumable(run: Mapping[str, Any], state: str) -> bool:
    return state in ("stopped", "interrupted", "failed") and bool(run.get("recipe")) and not run.get("shipped")


def _resume_button(house: Any, name: str) -> None:
    if not widgets.pressed(st.button, "Resume", f"resume:{name}", icon=":material/play_arrow:"):
        return
    try:
        house.resume_run(name)
        st.rerun()
    except PhasescopeError as error:
        widgets.error_panel(error)
