"""Forms out of pydantic models, their URL form, and the panels that every page shows the same way."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import streamlit as st
from pydantic import BaseModel, ValidationError

from backend.contract import Params
from backend.errors import PhasescopeError

#: an integer range of at most this many steps is a slider, a larger one a number field
SLIDER_STEPS = 64


# ---------------------------------------------------------------- form


def form(
    params_model: type[Params], key: str, values: Mapping[str, Any] | None = None, columns: int = 2,
) -> dict[str, Any] | None:
    """Show one widget per field and return the validated values, or None after saying which field does not fit.

    `values` are starting values; the field's own default stands where one is missing. Label, help and range come
    from the JSON schema. Widgets are keyed `<key>.<field>`.
    """
    schema = params_model.model_json_schema()
    given: dict[str, Any] = {}
    places = st.columns(min(columns, max(1, len(schema.get("properties", {})))))
    for i, (name, prop) in enumerate(schema.get("properties", {}).items()):
        field = resolve(prop, schema.get("$defs", {}))
        start = (values or {}).get(name, field.get("default"))
        with places[i % len(places)]:
            given[name] = widget(name, field, f"{key}.{name}", start)
    # a field left out keeps its default_factory; None only where the field allows it
    return check(params_model, given)


def check(params_model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the validated values, or None after showing one line per problem."""
    try:
        return params_model.model_validate(dict(given)).model_dump()
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'Values'}: {e['msg'].removeprefix('Value error, ')}"
                 for e in error.errors(include_url=False)]
        st.html('<div class="ps-error" role="alert">' + "<br>".join(html.escape(line) for line in lines) + "</div>")
        return None


def resolve(prop: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat schema of one field: `$ref` followed, `Optional[x]` as x with `optional` set."""
    field = dict(prop)
    if "anyOf" in field:
        kinds = [k for k in field.pop("anyOf") if k.get("type") != "null"]
        field = {**resolve(kinds[0], defs), **field, "optional": True} if len(kinds) == 1 else field
    if "$ref" in field:
        field = {**defs[field.pop("$ref").rsplit("/", 1)[-1]], **field}
    if "const" in field:
        field["enum"] = [field["const"]]
    return field


def widget(name: str, field: Mapping[str, Any], key: str, start: Any) -> Any:
    """Show the widget for one resolved field and return its value."""
    words = {"label": field.get("title") or name, "help": field.get("description"), "key": key}
    if "enum" in field:
        return _select(field, words, start)
    kind = field.get("type")
    if kind == "boolean":
        return st.toggle(**words, value=bool(start))
    if kind in ("integer", "number"):
        return _number(field, words, start)
    if kind == "string":
        return st.text_input(**words, value=start or "", max_chars=field.get("maxLength")) or ("" if not field.get(
            "optional") else None)
    return _json(words, start)


def _select(field: Mapping[str, Any], words: dict[str, Any], start: Any) -> Any:
    options = ([None] if field.get("optional") else []) + list(field["enum"])
    index = options.index(start) if start in options else 0
    return st.selectbox(**words, options=options, index=index, format_func=lambda o: "none" if o is None else str(o))


def _number(field: Mapping[str, Any], words: dict[str, Any], start: Any) -> int | float | None:
    cast = int if field["type"] == "integer" else float
    low, high = _bounds(field, cast)
    if start is not None:
        start = cast(start)
        start = max(low, start) if low is not None else start
        start = min(high, start) if high is not None else start
    step = field.get("multipleOf") or (1 if cast is int else None)
    if cast is int and low is not None and high is not None and not field.get("optional") and (
        0 < (high - low) // step <= SLIDER_STEPS
    ):
        return st.slider(**words, min_value=low, max_value=high, value=low if start is None else start, step=cast(step))
    extra = {} if cast is int else {"format": "%g", "step": _step(low, high, start)}
    if cast is int:
        extra["step"] = cast(step)
    if field.get("optional"):
        extra["placeholder"] = "none"
    return st.number_input(**words, min_value=low, max_value=high, value=start, **extra)


def _bounds(field: Mapping[str, Any], cast: type) -> tuple[Any, Any]:
    """Return inclusive bounds; an exclusive integer bound moves by one, an exclusive float bound pydantic checks."""
    low, high = field.get("minimum"), field.get("maximum")
    if low is None and (above := field.get("exclusiveMinimum")) is not None:
        low = above + 1 if cast is int else above
    if high is None and (below := field.get("exclusiveMaximum")) is not None:
        high = below - 1 if cast is int else below
    return (None if low is None else cast(low)), (None if high is None else cast(high))


def _step(low: float | None, high: float | None, start: float | None) -> float:
    """Return a tenth of the starting value's decade: 0.001 steps by 0.0001."""
    size = abs(start) if start else (high - low) / 10 if low is not None and high is not None else 1.0
    return float(f"1e{int(f'{size:e}'.split('e')[1]) - 1}") if size else 0.1


def _json(words: dict[str, Any], start: Any) -> Any:
    text = st.text_input(**words, value=json.dumps(start), placeholder="[1, 2, 3]")
    try:
        return json.loads(text)
    except ValueError:
        return text  # pydantic then says what it expected


# ---------------------------------------------------------------- URL


def encode(values: Mapping[str, Any]) -> str:
    """Return values as one query string that keeps their types: numbers, true/false and null bare, text quoted.

    `{"k": 5, "which": "5", "deep": True}` -> `k=5&which=%225%22&deep=true`; keys in order, so the same values give
    the same link. Text that reads as nothing else stays bare (`name=mean`).
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
    def default(name: str) -> Any:
        return params_model.model_fields[name].get_default(call_default_factory=True)

    return encode({k: v for k, v in values.items() if k in params_model.model_fields and v != default(k)})


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
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if not text or text[-1] in ".?!" else ".")


def empty_state(title: str, text: str, button: str | None = None, key: str = "empty") -> bool:
    """Say what a panel will show and what fills it; return True when its button was pressed."""
    st.html(f'<div class="ps-empty"><div class="ps-title">{html.escape(title)}</div>'
            f'<div class="ps-text">{html.escape(text)}</div></div>')
    return bool(button) and st.button(str(button), key=key, type="primary")
