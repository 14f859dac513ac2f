"""The panels of the page Published numbers: one per model, its table or the way to its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import asking, theme, widgets
from app.links import link
from backend.contract import Weights
from backend.errors import PhasescopeError

SHOWN = {"quantity": "quantity", "published": "published", "ours": "ours", "difference": "difference",
         "tolerance": "tolerance", "agrees": "agrees", "source": "source"}  # fmt: skip


def panel(house: Any, known: Mapping[str, Any]) -> None:
    """Show one model: published, ours, difference; else a button, or what to put where."""
    with st.container(border=True):
        st.markdown(f"**{known['title']}**: {known['told']}")
        if not known["spec"]:
            absent(known)
            return
        try:
            card = _card(house, known)
        except PhasescopeError as error:
            widgets.error_panel(error)
            return
        key = asking.answer(house, "published_numbers", card, Weights(), start=True) if card else None
        if key:
            numbers(house.table(key), known)
            _more(house, key, known["spec"])


def absent(known: Mapping[str, Any]) -> None:
    """Say where the file comes from and where it goes."""
    st.caption(
        f"{known['n']} published numbers. Its weights are not here: their authors gave them no licence, so they do not "
        f"ship. Take them from {known['origin']} and put them at `{known['folder']}/{known['file']}` (the folder is "
        "PHASESCOPE_DATA)."
    )


def _card(house: Any, known: Mapping[str, Any]) -> Any:
    """Return the model's card; where it was never opened, open it on a click."""
    card, spec, place = house.card(known["spec"]), known["spec"], st.empty()
    words, name = f"Compute {known['n']} numbers", f"published:{known['name']}"
    if card is None and widgets.pressed(place.button, words, key=name):
        place.empty()
        answer = house.open(spec)
        if answer["card"] is not None or asking.finish(house, answer["job"], lambda: house.open(spec)):
            card = house.card(spec)
    return card


def numbers(table: pd.DataFrame, known: Mapping[str, Any]) -> None:
    """Draw the table with a mark per row."""
    agree = int(table["agrees"].sum())
    mark = theme.badge(f"{agree} of {len(table)} agree", "good" if agree == len(table) else "warn")
    st.html(mark)
    own = int(table["source"].str.startswith("no publication").sum())
    if own:
        st.caption(f"{own} of these stand in no publication: an independent computation is compared with (see source).")
    shown = table[list(SHOWN)].assign(agrees=["✓ yes" if ok else "✗ no" for ok in table["agrees"]])
    number = st.column_config.NumberColumn
    st.dataframe(
        shown, hide_index=True, height=min(38 + 35 * len(shown), 460), key=f"numbers:{known['name']}",
        column_config={
            "quantity": st.column_config.TextColumn(width=190),
            **{n: number(format="%.5g", width=75) for n in ("published", "ours")},
            **{n: number(format="%.1e", width="small") for n in ("difference", "tolerance")},
            "agrees": st.column_config.TextColumn(width="small"),
        },
    )  # fmt: skip


def _more(house: Any, key: str, spec: str) -> None:
    made = house.record(key)
    left, right = st.columns([1, 1])
    left.caption(
        f"Computed {theme.ago(made['created'])} in {theme.seconds(made['seconds'])} · {made['dtype']} · `{key[:8]}`"
    )
    with right:
        link("results", label="Numbers and export", query={"key": key})
