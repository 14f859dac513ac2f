"""The panels of the Models page."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import theme, url, widgets
from app.asking import finish
from app.cards import model_card
from app.subject import short_name
from backend.contract import canonical_hash
from backend.errors import PhasescopeError

#: words -> (scheme, example, what it is)
FORMS = {
    "Local folder": (
        "dir",
        "/path/to/folder",
        "A Hugging Face folder: config.json and safetensors; a tokenizer is optional.",
    ),
    "Hub name": (
        "hub",
        "gpt2 or EleutherAI/pythia-70m@step3000",
        "Downloaded where there is a network; @revision is optional.",
    ),
    "nanoGPT checkpoint": ("nanogpt", "/path/to/ckpt.pt", "meta.pkl or meta.json beside it gives the characters."),
    "transformer-lens checkpoint": (
        "tl",
        "/path/to/model.pt",
        "Weights as .pt or safetensors, with a config JSON where there is one.",
    ),
    "Energy model (IRED)": (
        "energy",
        "/path/to/model.pt",
        "A checkpoint of the official code, or safetensors of the same names; a JSON beside it may name the task.",
    ),
    "Training run": ("run", "name or /path/to/run", "A folder with run.json and checkpoints."),
}


def open_form() -> None:
    """Choose a kind and a place; opening puts the model into the address."""
    with st.container(border=True):
        st.markdown("**Open a model**")
        scheme, example, help_ = FORMS[st.selectbox("Kind", list(FORMS))]
        place = st.text_input("Where", placeholder=example, key=f"place:{scheme}")
        st.caption(help_)
        if st.button("Open", type="primary", disabled=not place.strip()):
            url.put(model=f"{scheme}:{place.strip()}", step=None)
            st.rerun()


def chosen_card(house: Any) -> None:
    """The card of the model in the address, opened by a job where needed."""
    spec, step = url.get("model"), url.get("step")
    if not spec:
        return
    try:
        answer = house.open(spec, step)
        if answer["card"] is None and finish(house, answer["job"], lambda: house.open(spec, step)):
            answer = house.open(spec, step)
        if answer["card"]:
            model_card(answer["card"])
    except PhasescopeError as error:
        widgets.error_panel(error)


def known_models(house: Any) -> None:
    """Every model opened so far and every run; a chosen row becomes the model in the address."""
    rows = _rows(house)
    if not rows:
        widgets.empty_state(
            "No model yet", "Type a folder or a hub name on the right, or train one on the Training page."
        )
        return
    st.markdown("##### Known models")
    # another model or other rows: another table, so that an old selection never chooses again
    key = f"known:{canonical_hash([url.get('model'), [r['spec'] for r in rows]])}"
    columns = ["model", "layers x heads", "parameters", "last used"]
    picked = st.dataframe(
        rows, hide_index=True, on_select="rerun", selection_mode="single-row", key=key, column_order=columns
    )
    chosen = picked["selection"]["rows"]
    if chosen and rows[chosen[0]]["spec"] != url.get("model"):
        url.put(model=rows[chosen[0]]["spec"], step=None)
        st.rerun()


def _rows(house: Any) -> list[dict[str, str]]:
    opened = house.models().drop_duplicates("spec")
    rows = [
        {
            "model": short_name(r.spec),
            "spec": r.spec,
            "layers x heads": f"{r.n_layers} x {r.n_heads}" if r.n_heads else "energy model",
            "parameters": theme.count(r.n_params),
            "last used": theme.ago(r.last_used),
        }
        for r in opened.itertuples()
    ]
    known = {r["spec"] for r in rows}
    runs = [f"run:{r['name']}" for r in house.runs()]
    empty = {"layers x heads": "", "parameters": "", "last used": ""}
    return rows + [{"model": short_name(spec), "spec": spec, **empty} for spec in runs if spec not in known]
