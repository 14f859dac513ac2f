"""Prompts: tasks of clean and corrupted prompts, how the model answers them, and pairs of one's own."""

import streamlit as st

from app import asking, house
from app.prompts_view import answers, own_form, pairs_in_full, pairs_shown, task_list
from app.subject import subject_bar
from backend.contract import Weights

backend = house.backend()
st.markdown("### Prompts")
st.caption("Pairs of prompts that differ in little and call for different answers: which tasks fit this model, and "
           "does it answer them?")
bar = subject_bar(backend, Weights)
main, side = st.columns([7, 4], gap="large")
with main:
    subject = pairs_shown(backend, bar.card)
    key = asking.answer(backend, "pair_answers", bar.card, subject) if subject else None
    if key:
        answers(backend, key)
with side:
    task_list(backend, bar.card)
    own_form(backend, bar.card, subject)
if subject:
    pairs_in_full(backend, bar.card, subject, key)
if key:
    asking.provenance(backend, key)
