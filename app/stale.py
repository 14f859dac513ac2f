"""What the browser sent before it heard of the last write to the address.

A ticking fragment sends the address and every widget's value as the browser holds them at that moment. While what a
click wrote is still on its way (a slow line, a loaded machine), such a request carries the state before the click:
taken at its word it would undo it. Going back in the browser asks for an earlier state too, and says so itself.
"""

from __future__ import annotations

import time
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.scriptrunner_utils.script_run_context import ThreadState

TICKING, WHOLE = 20.0, 3.0  # s that a state left behind may still arrive by a fragment, by a run of the whole page
_KEPT, _SENT = "address-written", "address-sent"


def renew() -> None:
    """Put back what was written to the address where this request was sent before the browser knew of it."""
    context, kept = get_script_run_ctx(suppress_warning=True), st.session_state.get(_KEPT)
    if context is None or kept is None:
        return
    here = _here(context)
    if here == kept["now"]:
        return
    since = time.monotonic() - kept["left"].get(here, -TICKING)
    if not context.is_history_navigation and since < _reach(context):
        st.query_params.from_dict(dict(kept["now"][1]))
        st.session_state[_SENT] = time.monotonic()
    else:
        del st.session_state[_KEPT]  # the user has gone elsewhere


def before() -> Any:
    """Return the address as it is now, for `wrote`."""
    context = get_script_run_ctx(suppress_warning=True)
    return None if context is None else _here(context)


def wrote(left: Any) -> None:
    """Remember that the address `left` was replaced by the one that is there now."""
    now = before()
    if now is None or now == left:
        return
    kept = st.session_state.setdefault(_KEPT, {"left": {}})
    kept["left"] = {a: t for a, t in kept["left"].items() if time.monotonic() - t < TICKING}
    kept["left"][left] = time.monotonic()
    kept["now"] = now
    st.session_state[_SENT] = time.monotonic()


def arrived() -> None:
    """Send the browser the address of the page it has come to, where the page before wrote one of its own just now.

    Written between the click on a link and the first word of the new page, that one would be the address under which
    the browser shows the new page, and the one it asks for at its next request.
    """
    if time.monotonic() - st.session_state.get(_SENT, -TICKING) < TICKING:
        st.query_params.from_dict(st.query_params.to_dict())


def displace(key: str, value: Any, drawn: Any = None) -> None:
    """Give the widget `key` a value, and remember the one that it showed until now.

    A value that is given goes to the browser and replaces what stands there: a press that is still on its way (three
    quick ones of an arrow key) would be undone. So a widget that is `drawn` as the last time, and that the browser
    has with this value, is given none.
    """
    before = st.session_state.setdefault("drawn", {})
    same = drawn is not None and before.get(key) == (page(), drawn) and in_browser(key)
    before[key] = page(), drawn
    shown = st.session_state.get(key)
    if same and shown == value:
        return
    if shown is not None and shown != value:
        st.session_state.setdefault("displaced", {})[key] = shown, time.monotonic()
    st.session_state[key] = value


def in_browser(key: str) -> bool:
    """Say whether the request of this run brought the widget as it is drawn now.

    A run that is broken off may have drawn it without the browser hearing of it: there it would stand at its first
    option, and say so with the next click.
    """
    state: Any = getattr(getattr(get_script_run_ctx(suppress_warning=True), "session_state", None), "_state", None)
    return state is not None and state._key_id_mapper.get_id_from_key(key, "") in state._new_widget_state.states


def displaced(key: str) -> bool:
    """Say, in its callback, whether the value that has arrived is the one it showed before `displace`, sent by a tick.

    A widget outside of all fragments that is changed by hand brings a run of the whole page; one inside a fragment
    brings a run of that fragment, which looks like a tick: what it says counts.
    """
    context = get_script_run_ctx(suppress_warning=True)
    shown, since = st.session_state.get("displaced", {}).get(key, (None, -TICKING))
    ticking = context is not None and bool(context.fragment_ids_this_run) and not ThreadState.get().in_fragment_callback
    return ticking and shown == st.session_state[key] and time.monotonic() - since < TICKING


def page() -> str | None:
    """Return what tells the page of this run from others."""
    context = get_script_run_ctx(suppress_warning=True)
    return None if context is None else context.page_script_hash


def _reach(context: Any) -> float:
    return TICKING if context.fragment_ids_this_run else WHOLE


def _here(context: Any) -> tuple[str, tuple[tuple[str, str], ...]]:
    return context.page_script_hash, tuple(sorted(st.query_params.to_dict().items()))
