"""The form of the page Intervene that adds one line to the list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import url, widgets
from app.lens_view import token_of
from app.subject import Bar
from backend.errors import BadInput, PhasescopeError

OPERATIONS = {"zero": "zero (ablate)", "mean": "mean (ablate)", "resample": "resample (ablate)", "scale": "scale",
              "set": "set a neuron", "add": "add a direction (steer)",
              "patch": "patch from the corrupted prompt"}  # fmt: skip
HELP = """
mean: over the rows of a batch, of a single prompt over its positions. resample: the value on another prompt, drawn with
the seed; of a single prompt, at another of its positions. patch: for pairs of prompts, below.
"""
POINTS = ("attn_out", "mlp_out", "resid_pre", "resid_post")
WAYS = {"token": "W_U of a token", "tokens": "token A minus token B", "prompts": "prompt A minus prompt B",
        "neuron": "what a neuron writes",
        "feature": "feature or kept direction"}  # fmt: skip


def builder(house: Any, bar: Bar) -> None:
    """Draw the form."""
    card = bar.card
    with st.container(border=True):
        op = str(st.selectbox("What", [*OPERATIONS], format_func=lambda o: OPERATIONS[o], key="iv-op", help=HELP))
        place = _place(op, card)
        more = _more(op)
        along = _direction() if op == "add" else None
        at = st.text_input("Positions", "", placeholder="all", key="iv-at",
                           help="such as 3,-1: counted from 0, negative ones from the end").strip()  # fmt: skip
        if widgets.pressed(st.button, "Add", "iv-add", icon=":material/add:"):
            try:
                line = f"{op} {place}{more}{_along(house, card, along)}" + (f" at {at}" if at else "")
                house.check_interventions(line, card)
            except PhasescopeError as error:
                widgets.error_panel(error)
                return
            url.put(edits="; ".join(x for x in (url.get("edits"), line) if x))
            st.rerun()


def _place(op: str, card: Mapping[str, Any]) -> str:
    kinds = places(op, card)
    left, right = st.columns(2, vertical_alignment="bottom")
    kind = str(left.selectbox("Where", kinds, key=f"iv-kind:{op}"))
    layer = right.number_input("Layer", 0, card["n_layers"] - 1, 0, key="iv-layer")
    if kind not in ("head", "neuron"):
        return f"L{layer}.{kind}"
    most = card["n_heads"] if kind == "head" else card["d_mlp"]
    which = st.number_input(kind.capitalize(), 0, most - 1, 0, key=f"iv-{kind}")
    return f"L{layer}{kind[0].upper()}{which}"


def places(op: str, card: Mapping[str, Any]) -> list[str]:
    """Return where an operation can act in this model."""
    points = [p for p in POINTS if p != "mlp_out" or card["d_mlp"]]
    if op == "set":
        return ["neuron"] if card["d_mlp"] else ["head"]
    if op == "add":
        return ["resid_pre", "resid_post", *[p for p in points if p.endswith("_out")]]
    return ["head", *(["neuron"] if card["d_mlp"] else []), *points]


def _more(op: str) -> str:
    """Draw amount or seed, and return it as the line has it."""
    if op == "resample":
        seed = st.number_input("Seed of the draw", 0, 2**31 - 1, 0, key="iv-seed")
        return f" seed {seed}" if seed else ""
    start = {"scale": 0.5, "set": 0.0, "add": 4.0}.get(op)
    if start is None:
        return ""
    return f" {_written(st.number_input('Amount', value=start, format='%g', key=f'iv-amount:{op}'))}"


def _direction() -> tuple[str, str, str]:
    """Draw the fields of a direction and return (way, first, second) as typed."""
    way = str(st.selectbox("Direction", [*WAYS], format_func=lambda w: WAYS[w], key="iv-way",
                           help="Of length 1: the amount is how far the stream is moved. A prompt's is what this point "
                           "holds at its last token, as the model is."))  # fmt: skip
    words = {"token": ("Token", ""), "tokens": ("Token A", "Token B"), "prompts": ("Prompt A", "Prompt B"),
             "neuron": ("Layer of the neuron", "Neuron"),
             "feature": ("Name of the SAE or set", "Feature")}[way]  # fmt: skip
    hint = {"prompts": "text, or token ids", "feature": "", "neuron": "such as 0"}.get(way, "such as ·the, or #17")
    first, second = (st.text_input(w, key=f"iv-{way}:{i}", placeholder=hint) if w else "" for i, w in enumerate(words))
    return way, first, second


def _along(house: Any, card: Mapping[str, Any], along: tuple[str, str, str] | None) -> str:
    """Return the direction as a line has it. Raises BadInput for what cannot be read."""
    if along is None:
        return ""
    way, *given = along
    words, asked = house.tokenizer(card), [g for g in given if g] or [""]
    if not all(g.strip() for g in (given if way != "token" else given[:1])):
        raise BadInput(f"A direction: {WAYS[way]}", "a field is empty", "Fill it in")
    if way == "neuron":
        return f" neuron L{given[0].strip()}N{given[1].strip()}"
    if way == "feature":
        return f" feature {given[0].strip()} {given[1].strip()}"
    if way == "prompts":
        ids = words.kind == "ids"
        first, second = (house.prompt(card, ids=g) if ids else house.prompt(card, text=g) for g in given)
        return f" prompt {_ids(first)} minus {_ids(second)}"
    return " token " + " minus ".join(str(token_of(words, g, card["d_vocab_out"])) for g in asked)


def _ids(prompt: Any) -> str:
    return ",".join(map(str, prompt.tokens))


def _written(amount: float) -> str:
    return repr(float(amount)).removesuffix(".0")
