"""The page Intervene: the list and its builder, the answer before and after, over prompts and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import asking, over_checkpoints, subject_sets, theme, url, widgets
from app.over_checkpoints import Over
from app.subject import Bar, begin
from backend.errors import PhasescopeError
from backend.figures import NULL_GREY, Line, lines

OPERATIONS = {"zero": "zero (ablate)", "mean": "mean (ablate)", "scale": "scale", "set": "set a neuron",
              "add": "add a direction (steer)", "patch": "patch from the corrupted prompt"}  # fmt: skip
POINTS = ("attn_out", "mlp_out", "resid_pre", "resid_post")


def show(house: Any) -> None:
    """Draw the page."""
    bar = begin(house, "intervene", "Ablate, scale, steer or patch parts of the model, and see what it then says. The "
                "list is in the address: a link shows the same view.")  # fmt: skip
    side, main = st.columns([4, 8], gap="medium")
    with side:
        edits = _list(house, bar)
        _builder(bar)
        _kept(house, edits)
    with main:
        _answer(house, bar, edits)
    _effect(house, bar, edits)


# ---------------------------------------------------------------- the list


def _list(house: Any, bar: Bar) -> str:
    """Draw the list with a button per line; return it as it is understood, '' where it cannot be read."""
    st.markdown("##### Interventions")
    try:
        lines = house.read_interventions(url.get("edits") or "")
    except PhasescopeError as error:
        widgets.error_panel(error)
        lines = []
    for i, line in enumerate(lines):
        words, button = st.columns([6, 1], vertical_alignment="center")
        words.code(line, language=None)
        button.button("", icon=":material/close:", key=f"drop:{i}:{line}", help="Take it off the list", type="tertiary",
                      on_click=lambda i=i: url.put(edits="; ".join(lines[:i] + lines[i + 1 :]) or None))  # fmt: skip
    if not lines:
        widgets.empty_state("Nothing is changed yet", "Add an intervention below, or write one: "
                            f"{_example(bar)}. The page then shows what the model says with it.")  # fmt: skip
    with st.popover("Write the list", icon=":material/edit:"):
        url.bound(st.text_area, "One intervention a line", "edits", fallback="", height=140,
                  help="zero L1H2 · mean L0.mlp_out at 3,-1 · scale L0.attn_out 0.5 · set L0N17 4 · "
                  "add L1.resid_pre 3 token 5 · add L1.resid_pre 2 feature my-sae 12 (an SAE's, or of a set of "
                  "directions kept on the page Directions by PCA) · patch L1H2 at -1")  # fmt: skip
    return "; ".join(lines)


def _example(bar: Bar) -> str:
    return f"zero L{bar.card['n_layers'] - 1}H0"


def _builder(bar: Bar) -> None:
    """A form that adds one line to the list."""
    card = bar.card
    with st.container(border=True):
        op = str(st.selectbox("What", [*OPERATIONS], format_func=lambda o: OPERATIONS[o], key="iv-op"))
        kinds = _places(op, card)
        row = st.columns(3, vertical_alignment="bottom")
        kind = str(row[0].selectbox("Where", kinds, key=f"iv-kind:{op}"))
        layer = row[1].number_input("Layer", 0, card["n_layers"] - 1, 0, key="iv-layer")
        at = row[2].text_input("Positions", "", placeholder="all", key="iv-at",
                               help="such as 3,-1: counted from 0, negative ones from the end")  # fmt: skip
        place = f"L{layer}.{kind}"
        if kind in ("head", "neuron"):
            most = card["n_heads"] if kind == "head" else card["d_mlp"]
            which = st.number_input(kind.capitalize(), 0, most - 1, 0, key=f"iv-{kind}")
            place = f"L{layer}{kind[0].upper()}{which}"
        line = f"{op} {place}" + _amount(op, card) + (f" at {at.strip()}" if at.strip() else "")
        if widgets.pressed(st.button, "Add", "iv-add", icon=":material/add:"):
            url.put(edits="; ".join(x for x in (url.get("edits"), line) if x))
            st.rerun()


def _places(op: str, card: Mapping[str, Any]) -> list[str]:
    """Return where an operation can act in this model."""
    points = [p for p in POINTS if p != "mlp_out" or card["d_mlp"]]
    if op == "set":
        return ["neuron"] if card["d_mlp"] else ["head"]
    if op == "add":
        return ["resid_pre", "resid_post", *[p for p in points if p.endswith("_out")]]
    return ["head", *(["neuron"] if card["d_mlp"] else []), *points]


def _amount(op: str, card: Mapping[str, Any]) -> str:
    if op not in ("scale", "set", "add"):
        return ""
    start = {"scale": 0.5, "set": 0.0, "add": 4.0}[op]
    amount = st.number_input("Amount", value=start, format="%g", key=f"iv-amount:{op}")
    if op != "add":
        return f" {_written(amount)}"
    token = st.number_input("Along the direction of token (id)", 0, card["d_vocab_out"] - 1, 0, key="iv-token",
                            help="Its column of W_U, of length 1. For a feature of an SAE, or a kept direction of PCA, "
                            "write the line.")
    return f" {_written(amount)} token {token}"


def _kept(house: Any, edits: str) -> None:
    """Lists kept by name: open, keep, drop."""
    try:
        kept = house.kept_interventions()
    except PhasescopeError as error:
        widgets.error_panel(error)
        return
    with st.popover(f"Kept lists ({len(kept)})", icon=":material/bookmark:"):
        for name, listed in kept.items():
            row = st.columns([5, 1], vertical_alignment="center")
            row[0].button(name, key=f"open-list:{name}", help=listed, on_click=lambda v=listed: url.put(edits=v))
            row[1].button("", icon=":material/delete:", key=f"drop-list:{name}", type="tertiary",
                          on_click=widgets.act, args=(house.forget_interventions, name))  # fmt: skip
        name = st.text_input("Name", key="iv-name", placeholder="a name for this list")
        st.button("Keep this list", disabled=not edits or not name.strip(), on_click=widgets.act,
                  args=(house.keep_interventions, name, edits))  # fmt: skip


# ---------------------------------------------------------------- one prompt


def _answer(house: Any, bar: Bar, edits: str) -> None:
    """What the model says after the prompt, and how it goes on, before and after."""
    key = asking.answer(house, "intervene", bar.card, bar.subject, {"edits": edits})
    if not key:
        return
    table = house.table(key)
    st.plotly_chart(house.figure(key, "next_token"), key="intervene:next")
    st.caption(f"KL(before ‖ after) at the last token: {theme.number(table['kl'].iloc[0])} nats.")
    words, written = house.tokenizer(bar.card), table[table["what"] == "written"]
    for title, column in (("before", "token_before"), ("after", "token_after")):
        other = written["token_after" if column == "token_before" else "token_before"]
        chips = "".join(subject_sets.chip(words.label(int(a)), a != b)
                        for a, b in zip(written[column], other, strict=True))  # fmt: skip
        st.html(f'<div class="ps-pair"><span class="ps-what">{title}</span>{chips}</div>')
    st.caption("How it goes on, greedily; tokens that differ are marked.")
    asking.provenance(house, key)


# ---------------------------------------------------------------- many prompts, all checkpoints


def _effect(house: Any, bar: Bar, edits: str) -> None:
    """The same list over a set of pairs, and over the checkpoints of the run."""
    st.markdown("##### Over many prompts")
    if not edits:
        st.caption("With a list above, its effect on the logit difference over a set of prompt pairs is measured here.")
        return
    if not any(not task["reason"] for task in house.tasks(bar.card).values()):
        st.caption("No pairs of prompts fit this model.")
        return
    left, right = st.columns([6, 6], gap="medium")
    pairs = subject_sets.pairs_field(house, bar.card, left)
    with left:
        subject_sets.shown_pair(house, bar.card, pairs)
        key = asking.answer(house, "intervention_effect", bar.card, pairs, {"edits": edits})
        if key:
            mean = house.table(key).set_index("pair").loc[-1]
            st.caption(f"Effect {theme.number(mean['effect'])} logits (95 %: {theme.number(mean['effect_low'])} to "
                       f"{theme.number(mean['effect_high'])}, {len(pairs.pairs)} pairs); effect size "
                       f"{theme.number(mean['effect_size'])}.")  # fmt: skip
    with right:
        if key:
            st.plotly_chart(house.figure(key, "before_and_after"), key="intervene:effect")
    if bar.checkpoints:
        _replay(house, bar, edits, pairs)


def _replay(house: Any, bar: Bar, edits: str, pairs: Any) -> None:
    """The effect at every checkpoint; what is missing is computed when asked for."""
    st.markdown("##### Over all checkpoints")
    over = Over("intervention_effect", bar.spec, bar.checkpoints, pairs, {"edits": edits}, "iv-replay")
    found = over_checkpoints.kept(house, over)
    rows = [house.table(key).set_index("pair").loc[-1].to_dict() | {"step": step}
            for step, key in found.itertuples(index=False)]  # fmt: skip
    if len(rows) > 1:
        st.plotly_chart(_curve(pd.DataFrame(rows)), key="intervene:replay")
    st.caption(f"{len(rows)} of {len(bar.checkpoints)} checkpoints are computed.")


def _curve(frame: pd.DataFrame) -> Any:
    step, before = frame["step"], frame["before"]
    low, high = before + frame["effect_low"], before + frame["effect_high"]
    curves = [Line("before", step, before, colour=NULL_GREY), Line("after", step, frame["after"], low, high)]
    return lines(curves, x_title="step", y_title="logit_diff (mean over pairs; band: 95 % of the effect)")


def _written(amount: float) -> str:
    return repr(float(amount)).removesuffix(".0")
