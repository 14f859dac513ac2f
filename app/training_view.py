"""The Training page put together: list and form at the left; charts, transitions, scrubber and views."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import widgets
from app.training_charts import focused, live_charts
from app.training_compare import around, transitions_table
from app.training_runs import run_list
from app.training_scrub import look, open_views, scrubber
from app.training_sections import grokking, induction
from app.training_start import start_form
from app.training_together import together

SECTIONS = {"induction": induction, "modular_addition": grokking}


def show(house: Any) -> None:
    """Draw the page."""
    widgets.scroll_to("training-top", now=True)
    with st.container(key="training-top"):
        left, right = st.columns([3, 9], gap="medium")
    with left:
        chosen = run_list(house)
        start_form(house)
    with right:
        live_charts(house, chosen)
        sides = st.container(key="sides")  # of the chosen transition, right under its marker
    if not chosen:
        return
    runs = {r["name"]: r for r in house.runs(expected=chosen)}
    focus = focused(runs, chosen)
    transitions_table(house, chosen, runs)
    together(house, chosen, runs)
    step = scrubber(house, focus, chosen, runs)
    seen = look(house, focus, step) if step is not None else None
    with sides:
        around(house, focus, runs, seen)
    if step is None or seen is None:
        return
    open_views(house, focus, seen, runs[focus]["checkpoints"])
    section = SECTIONS.get(runs[focus].get("recipe") or "")
    if section:
        section(house, runs[focus], step)
