"""What our browser components share: their scripts, the bytes they are fed with, and how a click comes back."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

HERE = Path(__file__).parent


@functools.cache
def script(name: str) -> str:
    """Return the shared script and `<name>.js` as one module."""
    return (HERE / "common.js").read_text(encoding="utf-8") + (HERE / f"{name}.js").read_text(encoding="utf-8")


@functools.cache
def sheet() -> str:
    """Return the components' style sheet."""
    return (HERE / "components.css").read_text(encoding="utf-8")


def mount(name: str, data: Any, key: str, on_pick: Callable[[], None] | None = None) -> Any:
    """Place component `name` and return the value of the click that caused this rerun, or None.

    Registered on every call: the registry belongs to a runtime, and a test process has several.
    """
    component = st.components.v2.component(f"phasescope_{name}", js=script(name), css=sheet(), isolate_styles=False)
    return component(key=key, data=data, on_pick_change=on_pick or _nothing).get("pick")


def pending(key: str) -> Any:
    """Return the click that caused this rerun before the component is placed, so that it is drawn as chosen."""
    state = st.session_state.get(key)
    return state.get("pick") if isinstance(state, dict) else None


def envelope(header: dict[str, Any], payload: bytes) -> bytes:
    """Return length of header (uint32, little-endian), header as JSON, padding to 4 bytes, payload."""
    text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<I", len(text)) + text + payload


def edges(size: int, at_most: int) -> np.ndarray:
    """Return the starts of at most `at_most` nearly equal bins over `size` cells, `[bins + 1]`."""
    bins = min(size, at_most)
    return np.arange(bins + 1) * size // bins


def max_pool(block: np.ndarray, at_most: int) -> np.ndarray:
    """Max-pool the last two axes to at most `at_most` cells each; the maximum keeps a thin stripe visible."""
    for axis in (-2, -1):
        if block.shape[axis] > at_most:
            block = np.maximum.reduceat(block, edges(block.shape[axis], at_most)[:-1], axis=axis)
    return block


def visible(token: str) -> str:
    """Return a token with its white space made visible: space as `·`, newline as `⏎`, tab as `⇥`."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍") or "∅"


def _nothing() -> None:
    return None
