"""CircuitsVis (MIT) from a script that the app serves once, for short texts.

Its matrix is one chart element per cell: 16 tokens are quick, 128 take 17 s. Above LIMIT use `pattern` and `head_grid`.
The Python package is never imported (it imports torch); the props are built here.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from app.components.frame import mount, visible
from app.static_files import CIRCUITSVIS

LIMIT = 48
KINDS = (
    "AttentionHeads", "AttentionPattern", "ColoredTokens", "ColoredTokensMulti", "TokenLogProbs",
    "TextNeuronActivations", "TopkTokens", "TopkSamples",
)


def circuitsvis(kind: str, props: dict[str, Any], key: str, height: int = 480) -> None:
    """Draw one CircuitsVis picture `kind` from JSON-able props, at least `height` px tall while it loads."""
    if kind not in KINDS:
        raise ValueError(f"CircuitsVis has no {kind!r}; use one of {KINDS}")
    base = (st.get_option("server.baseUrlPath") or "").strip("/")
    address = f"{'/' + base if base else ''}/app/static/{CIRCUITSVIS}?v={importlib.metadata.version('circuitsvis')}"
    mount("circuitsvis", {"kind": kind, "props": props, "src": address, "height": height}, key)


def attention_heads(
    tokens: Sequence[str], patterns: np.ndarray, names: Sequence[str], key: str = "circuitsvis", height: int = 480,
) -> None:
    """Draw patterns [head, query, key] of at most LIMIT tokens. Raises ValueError above, or where shapes do not fit."""
    patterns = np.asarray(patterns, dtype=np.float64)
    if len(tokens) > LIMIT:
        raise ValueError(f"CircuitsVis with {len(tokens)} tokens: too slow above {LIMIT}; use the canvas")
    if patterns.shape != (len(names), len(tokens), len(tokens)):
        raise ValueError(f"patterns {patterns.shape} for {len(names)} heads and {len(tokens)} tokens")
    props = {"attention": np.round(patterns, 4).tolist(), "attentionHeadNames": list(names),
             "tokens": [visible(t) for t in tokens]}
    circuitsvis("AttentionHeads", props, key, height)
