"""Every component on one page, fed with real (random but causal) attention; `?show=` picks one. Run by tests."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from pydantic import Field

from app import theme, widgets
from app.components import circuitsvis, heads, pattern, token_strip
from backend.contract import Params
from backend.errors import NotFound

TEXT = "The keys to the old cabinet in the hall are on the table.\nThe keys to the old cabinet are"


class Knobs(Params):
    """One field of each kind that an analysis may have."""

    k: int = Field(5, ge=1, le=20, title="Top tokens", description="how many tokens to list at each place")
    steps: int = Field(2000, ge=1, le=1_000_000, title="Steps of training before the run ends",
                       description="updates of the weights")
    rate: float = Field(1e-3, gt=0, le=1, title="Learning rate", description="step size of Adam")
    deep: bool = Field(True, title="Read every layer, not only the last one",
                       description="of the residual stream")
    scale: Literal["log", "linear"] = Field("log", title="Scale", description="of the vertical axis")
    target: int | None = Field(None, ge=0, le=50_256, title="Target token id", description="empty: the token that came")
    word: str = Field("mean", title="Method", max_length=12, description="how heads are put together")


def attention(n_heads: int, n: int, seed: int = 0) -> np.ndarray:
    """Causal softmax patterns [head, query, key]: some look back, some repeat, some are vague."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.2, (n_heads, n, n))
    for i in range(n_heads):
        back = i % 5
        rows = np.arange(n)
        scores[i, rows, np.maximum(rows - back, 0)] += 1.5 * (i % 4)
    scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def tokens_of(n: int) -> list[str]:
    """Cut a text into n tokens that begin with their space, as BPE does."""
    words = [w if i == 0 else " " + w for i, w in enumerate(TEXT.replace("\n", " \n ").split(" "))]
    return [words[i % len(words)].replace(" \n", "\n") for i in range(n)]


def thumbs(patterns: np.ndarray, side: int = 32) -> np.ndarray:
    """Display copies uint8 [head, side, side]."""
    from app.components.frame import max_pool
    return np.round(max_pool(patterns, side) * 255).astype(np.uint8)


def show_grid(n_layers: int = 12, n_heads: int = 12, n: int = 32) -> None:
    chosen = st.session_state.setdefault("head", (1, 2))
    labels = {(5, 1): "induction 0.94", (4, 11): "previous token 0.99"} if n_layers > 5 else {(0, 0): "induction 0.94"}
    picked = heads.head_grid(thumbs(attention(n_layers * n_heads, n)), n_layers, n_heads, chosen, labels, key="grid",
                             hover={(0, 0): "entropy 2.3 nats"})
    if picked:
        st.session_state["head"] = chosen = picked
    st.caption(f"chosen head L{chosen[0]}H{chosen[1]}")


def show_pattern(n: int = 24, title: str = "L5H1 of a random model") -> None:
    values = attention(1, n, 3)[0]
    values[2, 1] = 0.123
    found = pattern.pattern(values, tokens_of(n), (0, 1), key="large", title=title, unit="attention weight", selected=7)
    st.caption(f"chosen cell {found}")


def show_tokens(n: int = 24) -> None:
    chosen = st.session_state.setdefault("token", 3)
    values = [math.sin(i) ** 2 if i else math.nan for i in range(n)]
    picked = token_strip.token_strip(tokens_of(n), values, (0, 1), chosen, key="strip", name="entropy", unit="nats")
    if picked is not None:
        st.session_state["token"] = chosen = picked
    st.caption(f"chosen token {chosen}")


def show_circuitsvis(n: int = 16, n_heads: int = 4) -> None:
    circuitsvis.attention_heads(tokens_of(n), attention(n_heads, n), [f"L0H{i}" for i in range(n_heads)], key="cv")


def show_widgets() -> None:
    theme.badges([("from cache", "accent"), ("faithful: 1.2e−6 nats", "good"), ("slow", "warn"), ("failed", "bad"),
                  ("float32", "neutral")])
    values = widgets.form(Knobs, "knobs", columns=3)
    st.code(widgets.params_to_query(Knobs, values or {}) or "all at their defaults", language=None)
    left, right = st.columns(2)
    with left:
        widgets.error_panel(NotFound("Model 'dir:/models/x'", "no such folder", "Check the path or open another model"),
                            details="looked in /models\nlooked in /models/x")
    with right:
        if widgets.empty_state("No runs yet", "A run's loss and the scores of its heads show here while it trains.",
                               "Start the induction recipe", "start"):
            st.caption("pressed")
    facts = {"Parameters": theme.count(124_439_808), "Time": theme.seconds(252), "Memory": theme.bytes(497_759_232),
             "Loss": theme.number(0.031249)}
    for column, (name, value) in zip(st.columns(4), facts.items(), strict=True):
        column.metric(name, value)


def show_plotly() -> None:
    x = np.arange(60)
    figure = go.Figure(layout={"template": theme.template(), "height": 260})
    figure.update_layout(xaxis_title="step", yaxis_title="loss (nats)")
    for i in range(4):
        figure.add_scatter(x=x, y=np.exp(-x / (10 + 5 * i)) + i / 4, name=f"seed {i}")
    st.plotly_chart(figure, key="chart", theme=None)


SHOWS = {
    "grid": lambda n: show_grid(*(int(st.query_params.get(k, 12)) for k in ("layers", "heads"))),
    "pattern": show_pattern, "tokens": show_tokens, "circuitsvis": show_circuitsvis,
    "widgets": lambda n: show_widgets(),
    "twelve": lambda n: (show_grid(1, 12, n), show_pattern(n)),
    "peer": lambda n: circuitsvis.circuitsvis("AttentionHeads", {
        "attention": attention(12, n).round(4).tolist(), "tokens": tokens_of(n)}, "cv"),
}


def everything() -> None:
    """All components as on a page."""
    st.sidebar.selectbox("Model", ["run:induction-0"])
    st.title("Attention")
    st.caption("Which tokens does each head look at?")
    left, right = st.columns([5, 7])
    with left:
        show_grid()
    with right:
        show_pattern()
        show_tokens()
    show_widgets()
    show_plotly()


st.set_page_config("Gallery", layout="wide")
theme.style()
if "show" in st.query_params:
    SHOWS[st.query_params["show"]](int(st.query_params.get("n", 16)))
else:
    everything()
