"""The panels of the Logit lens page."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import streamlit as st

from app import over_checkpoints, theme, url, widgets
from app.components.chart_clicks import chart_clicks
from app.components.frame import pending
from app.components.token_strip import token_strip
from app.subject import Bar
from backend.errors import BadInput, PhasescopeError

POINTS = {"resid_pre": "resid_pre (before)", "resid_mid": "resid_mid (between)", "resid_post": "resid_post (after)"}
WRONG = -1
#: what is drawn through training
FOLLOWED = ("target_log_prob", "target_rank", "entropy", "kl_to_final", "distractor_log_prob", "distractor_rank")


def stream_picker(bar: Bar) -> str:
    """Choose where each layer's stream is read; a point that the model lacks is named in grey with the reason."""
    options = [p for p in POINTS if p != "resid_mid" or "resid_mid" in bar.card["capabilities"]]
    point = url.bound(
        st.selectbox, "Stream", "point", "resid_post", options=options, format_func=POINTS.get,
        help="resid_pre: what enters a layer; resid_mid: between its attention and its MLP; resid_post: what leaves it",
    )  # fmt: skip
    if len(options) < len(POINTS):
        st.caption("resid_mid is not there: attention and MLP read the same stream in this model.")
    elif not bar.card["d_mlp"]:
        st.caption("Without MLP layers resid_mid is resid_post.")
    return point


def token_picker(house: Any, bar: Bar, name: str, label: str, placeholder: str, help: str) -> int | None:
    """Choose one token, whose probability and rank are followed; `name` is its URL field, empty means None.

    WRONG after saying why what was written is no token: nothing else is to be shown as its answer then.
    """
    words = house.tokenizer(bar.card)
    token = url.get(name)
    if token is not None and not 0 <= token < bar.card["d_vocab_out"]:
        token = None
    key = f"{name}:{bar.spec}"
    st.session_state[key] = "" if token is None else words.label(token)
    st.text_input(
        label,
        key=key,
        placeholder=placeholder,
        help=f"{help} Spaces may be written as ·, a token id as #17.",
        on_change=lambda: _choose(words, key, name, bar.card["d_vocab_out"]),
    )
    problem = st.session_state.pop(f"{name}-problem", None)
    if problem:
        widgets.error_panel(problem)
        return WRONG
    return token


def _choose(words: Any, key: str, name: str, d_vocab: int) -> None:
    text = st.session_state[key]
    try:
        url.put(**{name: token_of(words, text, d_vocab) if text else None})
    except PhasescopeError as error:
        st.session_state[f"{name}-problem"] = error.record()


def token_of(words: Any, text: str, d_vocab: int) -> int:
    """Return the id of one token, written as #id, as an id where there is no tokenizer, or as its text."""
    number = text.strip().removeprefix("#")
    if number.isdecimal() and (text.strip().startswith("#") or words.kind == "ids"):
        found = [int(number)]
    elif words.kind == "ids":
        raise BadInput(f"Token {text!r}", "this model has no tokenizer", "Give a token id")
    else:
        found = words.encode(text.replace("·", " ").replace("⏎", "\n"))
    if len(found) != 1 or found[0] >= d_vocab:
        what = f"{len(found)} tokens" if len(found) != 1 else f"not an id from 0 to {d_vocab - 1}"
        todo = "Give one id" if words.kind == "ids" else "Give one token; a word inside a text starts with a space"
        raise BadInput(f"Token {text!r}", what, todo)
    return found[0]


def lens_grid(house: Any, key: str, bar: Bar) -> None:
    """Token by layer; a click on a cell chooses the position."""
    figure = house.figure(key, "grid", {"colour": url.get("colour")})
    chart = f"lens:{key}:{url.get('colour')}"
    st.plotly_chart(figure, key=chart)
    clicked = chart_clicks(chart)
    if clicked and 0 <= (position := int(clicked[0][1])) < len(bar.labels):
        url.put(pos=position)
        st.rerun()  # what stands above the grid marks it too


def _pick_pos() -> None:
    if type(pending("lens-strip")) is int:
        url.put(pos=pending("lens-strip"))


def cell_details(house: Any, key: str, bar: Bar) -> None:
    """For one position: the target's path through the layers and the top tokens of each layer."""
    position = url.get("pos")
    if position is None or not 0 <= position < len(bar.labels):
        position = len(bar.labels) - 1
    st.markdown(
        f"##### At position {position}: `{bar.labels[position]}`", help="Click a token or a cell above to move."
    )
    token_strip(bar.labels, None, (0.0, 1.0), position, key="lens-strip", on_pick=_pick_pos)
    left, middle, right = st.columns(3, gap="medium")
    with left:
        st.plotly_chart(house.figure(key, "target_rank", {"pos": position}), key=f"rank:{key}")
    with middle:
        st.plotly_chart(house.figure(key, "curves"), key=f"curves:{key}")
    with right:
        _top_tokens(house, key, bar, position)


def through_training(house: Any, bar: Bar, params: dict[str, Any]) -> None:
    """What each layer says at each position, over the run's checkpoints; all but a token's own columns are the same
    for every rank, so one row of them is drawn."""
    one = house.analysis("logit_lens")
    over = over_checkpoints.Over(one.name, bar.spec, bar.checkpoints, bar.subject, params, "over:logit_lens")
    followed = FOLLOWED if params["distractor"] is not None else FOLLOWED[:4]
    values = sorted((v for v in one.values if v.name in followed), key=lambda v: followed.index(v.name))
    over_checkpoints.section(house, replace(one, axes=one.axes[:2], values=tuple(values)), over, bar.step,
                             keep=lambda table: table[table["rank"] == 0])  # fmt: skip


def _place(layer: int, point: str, n_layers: int) -> str:
    """Say in words which stream a row of the table reads."""
    if layer == -1 or (layer == 0 and point == "resid_pre"):
        return "of the embeddings"
    if layer == n_layers or (layer == n_layers - 1 and point == "resid_post"):
        return "of the model itself"
    return {"resid_pre": "before", "resid_mid": "between attention and MLP of", "resid_post": "after"}[point] + (
        f" layer {layer}")  # fmt: skip


def _top_tokens(house: Any, key: str, bar: Bar, position: int) -> None:
    table = house.table(key, {"pos": position}, arrays=False)
    words = house.tokenizer(bar.card)
    layers = sorted((int(v) for v in table["layer"].unique()), reverse=True)
    layer = url.bound(
        st.selectbox, "Top tokens", "after", layers[0], options=layers,
        format_func=lambda v: _place(v, url.get("point"), bar.card["n_layers"]),
    )  # fmt: skip
    rows = table[table["layer"] == layer].sort_values("rank")
    st.dataframe(
        [
            {
                "rank": int(r.rank),
                "token": words.label(int(r.token_id)),
                "probability": theme.number(math.exp(r.log_prob)),
                "log prob (nats)": theme.number(r.log_prob),
            }
            for r in rows.itertuples()
        ],
        hide_index=True,
        height=300,
    )
