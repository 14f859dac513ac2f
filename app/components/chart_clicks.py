"""Clicks on a chart whose figure changes while it is looked at.

Streamlit derives the identity of a chart that can be selected in from its figure: a click that is sent while the next
figure is drawn belongs to a chart that is no more, and is dropped. On a run in progress that is most of them.
"""

from __future__ import annotations

import re
from typing import Any

import streamlit as st

from app.components.frame import mount, pending


def chart_clicks(chart: str) -> tuple[list[Any], Any] | None:
    """Listen to the Plotly chart with key `chart`; return (customdata, x) of the point just clicked, once, else None.

    Of the points under the mouse it is the nearest that has customdata.
    """
    key, kept = f"clicks-{chart}", f"clicked:{chart}"

    def picked() -> None:
        st.session_state[kept] = pending(key)  # a rerun may come before the chart is reached

    mount("clicks", {"chart": re.sub("[^a-zA-Z0-9_-]", "-", chart)}, key, picked)  # as Streamlit names its class
    point = st.session_state.pop(kept, None)
    return (list(point["custom"]), point["x"]) if isinstance(point, dict) and point.get("custom") else None
