"""What the fields of a form are picked from that name a part of the model, or another model of its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from app.fields import open_to_more
from app.subject import Bar
from backend.contract import Analysis

Pick = Callable[[Any], dict[Any, str]]  #: the form's values -> {value: its words}


def of(backend: Any, one: Analysis, bar: Bar) -> dict[str, Pick]:
    """Return what the fields are picked from that name a part of the model or another model of its shape."""
    return siblings(backend, one, bar) | blocks(backend, one, bar)


def blocks(backend: Any, one: Analysis, bar: Bar) -> dict[str, Pick]:
    """Return what a field `block` is picked from: the model's layers or modules and its parameters, by name."""
    named = backend.blocks(bar.card)[1:]
    if "block" not in one.params.model_fields or not named:
        return {}
    words = {one.params().model_dump()["block"]: "all"} | {name: name for name in named}
    return {"block": lambda _: words}


def siblings(backend: Any, one: Analysis, bar: Bar) -> dict[str, Pick]:
    """Return what the fields that name another model of the same shape are picked from, given the form's values."""
    if not one.params.sibling:
        return {}
    run, step = one.params.sibling
    known = backend.siblings(bar.spec)
    own = bar.spec.removeprefix("run:") if known else ""

    def runs(given: Any) -> dict[Any, str]:
        names = {"": "this run"} if known else {}
        more = {given.get(run), *known} - {own, "", None}
        return names | {name: str(name) for name in sorted(more)}

    def steps(given: Any) -> dict[Any, str]:
        found = known.get(given.get(run) or own, [])
        return {s: f"step {s}" for s in found} | ({-1: "the newest"} if found else {})

    return {run: runs, step: steps}


def offered(one: Analysis, given: dict[str, Any], drawn: str, choices: Mapping[str, Pick]) -> dict[str, Any]:
    """Return those of the address's values that can be picked, where no widget stands yet that was picked from."""
    gone = [name for name, pick in choices.items() if name in given and f"{drawn}.{name}" not in st.session_state
            and given[name] not in pick(given) and not open_to_more(one.params, name)]  # fmt: skip
    return {k: v for k, v in given.items() if k not in gone}
