"""Two circuits on the page Compare: what both have, what only one has, beside what chance alone would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import theme, widgets
from backend.errors import PhasescopeError

MOST_NAMES = 12
CIRCUITS = ("circuit_nodes", "circuit_edges")
HELP = {
    "Jaccard": "shared / in either; 1: the same circuit, 0: nothing in common",
    "by chance": "what random sets of these sizes would give on average (hypergeometric, exact)",
    "distance": "how many have to be added or taken away to turn one circuit into the other",
    "P(as many)": "the chance that random sets of these sizes share at least as many",
}


def overlap(house: Any, keys: Sequence[str | None], titles: tuple[str, str]) -> None:
    """Draw the overlap of two kept circuits, or why there is none."""
    try:
        found = house.circuit_overlap(*keys)
    except PhasescopeError as error:
        widgets.error_panel(error)
        return
    if not any(r["a"] or r["b"] for r in found["rows"]):
        st.caption("Neither side has a circuit that is faithful enough, so there is nothing to compare.")
        return
    st.dataframe([_row(r, titles) for r in found["rows"]], hide_index=True, column_config={
        name: st.column_config.Column(help=words) for name, words in HELP.items()})  # fmt: skip
    for row in found["rows"]:
        st.caption(f"Of {row['of']}, only {titles[0]}: {_names(row['only_a'])}; only {titles[1]}: "
                   f"{_names(row['only_b'])}.")  # fmt: skip
    st.caption(f"Edit distance {found['distance']} in all. Names are places: a head there may do another thing in the "
               "other model. Edges are as wide as their score beside the strongest of their own side.")  # fmt: skip


def _row(row: Mapping[str, Any], titles: tuple[str, str]) -> dict[str, Any]:
    return {
        "of": row["of"], f"in {titles[0]}": row["a"], f"in {titles[1]}": row["b"], "in both": row["shared"],
        "of all": row["among"], "Jaccard": theme.number(row["jaccard"]),
        "by chance": theme.number(row["chance_jaccard"]), "distance": row["distance"],
        "distance by chance": theme.number(row["chance_distance"]), "P(as many)": theme.number(row["chance"]),
    }  # fmt: skip


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return (", ".join(names[:MOST_NAMES]) or "none") + more
