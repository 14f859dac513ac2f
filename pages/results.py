"""Results: every kept result; open without recomputing, pin, export, delete."""

import streamlit as st

from app import house, url
from app.results_view import open_result, result_list

backend = house.backend()
st.markdown("### Results")
st.caption("Every number that was computed, with where it came from. Opening one computes nothing.")
result_list(backend)
if url.get("key"):
    open_result(backend, url.get("key"))
