"""Models: what is known, the card of one, and the field that opens another."""

import streamlit as st

from app import house
from app.models_view import chosen_card, known_models, open_form

backend = house.backend()
st.markdown("### Models")
st.caption("Open any model, see what it is, and how faithfully Phasescope reads it.")
left, right = st.columns([3, 2], gap="large")
with right:
    open_form()
with left:
    chosen_card(backend)
    known_models(backend)
