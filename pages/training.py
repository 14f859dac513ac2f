"""Training: start a recipe, watch it live, be told where it changes, look into the model before and after."""

import streamlit as st

from app import house
from app.training_view import show

st.markdown("### Training")
st.caption(
    "Watch a model learn, see where it changes, and open it just before and just after. Click a curve to move to that "
    "step, a marker to compare both sides."
)
show(house.backend())
