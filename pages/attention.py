"""Attention: all heads at a glance, one head large, scores per head."""

import streamlit as st

from app import asking, house, views
from app.attention_view import grid, large_head, scores_table, through_training
from app.subject import begin
from backend.contract import Weights

backend = house.backend()
bar = begin(backend, "attention", "Where does each head look? All heads at a glance; click one to see it large.")
key = asking.answer(backend, "attention", bar.card, bar.subject)
if key is None:
    st.stop()
layer, head = views.heads(bar.card)
before = backend.kept("head_scores", bar.card, Weights())
left, right = st.columns([1, 1], gap="medium")
with right:
    large_head(backend, key, bar, layer, head)
with left:
    grid(backend, key, bar, before, (layer, head))
    st.markdown("##### Scores per head", help="Mean over this prompt, and on repeated random tokens with their null.")
    # slow for a large model, and the rest of the page does not wait for it
    score_key = before or asking.answer(backend, "head_scores", bar.card, Weights(), patience=0.5)
    scores_table(backend, key, score_key)
    if score_key and not before:
        st.rerun()  # the labels on the thumbnails are known now
if len(bar.checkpoints) > 1:
    through_training(backend, bar, layer, head)
asking.provenance(backend, key, {"layer": layer, "head": head})
