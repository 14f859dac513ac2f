"""What of an address could not be followed, said on the page until something else is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

_PLACE, _KEPT = "address", "address-notes"


def here() -> None:
    """Keep the place where pages say what of the address they could not follow."""
    st.session_state[_PLACE] = st.container(), set()


def forget() -> None:
    """Drop what was said of the page that was left."""
    st.session_state.pop(_KEPT, None)


def say(name: str, text: str) -> None:
    """Say, once a visit and field, what of the address could not be followed and what is shown in its stead."""
    place, said = st.session_state.get(_PLACE, (None, set()))
    if place is not None and name not in said:
        said.add(name)
        place.caption(f":material/info: {text}")


def keep(name: str, shown: Any, text: str = "") -> None:
    """Say the text now and, after the address has been put right, as long as the same is shown."""
    kept = st.session_state.setdefault(_KEPT, {})
    if text:
        kept[name] = shown, text
    if name in kept and kept[name][0] == shown:
        say(name, kept[name][1])


def not_offered(label: str, gone: Sequence[Any], shown: Any, widget: Mapping[str, Any]) -> str:
    """Return what to say where a widget with these settings does not offer what is asked for."""
    words = widget.get("format_func") or str
    there = shown if isinstance(shown, list) else [shown]
    return (f"{label}: the address asks for {_listed(gone, str)}, which this page does not offer"
            f"{_reach(widget, words)}. Shown: {_listed(there, words) or 'nothing'}.")  # fmt: skip


def _listed(values: Sequence[Any], words: Callable[[Any], str], most: int = 6) -> str:
    left = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(str(words(v))[:60] for v in list(values)[:most]) + left


def _reach(widget: Mapping[str, Any], words: Callable[[Any], str]) -> str:
    """Say what there is to choose from: " (0 to 3)"; nothing where that is open."""
    options = list(widget.get("options") or [])
    if len(options) > 2 and all(isinstance(o, int) for o in options):
        return f" ({options[0]} to {options[-1]})"
    if options:
        return f" (there is {_listed(options, words)})"
    ends = widget.get("min_value"), widget.get("max_value")
    return f" ({ends[0]} to {ends[1]})" if None not in ends else ""
