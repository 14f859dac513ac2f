"""The panels of the Jobs page."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import asking, theme, url, widgets
from app.links import link
from backend.contract import canonical_hash
from backend.errors import PhasescopeError

STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")
KINDS = {"running": "accent", "done": "good", "failed": "bad", "interrupted": "warn"}


@st.fragment(run_every=1.0)
def job_table(house: Any) -> None:
    """Unfinished jobs with progress and cancel; ended ones as a table to choose from."""
    unfinished = house.jobs(states=["queued", "running"])
    for job in unfinished[:20]:
        columns = st.columns([5, 3, 2], vertical_alignment="center")
        columns[0].progress(min(job["progress"], 1.0), text=asking.words(job))
        columns[1].caption(_where(job))
        columns[2].button("Cancel", key=f"cancel:{job['id']}", on_click=widgets.act, args=(house.cancel, job["id"]))
    if len(unfinished) > 20:
        st.caption(f"20 of {len(unfinished)} unfinished jobs")
    wanted = url.bound(st.segmented_control, "Ended jobs", "state", options=list(STATES[2:]))
    ended = house.jobs(states=[wanted] if wanted else list(STATES[2:]), limit=200)
    if not ended and not unfinished:
        widgets.empty_state("No jobs yet", "Open a model or start a training run: its job then appears here.")
        return
    rows = [
        {
            "job": j["title"],
            "state": j["state"],
            "why": (j["error"] or {}).get("found", ""),
            "took": theme.seconds(_took(j)),
            "memory": theme.bytes(j.get("memory_bytes")) if j.get("memory_bytes") else "",
            "worker": j["worker"] or "",
            "when": theme.ago(j["created"]),
        }
        for j in ended
    ]
    if not rows:
        st.caption("None ended this way.")
        return
    picked = st.dataframe(
        rows,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"ended:{canonical_hash([j['id'] for j in ended])}",
        height=min(35 * (len(rows) + 1) + 3, 330),
    )
    chosen = picked["selection"]["rows"]
    if chosen and chosen[0] < len(ended) and ended[chosen[0]]["id"] != url.get("job"):
        url.put(job=ended[chosen[0]]["id"])
        st.rerun()


def _took(job: Mapping[str, Any]) -> float | None:
    end = job["finished"] or time.time()
    return end - job["started"] if job["started"] else None


def _where(job: Mapping[str, Any]) -> str:
    if job["state"] == "queued":
        return f"waits for {theme.seconds(time.time() - job['created'])}"
    memory = f" · {theme.bytes(job['memory_bytes'])}" if job.get("memory_bytes") else ""
    return f"{theme.seconds(_took(job))} on {job['worker'] or 'a worker'}{memory}"


def detail(house: Any) -> None:
    """One job whole: its story, error, retry or result."""
    if not url.get("job"):
        return
    try:
        job = house.job(url.get("job"))
    except PhasescopeError as error:
        widgets.error_panel(error)
        return
    problem = st.session_state.pop("retry-problem", None)
    if problem:
        widgets.error_panel(problem)
    with st.container(border=True):
        badges = [
            theme.badge(job["state"], KINDS.get(job["state"], "neutral")),
            theme.badge(f"took {theme.seconds(_took(job))}"),
            theme.badge(f"attempt {job['attempts']}"),
        ]
        st.html(f'<div class="ps-row"><b>{html.escape(job["title"])}</b>' + "".join(badges) + "</div>")
        if job["state"] == "done" and job["kind"] == "analysis":
            link("results", label="Open the result", query={"key": job["key"]})
        elif job["state"] in asking.ENDED[1:]:
            asking.story(job, lambda: _retry(house, job["id"]))
        for line in job["story"] if job["state"] == "done" else []:
            st.caption(f"{theme.ago(line['time'])}: {line['text']}")


def _retry(house: Any, job_id: str) -> None:
    try:
        url.put(job=house.retry(job_id)["id"])
    except PhasescopeError as error:
        st.session_state["retry-problem"] = error.record()


@st.fragment(run_every=2.0)
def workers_table(house: Any) -> None:
    """Workers with memory and the models they hold."""
    st.markdown("##### Workers")
    rows = [
        {
            "worker": w["address"],
            "process": w["pid"],
            "state": w["state"],
            "memory": theme.bytes(w["memory_bytes"]),
            "models in memory": ", ".join(map(str, w.get("models", []))) or "none",
        }
        for w in house.workers()
    ]
    if rows:
        st.dataframe(rows, hide_index=True)
    else:
        st.caption("Workers are starting; this takes a few seconds. Jobs wait for them.")
