"""Logit lens: what the model would say if it stopped at each layer."""

import streamlit as st

from app import asking, house, url
from app.lens_view import WRONG, cell_details, lens_grid, stream_picker, through_training, token_picker
from app.subject import begin

backend = house.backend()
bar = begin(
    backend, "logit_lens", "What would the model predict if it stopped at each layer? Each cell: the top token."
)
main, side = st.columns([5, 1], gap="medium")
with side:
    point = stream_picker(bar)
    target = token_picker(
        backend, bar, "target", "Target token", "the next token",
        "Its probability and rank are followed through the layers. Empty: the next token of the prompt.",
    )  # fmt: skip
    distractor = token_picker(
        backend, bar, "distractor", "Distractor token", "none", "A second token: why the target rather than this one."
    )
    url.bound(st.selectbox, "Colour", "colour", options=list(url.COLOURS), format_func=lambda c: c.replace("_", " "))
if WRONG in (target, distractor):
    st.stop()
params = {"point": point, "target": target, "distractor": distractor}
with main:
    key = asking.answer(backend, "logit_lens", bar.card, bar.subject, params)
    if key:
        lens_grid(backend, key, bar)
if key:
    cell_details(backend, key, bar)
    through_training(backend, bar, params)
    asking.provenance(backend, key)
