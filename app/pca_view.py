"""What the page Directions by PCA has beside the automatic page: keeping the directions to steer with them."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import auto_page, url, widgets
from app.feature_card import RESIDUAL
from app.links import link
from backend.errors import PhasescopeError

NAME = "pca_directions"


def show(house: Any) -> None:
    """Draw the page."""
    auto_page.render(house, NAME, also=_keep)


def _keep(house: Any, key: str) -> None:
    """Keep the directions by name, and say how an intervention names one."""
    params, table = house.record(key)["params"], house.table(key, arrays=False)
    told = "`add L0.resid_post 2 feature NAME 1` adds twice direction 1."
    st.markdown("##### Steer along a direction", help="A kept set is a small run beside the others; an intervention "
                f"names it as it names an autoencoder: {told}")  # fmt: skip
    left, right = st.columns([4, 2], vertical_alignment="bottom")
    name = left.text_input("Keep these directions as", key="pca-name", placeholder="a name for this set").strip()
    if widgets.pressed(right.button, "Keep", "pca-keep", disabled=not name, icon=":material/bookmark_add:"):
        try:
            st.session_state["pca-kept"] = key, house.keep_directions(key, name)["name"]
        except PhasescopeError as error:
            widgets.error_panel(error)
    kept_key, kept = st.session_state.get("pca-kept", ("", ""))
    if kept_key != key:
        return
    if params["point"] not in RESIDUAL:
        st.caption(f"Kept as `{kept}`. At {params['point']} no direction can be added on Intervene.")
        return
    line = f"add L{params['layer']}.{params['point']} {table['variance'].iloc[0] ** 0.5:.3g} feature {kept} 0"
    st.caption(f"Kept as `{kept}`. One standard deviation along direction 0 is `{line}`.")
    link("intervene", label="Open it on Intervene", icon="tune", query=url.query(edits=line))
