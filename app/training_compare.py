"""Transitions found, and the two checkpoints around one of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import theme, url, views, widgets
from app.training_charts import choose, transitions_of
from app.training_data import bracket
from app.training_scrub import Look


def transitions_table(house: Any, chosen: Sequence[str], runs: Mapping[str, Any]) -> None:
    """One row per transition of the compared runs; choosing a row opens its two checkpoints below."""
    found = [t for n in chosen for t in transitions_of(house, runs.get(n))]
    st.markdown("##### Transitions found", help="Each with its interval, verdict and what carried it. Choose a row, or "
                "click a marker in the charts.")  # fmt: skip
    if not found:
        widgets.empty_state("No transition found", "When a quantity turns or jumps by more than runs without a "
                            "transition ever do, it is listed here with its interval.")  # fmt: skip
        return
    event = st.dataframe([_row(t) for t in found], hide_index=True, key="transitions-table", on_select="rerun",
                         selection_mode="single-row", height=min(38 + 35 * len(found), 220))  # fmt: skip
    rows = event["selection"]["rows"] if event else []
    if rows and rows != st.session_state.get("transition-row") and rows[0] < len(found):
        st.session_state["transition-row"] = rows
        choose(found[rows[0]])
    st.session_state["transition-row"] = rows


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    low, high = found.get("low"), found.get("high")
    doubts = "; ".join(str(found.get(k)) for k in ("artefact", "exogenous") if found.get(k))
    return {
        "run": found["run"], "step": int(found["step"]), "interval": f"{theme.number(low)} to {theme.number(high)}",
        "width (ln step)": theme.number(found.get("width")), "verdict": found["verdict"],
        "carried by": ", ".join(map(str, found.get("channels") or [])),
        "alarm at": theme.number(found.get("alarm_step")), "delay": theme.number(found.get("delay")),
        "of": found.get("metric_group", ""), "method": found.get("method", ""), "doubts": doubts or "none",
    }  # fmt: skip


def around(house: Any, focus: str, runs: Mapping[str, Any], seen: Look | None) -> None:
    """The two checkpoints around the chosen marker: before | after | difference in the chosen analyses."""
    marker = url.get("marker")
    run = runs.get(focus)
    if marker is None or run is None:
        return
    found = next((t for t in transitions_of(house, run) if int(t["step"]) == marker), None)
    low, high = (float(found[k]) if found and found.get(k) is not None else marker for k in ("low", "high"))
    with st.container(border=True, key="around"):
        title, close = st.columns([8, 1], vertical_alignment="center")
        close.button("Close", on_click=lambda: url.put(marker=None), key="close-marker", type="tertiary")
        pair = bracket(run["checkpoints"], low, high)
        if pair is None:
            title.markdown(f"##### Around step {marker} of {focus}")
            widgets.empty_state("Not possible for this run", "It has fewer than two checkpoints. Press “Checkpoint "
                                "now” while it trains, or start it again with more of them.")  # fmt: skip
            return
        before, after, words = pair
        title.markdown(f"##### {focus}: step {before} | step {after}")
        verdict = f"{found['verdict']} at step {theme.number(marker)}, " if found else ""
        st.caption(f"{verdict}interval {theme.number(low)} to {theme.number(high)}. Before: the last checkpoint up to "
                   "it; after: the first past it." + (f" Here {words}." if words else ""))  # fmt: skip
        if seen is not None:
            _pair(house, focus, before, after, seen)


def _pair(house: Any, run: str, before: int, after: int, seen: Look) -> None:
    cards = [views.opened(house, run, step) for step in (before, after)]
    if cards[0] is None or cards[1] is None:
        return
    both = [cards[0], cards[1]]
    picked = url.bound(st.multiselect, "Compare in", "compare", fallback=views.first_views(both[0], list(seen.known)),
                       options=list(seen.known), format_func=lambda n: seen.known[n],
                       help="Prompt, layer and head are those chosen above.")  # fmt: skip
    for name in picked:
        st.markdown(f"**{seen.known[name]}**")
        views.two(house, name, both, seen.prompt)
    if not picked:
        st.caption("Choose an analysis to compare the two checkpoints in.")
