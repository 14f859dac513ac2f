"""The card of an opened model, with its fidelity badge."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from app import theme, url
from app.links import link
from app.subject import short_name

TOLERANCE = 1e-3  # nats; above it the hooked view is not called faithful


def fidelity_badge(card: dict[str, Any]) -> str:
    """Return HTML: how far hooked and plain forward are apart."""
    found = card["fidelity"]
    if not found:
        return theme.badge("fidelity not measured", "warn")
    good = found["max_abs_log_prob"] <= TOLERANCE and found["top1_agreement"] == 1.0
    if math.isnan(found["max_abs_log_prob"]):
        return theme.badge("fidelity not measurable: the model's own output is NaN", "bad")
    words = (
        f"hooked = plain within {theme.number(found['max_abs_log_prob'])} nats · top-1 {found['top1_agreement']:.1%}"
    )
    return theme.badge(
        words,
        "good" if good else "bad",
        f"Largest difference of log-probabilities over {int(found.get('n_tokens', 0))} fixed tokens",
    )


def model_card(card: dict[str, Any]) -> None:
    """Draw the card."""
    with st.container(border=True):
        step = f" at step {card['step']}" if card["step"] is not None else ""
        st.markdown(f"#### {short_name(card['spec'])}{step}")
        st.html(
            '<div class="ps-row">'
            + ("" if card["energy"] else fidelity_badge(card))
            + theme.badge(card["architecture"])
            + theme.badge(card["dtype"])
            + theme.badge(card["device"])
            + "</div>"
        )
        facts = _energy_facts(card) if card["energy"] else {
            "layers x heads": f"{card['n_layers']} x {card['n_heads']}"
            + (f" ({card['n_key_value_heads']} key-value)" if card["n_key_value_heads"] != card["n_heads"] else ""),
            "parameters": theme.count(card["n_params"]),
            "memory": theme.bytes(card["memory_bytes"]),
            "d_model / d_head / d_mlp": f"{card['d_model']} / {card['d_head']} / {card['d_mlp'] or 'none'}",
            "vocabulary": theme.count(card["d_vocab"])
            + (f" in, {theme.count(card['d_vocab_out'])} out" if card["d_vocab_out"] != card["d_vocab"] else ""),
            "context": f"{theme.count(card['n_ctx'])} tokens",
        }
        columns = st.columns(3)
        for i, (name, value) in enumerate(facts.items()):
            columns[i % 3].markdown(f"{value}  \n:gray[{name}]")
        st.caption(
            f"{card['source']} · fingerprint `{card['fingerprint'][:12]}` · "
            + ("" if card["energy"] else f"tokenizer: {card['tokenizer']['kind']} · ")
            + f"opened in {theme.seconds(card['seconds'])}"
        )
        for note in card["notes"]:
            st.caption(f":material/info: {note}")
        links = st.columns(3)
        if card["energy"]:
            query = url.query(energy=card["spec"], energy_step=card["step"])
            link("energy_landscapes", label="Energy landscapes", icon="landscape", query=query)
            return
        query = url.query(model=card["spec"], step=card["step"])
        with links[0]:
            link("attention", label="Attention", icon="grid_on", query=query)
        with links[1]:
            link("logit_lens", label="Logit lens", icon="layers", query=query)


def _energy_facts(card: dict[str, Any]) -> dict[str, str]:
    told = card["energy"]
    return {
        "trained on": f"{told['task']}, {told['side']} x {told['side']}",
        "parameters": theme.count(card["n_params"]),
        "memory": theme.bytes(card["memory_bytes"]),
        "entries of x / y": f"{told['d_x']} / {told['d_y']}",
        "width": str(told["width"]),
        "annealing levels": str(told["levels"]),
    }
