"""Forms out of pydantic models, their URL form, and the panels that every page shows the same way."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import streamlit as st
from pydantic import BaseModel, ValidationError

from app.fields import resolve, widget
from backend.contract import Params
from backend.errors import PhasescopeError

PRESS_LASTS = 20.0  # s

# ---------------------------------------------------------------- form


def form(
    params_model: type[Params], key: str, values: Mapping[str, Any] | None = None, columns: int = 2,
    bounded: bool = True, without: Collection[str] = (), titles: Mapping[str, str] | None = None,
    most: Mapping[str, int] | None = None,
    choices: Mapping[str, Mapping[Any, str]] | None = None,
) -> dict[str, Any] | None:
    """Show one widget per field and return the validated values, or None after saying which field does not fit.

    `values` are starting values; the field's own default stands where one is missing, and for fields `without` a
    widget. Label, help and range come from the JSON schema; `titles` are labels where another field of the page is
    called the same, `most` the upper bounds that are lower for this subject, `choices` {field: {value: its words}}
    what a field is picked from. Widgets are keyed `<key>.<field>`. In an st.form say `bounded=False`: see
    `fields.widget`.
    """
    schema = params_model.model_json_schema()
    given: dict[str, Any] = {}
    props = [p for p in schema.get("properties", {}).items() if p[0] not in without]
    for first in range(0, len(props), columns):  # row by row, so that fields of different height stay aligned
        for place, (name, prop) in zip(st.columns(columns, vertical_alignment="bottom"), props[first:first + columns],
                                       strict=False):
            field = resolve(prop, schema.get("$defs", {}))
            field |= {"label": title} if (title := (titles or {}).get(name)) else {}
            if most and name in most:  # at least one value stays
                field |= {"maximum": max(most[name], field["minimum"])}
            default = _default(params_model, name)
            if picked := (choices or {}).get(name):
                field |= {"enum": list(picked), "words": picked}
            with place:
                given[name] = widget(name, field, f"{key}.{name}", (values or {}).get(name, default), bounded)
    return check(params_model, given)


def _default(params_model: type[BaseModel], name: str) -> Any:
    """Return the field's default, made by its factory where it has one; None where it must be given."""
    info = params_model.model_fields[name]
    return None if info.is_required() else info.get_default(call_default_factory=True)


