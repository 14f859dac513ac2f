"""Logit lens: what the model would say if it stopped at each layer."""

import streamlit as st

from app import asking, house, url
from app.lens_view import cell_details, lens_grid, target_picker
from app.subject import begin

backend = house.backend()
bar = begin(
    backend, "logit_lens", "What would the model predict if it stopped after each layer? Each cell: the top token."
)
main, side = st.columns([5, 1], gap="medium")
with side:
    target = target_picker(backend, bar)
    url.bound(st.selectbox, "Colour", "colour", options=list(url.COLOURS), format_func=lambda c: c.replace("_", " "))
with main:
    key = asking.answer(backend, "logit_lens", bar.card, bar.subject, {"target": target})
    if key:
        lens_grid(backend, key, bar)
if key:
    cell_details(backend, key, bar)
    asking.provenance(backend, key)
