"""Jobs: what waits and why, what runs where, what failed and its story."""

import streamlit as st

from app import house
from app.jobs_view import detail, job_table, workers_table

backend = house.backend()
st.markdown("### Jobs")
st.caption("Everything this machine computes, queued, running or ended. Jobs go on when the tab is closed.")
job_table(backend)
detail(backend)
workers_table(backend)
