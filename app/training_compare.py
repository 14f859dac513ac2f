"""Transitions found, and the two checkpoints around one of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import theme, url, views, widgets
from app.training_charts import choose, transitions_of
from app.training_data import at_marker, bracket, carried_by, interval_words, located, whole
from app.training_scrub import Look

#: column -> (what it says, its width)
COLUMNS: dict[str, tuple[str, Any]] = {
    "run": ("The run", 120),
    "step": ("Middle of the change, estimated; between two logged steps it is rounded", 60),
    "verdict": ("Kink: the slope turns, the value does not jump. Rapid crossover: the value goes from one level to "
                "another, narrower than its surroundings. Smooth: neither", 125),
    "interval": ("Where the middle lies, at 90 %. “Not located well”: much wider than the change itself", 130),
    "width": ("How long the change takes, in ln step: 0.1 means a tenth of the step it happens at", 60),
    "alarm": ("Step at which the search first knew, without looking at later ones, and its delay after the middle of "
              "the change. Early: it rang before the middle, as half of a change can be enough to know it", 125),
    "carried by": ("The quantities that changed, the one that changed most first", None),
    "doubts": ("What else may have made it: a learning rate that was changed, or a measure that jumps by itself", None),
    "method": ("Level: mean or slope differ before and after. Speed: faster than its surroundings", 60),
}  # fmt: skip
METHODS = {"glr": "level", "derivative": "speed"}


def transitions_table(house: Any, chosen: Sequence[str], runs: Mapping[str, Any]) -> None:
    """One row per transition of the compared runs; choosing a row opens its two checkpoints below."""
    found = [t for n in chosen for t in transitions_of(house, runs.get(n))]
    st.markdown("##### Transitions found", help="What each column says stands over its title. Choose a row, or click "
                "a marker in the charts. Smooth, kink, rapid crossover: see the Glossary.")  # fmt: skip
    if not found:
        widgets.empty_state("No transition found", "When a quantity turns or jumps faster than its surroundings, more "
                            "than runs without a transition do, it is listed here with its interval. A change that "
                            "takes more than about one unit of ln step is smooth to the search. Where checkpoints are "
                            "kept, “Compare around” below opens both sides of any step.")  # fmt: skip
        return
    known = house.metric_words()
    rows = [row_of(t, known) for t in found]
    shown = [c for c in COLUMNS if c != "doubts" or any(r["doubts"] for r in rows)]
    event: Any = st.dataframe(rows, hide_index=True, key="transitions-table", on_select="rerun", column_order=shown,
                         selection_mode="single-row", height=min(38 + 35 * len(found), 220),
                         column_config={c: st.column_config.TextColumn(c, help=COLUMNS[c][0], width=COLUMNS[c][1])
                                        for c in shown})  # fmt: skip
    picked = event["selection"]["rows"] if event else []
    if picked and picked != st.session_state.get("transition-row") and picked[0] < len(found):
        st.session_state["transition-row"] = picked
        choose(found[picked[0]])
    st.session_state["transition-row"] = picked


def row_of(found: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """Return one row of the table: COLUMNS in words; steps as the markers say them."""
    doubts = "; ".join(str(found.get(k)) for k in ("artefact", "exogenous") if found.get(k))
    interval = interval_words(found) + ("" if located(found) else ": not located well")
    return {
        "run": str(found["run"]), "step": theme.count(whole(found["step"])), "verdict": str(found["verdict"]),
        "interval": interval, "width": theme.number(found.get("width")), "alarm": alarm_words(found),
        "carried by": carried_by(found.get("channels") or [], known), "doubts": doubts,
        "method": METHODS.get(str(found.get("method")), str(found.get("method", ""))),
    }  # fmt: skip


def alarm_words(found: Mapping[str, Any]) -> str:
    """Return at which step the alarm rang, and how long after (or before) the middle of the change."""
    if found.get("alarm_step") is None:
        return "–"
    late = whole(found["alarm_step"]) - whole(found["step"])
    said = f" ({theme.count(abs(late))} {'late' if late > 0 else 'early'})" if late else ""
    return theme.count(whole(found["alarm_step"])) + said


def around(house: Any, focus: str, runs: Mapping[str, Any], seen: Look | None) -> None:
    """The two checkpoints around the chosen marker: before | after | difference in the chosen analyses."""
    marker = url.get("marker")
    run = runs.get(focus)
    if marker is None or run is None:
        return
    found = at_marker(transitions_of(house, run), marker)
    low, high = (float(found[k]) if found and found.get(k) is not None else marker for k in ("low", "high"))
    widgets.scroll_to("around", now=True)
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
        st.caption(side_words(found, marker) + (f" Here {words}." if words else ""))
        if seen is not None:
            _pair(house, focus, before, after, seen)


def side_words(found: Mapping[str, Any] | None, marker: int) -> str:
    """Say what the two checkpoints stand around."""
    if found is None:
        return f"The checkpoints around step {theme.count(marker)}."
    doubt = "" if located(found) else " It is not located well: the interval is much wider than the change."
    return (f"{str(found['verdict']).capitalize()} at step {theme.count(whole(found['step']))}, interval "
            f"{interval_words(found)}.{doubt} Before: the last checkpoint up to it; after: the first past it.")


def _pair(house: Any, run: str, before: int, after: int, seen: Look) -> None:
    cards = [views.opened(house, run, step) for step in (before, after)]
    if cards[0] is None or cards[1] is None:
        return
    both = [cards[0], cards[1]]
    picked = url.bound(st.multiselect, "Compare in", "compare", fallback=views.first_views(both[0], list(seen.known)),
                       options=list(seen.known), format_func=lambda n: seen.known[n],
                       help="Prompt, layer and head are those chosen below.")  # fmt: skip
    for name in picked:
        st.markdown(f"**{seen.known[name]}**")
        views.two(house, name, both, seen.prompt)
    if not picked:
        st.caption("Choose an analysis to compare the two checkpoints in.")
