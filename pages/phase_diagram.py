"""Phase diagram: a recipe over two of its params; which cells generalise, when, and how far seeds agree."""

import streamlit as st

from app import house
from app.phase_view import show

st.markdown("### Phase diagram")
st.caption(
    "Train a recipe over two of its params and see where it generalises at once, late (grokking), or only remembers. "
    "Click a cell for the curves of its runs."
)
show(house.backend())
