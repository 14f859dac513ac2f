"""Published numbers: what others measured of the same models, beside what the analyses here give."""

import streamlit as st

from app import house
from app.published_view import panel

backend = house.backend()
st.markdown("### Published numbers")
st.caption(
    "Models of which numbers are published, or whose circuits are known because they were compiled. Everything under "
    "*ours* is computed here, by the same analyses as on the other pages; *agrees* where the difference is within what "
    "the printed digits leave open."
)
for known in backend.published():
    panel(backend, known)