def check(params_model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the validated values, or None after showing one line per problem."""
    try:
        return params_model.model_validate(dict(given)).model_dump()
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'Values'}: {e['msg'].removeprefix('Value error, ')}"
                 for e in error.errors(include_url=False)]
        st.html('<div class="ps-error" role="alert">' + "<br>".join(html.escape(line) for line in lines) + "</div>")
        return None


# ---------------------------------------------------------------- URL


def encode(values: Mapping[str, Any]) -> str:
    """Return values as one query string that keeps their types.

    `{"k": 5, "name": "mean", "which": "5"}` -> `k=5&name=mean&which=%225%22`: text is quoted only where it would
    read as something else. Keys are sorted, so the same values give the same link.
    """
    return urlencode([(k, _bare(v)) for k, v in sorted(values.items())], quote_via=quote, safe=",:~!*()")


def decode(text: str) -> dict[str, Any]:
    """Read what `encode` wrote; a value that is no JSON is text, so hand-written links work."""
    return {k: _typed(v) for k, v in parse_qsl(text.lstrip("?"), keep_blank_values=True)}


def _bare(value: Any) -> str:
    if isinstance(value, str) and value and _typed(value) == value:
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _typed(text: str) -> Any:
    def no(name: str) -> None:
        raise ValueError(f"{name} is no number here")

    try:
        return json.loads(text, parse_constant=no)
    except ValueError:
        return text


def params_from_query(params_model: type[BaseModel], text: str) -> dict[str, Any]:
    """Return the fields of a link that this model has and accepts; the rest is left at the defaults."""
    given = {k: v for k, v in decode(text).items() if k in params_model.model_fields}
    try:
        params_model.model_validate(given)
    except ValidationError as error:
        wrong = {e["loc"][0] for e in error.errors() if e["loc"]}
        given = {k: v for k, v in given.items() if k not in wrong}
    return given


def params_to_query(params_model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """Return only what differs from the defaults, so that links stay short."""
    return encode(changed(params_model, values))


def changed(params_model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the defaults."""
    fields = params_model.model_fields
    return {k: v for k, v in values.items() if k in fields and v != _default(params_model, k)}


# ---------------------------------------------------------------- panels


def error_panel(error: PhasescopeError | Mapping[str, Any], details: str = "") -> None:
    """Say what was asked, what was found and what to do; details are folded. Takes an error or its record."""
    record = error.record() if isinstance(error, PhasescopeError) else dict(error)
    asked, found, todo = (html.escape(str(record.get(k, ""))) for k in ("asked", "found", "todo"))
    what = f'<div class="ps-what">{asked}</div>' if asked else ""
    st.html(f'<div class="ps-problem" role="alert">{what}<div class="ps-found">{_sentence(found)}</div>'
            f"<div>{_sentence(todo)}</div></div>")
    details = details or str(record.get("details") or record.get("story") or "")
    if details:
        with st.expander("Details"):
            st.code(details, language=None, wrap_lines=True)


def _sentence(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text.strip())
    return text[:1].upper() + text[1:] + ("" if not text or text[-1] in ".?!" else ".")


def scroll_to(where: str, now: bool = False) -> None:
    """Ask for the container keyed `where` to be brought into view at the next run; with `now` do it if it was asked."""
    if not now:
        st.session_state["scroll-to"] = where
    elif st.session_state.get("scroll-to") == where:
        st.session_state.pop("scroll-to")
        times = st.session_state["scrolled"] = st.session_state.get("scrolled", 0) + 1  # else it would not run again
        # the place is filled after this: look for it a few times, then leave the visitor alone
        st.html(f"""<script>/* {times} */ (() => {{ let left = 12; const go = () => {{
            const place = document.querySelector(".st-key-{where}");
            if (place) place.scrollIntoView({{block: "start", behavior: "smooth"}});
            else if (left--) setTimeout(go, 150); }}; go(); }})()</script>""", unsafe_allow_javascript=True)


def act(function: Callable[..., Any], *args: Any) -> None:
    """Call a function from a button's callback; what is wrong is said at the top of the page that follows."""
    try:
        function(*args)
    except PhasescopeError as error:
        st.session_state["callback-problem"] = error.record()


def problem_of_callback() -> None:
    """Say what `act` could not do, once."""
    problem = st.session_state.pop("callback-problem", None)
    if problem:
        error_panel(problem)


def unpress(key: str) -> bool:
    """Forget a press of a button that is not drawn now, or it would count when the button comes back; returns False."""
    st.session_state.pop(f"pressed:{key}", None)
    return False


def pressed(button: Callable[..., Any], label: str, key: str, **kwargs: Any) -> bool:
    """Draw a button by `button` (st.button, st.form_submit_button) and return True once for each press of it.

    A press that Streamlit itself reports is lost where the page starts anew (st.rerun, of a live list say) before the
    script has come to the button; this one is kept until then, for at most PRESS_LASTS seconds.
    """
    noted = f"pressed:{key}"
    button(label, key=key, on_click=lambda: st.session_state.update({noted: time.monotonic()}), **kwargs)
    return time.monotonic() - st.session_state.pop(noted, -PRESS_LASTS) < PRESS_LASTS


def empty_state(title: str, text: str, button: str | None = None, key: str = "empty") -> bool:
    """Say what a panel will show and what fills it; return True when its button was pressed."""
    st.html(f'<div class="ps-empty"><div class="ps-title">{html.escape(title)}</div>'
            f'<div class="ps-text">{html.escape(text)}</div></div>')
    return bool(button) and st.button(str(button), key=key, type="primary")
