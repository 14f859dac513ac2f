"""One Streamlit widget per pydantic field, chosen from the field's JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st
from pydantic import BaseModel

#: an integer range of at most this many steps is a slider, a larger one a number field
SLIDER_STEPS = 64
#: names of fields that are no words
SPELT_OUT = {"pos": "position", "lr": "learning rate", "l2": "L2 penalty", "n": "how many",
             "seed": "seed of the computation"}  # the subject bar has a seed, too


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


def widget(name: str, field: Mapping[str, Any], key: str, start: Any, bounded: bool = True) -> Any:
    """Show the widget for one resolved field and return its value; without `bounded` a number field takes any number.

    In an st.form the browser keeps the button from working while a bounded field is out of range, without a word.
    """
    words: dict[str, Any] = {"label": _label(name, field), "help": field.get("description"), "key": key}
    if "enum" in field:
        return _select(field, words, start)
    kind = field.get("type")
    if kind == "boolean":
        return st.toggle(**words, value=bool(start))
    if kind in ("integer", "number"):
        return _number(field, words, start, bounded)
    if kind == "string":
        field_of = st.text_area if field.get("format") == "textarea" else st.text_input
        text = field_of(**words, value=start or "", max_chars=field.get("maxLength"))
        return None if field.get("optional") and not text else text
    return _json(words, start)


def label_of(params_model: type[BaseModel], name: str) -> str:
    """Return the words that stand at a field of a form."""
    return _label(name, params_model.model_json_schema()["properties"][name])


def _label(name: str, field: Mapping[str, Any]) -> str:
    """Return the title somebody wrote, else the field's own name: the glossary's word, and a recipe's flag."""
    if field.get("label"):  # what the page calls it
        return str(field["label"])
    title = field.get("title", "")
    return name if title.replace(" ", "_").lower() == name.lower() else title or name


def open_to_more(params_model: type[BaseModel], name: str) -> bool:
    """Say whether a field that is picked from a list takes other words too."""
    return bool(params_model.model_json_schema()["properties"][name].get("open_to_more"))


def in_words(name: str) -> str:
    """Return a field's name as a reader's words: held_out -> Held out."""
    words = SPELT_OUT.get(name, name.replace("_", " "))
    return words[:1].upper() + words[1:]


def _select(field: Mapping[str, Any], words: dict[str, Any], start: Any) -> Any:
    more = bool(field.get("open_to_more"))
    options = ([None] if field.get("optional") else []) + list(field["enum"])
    options += [start] if more and start not in options else []
    index = options.index(start) if start in options else 0
    said = {None: "none", **(field.get("words") or {})}
    return st.selectbox(**words, options=options, index=index, format_func=lambda o: str(said.get(o, o)),
                        accept_new_options=more)  # fmt: skip


def _number(field: Mapping[str, Any], words: dict[str, Any], start: Any, bounded: bool) -> int | float | None:
    cast: type = int if field["type"] == "integer" else float
    if field.get("slider"):
        start = float(start)
        return st.select_slider(**words, options=sorted({*field["slider"], start}), value=start,
                                format_func=lambda v: f"{v:g}")  # fmt: skip
    low, high = _bounds(field, cast)
    start = _within(start, low, high, cast)
    step = int(field.get("multipleOf") or 1)
    narrow = cast is int and low is not None and high is not None and 0 < (high - low) // step <= SLIDER_STEPS
    if narrow and not field.get("optional"):
        return st.slider(**words, min_value=low, max_value=high, value=low if start is None else start, step=step)
    extra: dict[str, Any] = {"step": step} if cast is int else {"format": "%g", "step": _step(low, high, start)}
    if field.get("optional"):
        extra["placeholder"] = "none"
    if bounded:
        extra |= {"min_value": low, "max_value": high}
    return st.number_input(**words, value=start, **extra)


def _within(start: Any, low: Any, high: Any, cast: type) -> Any:
    """Return the starting value moved into the range: a widget refuses one outside."""
    if start is None:
        return None
    start = cast(start) if low is None else max(low, cast(start))
    return start if high is None else min(high, start)


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
