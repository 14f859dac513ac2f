"""The panels of the Logit lens page."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import theme, url, widgets
from app.components.frame import pending
from app.components.token_strip import token_strip
from app.subject import Bar
from backend.errors import BadInput, PhasescopeError


def target_picker(house: Any, bar: Bar) -> int | None:
    """Choose the token whose probability and rank are followed: empty means the next token of the prompt."""
    words = house.tokenizer(bar.card)
    target = url.get("target")
    if target is not None and not 0 <= target < bar.card["d_vocab_out"]:
        target = None
    key = f"target:{bar.spec}"
    st.session_state[key] = "" if target is None else words.label(target)
    st.text_input(
        "Target token",
        key=key,
        placeholder="the next token",
        help="Its probability and rank are followed through the layers. Empty: the next token of the prompt. "
        "Spaces may be written as ·, a token id as #17.",
        on_change=lambda: _choose(words, key, bar.card["d_vocab_out"]),
    )
    problem = st.session_state.pop("target-problem", None)
    if problem:
        widgets.error_panel(problem)
    return target


def _choose(words: Any, key: str, d_vocab: int) -> None:
    text = st.session_state[key]
    try:
        url.put(target=_token(words, text, d_vocab) if text else None)
    except PhasescopeError as error:
        st.session_state["target-problem"] = error.record()


def _token(words: Any, text: str, d_vocab: int) -> int:
    """Return the id of one token, written as #id, as an id where there is no tokenizer, or as its text."""
    number = text.strip().removeprefix("#")
    if number.isdecimal() and (text.strip().startswith("#") or words.kind == "ids"):
        found = [int(number)]
    elif words.kind == "ids":
        raise BadInput(f"Target {text!r}", "this model has no tokenizer", "Give a token id")
    else:
        found = words.encode(text.replace("·", " ").replace("⏎", "\n"))
    if len(found) != 1 or found[0] >= d_vocab:
        what = f"{len(found)} tokens" if len(found) != 1 else f"not an id from 0 to {d_vocab - 1}"
        raise BadInput(f"Target {text!r}", what, "Give one token; a word inside a text starts with a space")
    return found[0]


def lens_grid(house: Any, key: str, bar: Bar) -> None:
    """Token by layer; a click on a cell chooses the position."""
    figure = house.figure(key, "grid", {"colour": url.get("colour")})
    event = st.plotly_chart(figure, key=f"lens:{key}:{url.get('colour')}", on_select="rerun", selection_mode="points")
    points = event["selection"]["points"] if event else []
    position = _position(points[0].get("customdata")) if points else None
    picked = (key, points[0].get("point_index")) if points else None
    if position is not None and picked != st.session_state.get("lens-pick") and 0 <= position < len(bar.labels):
        st.session_state["lens-pick"] = picked  # a selection stays with the chart: it counts once, the strip may follow
        url.put(pos=position)


def _position(custom: Any) -> int | None:
    """Read the position from a clicked cell's customdata, which arrives as a list or as {'0': ...}."""
    values = list(custom.values()) if isinstance(custom, dict) else list(custom or [])
    return int(values[1]) if len(values) > 1 else None


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


def _top_tokens(house: Any, key: str, bar: Bar, position: int) -> None:
    table = house.table(key, {"pos": position}, arrays=False)
    words = house.tokenizer(bar.card)
    layers = sorted((int(v) for v in table["layer"].unique()), reverse=True)
    layer = url.bound(
        st.selectbox,
        "Top tokens after",
        "after",
        layers[0],
        options=layers,
        format_func=lambda v: "the embeddings" if v == -1 else f"layer {v}",
    )
    rows = table[table["layer"] == layer].sort_values("rank")
    st.dataframe(
        [
            {
                "rank": int(r.rank),
                "token": words.label(int(r.token_id)),
                "probability": theme.number(2.718281828459045**r.log_prob),
                "log prob (nats)": theme.number(r.log_prob),
            }
            for r in rows.itertuples()
        ],
        hide_index=True,
        height=300,
    )
