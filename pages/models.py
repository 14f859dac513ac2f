"""Models: what is known, the card of one, and the field that opens another."""

import streamlit as st

from app import house, theme, url, widgets
from app.asking import finish
from app.cards import model_card
from app.subject import short_name
from backend.errors import PhasescopeError

backend = house.backend()
st.markdown("### Models")
st.caption("Open any model, see what it is, and how faithfully Phasescope reads it.")
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
    "Training run": ("run", "name or /path/to/run", "A folder with run.json and checkpoints."),
}
left, right = st.columns([3, 2], gap="large")
with right, st.container(border=True):
    st.markdown("**Open a model**")
    kind = st.selectbox("Kind", list(FORMS))
    scheme, example, help_ = FORMS[kind]
    place = st.text_input("Where", placeholder=example, help=help_, key=f"place:{scheme}")
    st.caption(help_)
    if st.button("Open", type="primary", disabled=not place.strip()):
        url.put(model=f"{scheme}:{place.strip()}", step=None)
        st.rerun()
with left:
    spec = url.get("model")
    opened = backend.models()
    if spec:
        try:
            answer = backend.open(spec, url.get("step"))
            if answer["card"] is None and finish(backend, answer["job"], lambda: backend.open(spec, url.get("step"))):
                answer = backend.open(spec, url.get("step"))
            if answer["card"]:
                model_card(answer["card"])
        except PhasescopeError as error:
            widgets.error_panel(error)
    rows = (
        [
            {
                "model": short_name(r.spec),
                "spec": r.spec,
                "layers x heads": f"{r.n_layers} x {r.n_heads}",
                "parameters": theme.count(r.n_params),
                "last used": theme.ago(r.last_used),
            }
            for r in opened.drop_duplicates("spec").itertuples()
        ]
        if len(opened)
        else []
    )
    rows += [
        {
            "model": short_name(f"run:{r['name']}"),
            "spec": f"run:{r['name']}",
            "layers x heads": "",
            "parameters": "",
            "last used": "",
        }
        for r in backend.runs()
        if f"run:{r['name']}" not in {x["spec"] for x in rows}
    ]
    if rows:
        st.markdown("##### Known models")
        picked = st.dataframe(
            rows,
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            key="known",
            column_order=["model", "layers x heads", "parameters", "last used"],
        )
        chosen = picked["selection"]["rows"]
        if chosen and rows[chosen[0]]["spec"] != spec:
            url.put(model=rows[chosen[0]]["spec"], step=None)
            st.rerun()
    elif not spec:
        widgets.empty_state(
            "No model yet", "Type a folder or a hub name on the right, or train one on the Training page."
        )
