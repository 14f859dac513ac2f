"""Training: start a recipe, watch it live, stop, resume, step into a checkpoint."""

import streamlit as st

from app import house
from app.training_view import live_charts, run_list, start_form

backend = house.backend()
st.markdown("### Training")
st.caption(
    "Start a run and watch what it learns as it learns it. Click a point of a curve to open the model at that step."
)
left, right = st.columns([3, 8], gap="medium")
with left:
    chosen = run_list(backend)
    start_form(backend)
with right:
    live_charts(backend, chosen)
