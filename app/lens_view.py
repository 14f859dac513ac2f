"""The panels of the Logit lens page."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import theme, url, widgets
from app.components.frame import pending
from app.components.token_strip import token_strip
from app.subject import Bar
from backend.errors import PhasescopeError


def target_picker(house: Any, bar: Bar) -> int | None:
    """Choose the token whose probability and rank are followed: empty means the next token of the prompt."""
    words = house.tokenizer(bar.card)
    as_ids = bar.card["tokenizer"]["kind"] == "ids"
    text = st.text_input(
        "Target token",
        key=f"target:{bar.spec}",
        value=""
        if url.get("target") is None
        else (str(url.get("target")) if as_ids else words.label(url.get("target"))),
        placeholder="the next token",
        help="Its probability and rank are followed through the layers. Empty: the next token of the prompt.",
    )
    try:
        target = None if not text.strip() else _token(words, text, as_ids, bar.card["d_vocab_out"])
    except PhasescopeError as error:
        widgets.error_panel(error)
        return None
    url.put(target=target)
    return target


def _token(words: Any, text: str, as_ids: bool, d_vocab: int) -> int:
    from backend.errors import BadInput

    found = (
        [int(text)] if as_ids and text.strip().isdigit() else ([] if as_ids else words.encode(text.replace("·", " ")))
    )
    if len(found) != 1 or not 0 <= found[0] < d_vocab:
        raise BadInput(
            f"Target {text!r}",
            f"{len(found)} tokens" if not as_ids else f"not an id from 0 to {d_vocab - 1}",
            "Give one token; a word inside a text starts with a space",
        )
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
    layers = sorted(table["layer"].unique(), reverse=True)
    layer = st.selectbox(
        "Top tokens after", layers, format_func=lambda v: "the embeddings" if v == -1 else f"layer {v}", key="top-layer"
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
