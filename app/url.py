"""The state of a view lives in the URL: a typed codec, and widgets bound to it.

The URL is the truth. A bound widget takes its value from the URL before it is drawn and writes back when changed;
what identifies the subject is carried from page to page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import streamlit as st

from app import notes, stale


@dataclass(frozen=True)
class Field:
    """One URL field: text -> value (None where the text is no such value), value -> text, and the value when absent."""

    decode: Callable[[str], Any]
    encode: Callable[[Any], str] = str
    default: Any = None


def _int(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", text) else None


def _cell(text: str) -> str | None:
    """A cell of a phase diagram: x3y1."""
    return text if re.fullmatch(r"x[0-9]{1,4}y[0-9]{1,4}", text) else None


def _choice(*options: str) -> Callable[[str], str | None]:
    return lambda text: text if text in options else None


def _names(text: str) -> list[str]:
    return [unquote(t) for t in text.split(",") if t]


def _joined(names: Sequence[str]) -> str:
    """A comma inside a name is escaped: it may be a folder's name."""
    return ",".join(quote(n, safe=" /:@+=()") for n in names)


def _family(text: str) -> str | None:
    """A family of models; short and singular forms are taken: energy, transformer."""
    return next((f for f in FAMILIES if text and f.startswith(text.lower())), None)


FAMILIES = ("transformers", "energy models")
COLOURS = ("probability", "entropy", "kl_to_final", "target_log_prob", "target_rank")

FIELDS: dict[str, Field] = {
    "model": Field(str),
    "step": Field(_int),
    "text": Field(str),
    "tokens": Field(str),
    "layer": Field(_int, default=0),
    "head": Field(_int, default=0),
    "pos": Field(_int),
    "query": Field(_int),
    "colour": Field(_choice(*COLOURS), default="probability"),
    "target": Field(_int),
    "distractor": Field(_int),
    "point": Field(_choice("resid_pre", "resid_mid", "resid_post"), default="resid_post"),
    "after": Field(_int),
    "runs": Field(_names, _joined, default=[]),
    "focus": Field(str),
    "at": Field(_int),
    "marker": Field(_int),
    "views": Field(_names, _joined, default=[]),
    "compare": Field(_names, _joined, default=[]),
    "charts": Field(_names, _joined, default=[]),
    "seeds": Field(_choice("band", "lines"), default="band"),
    "preset": Field(str),
    "axis": Field(_choice("log", "linear"), default="linear"),
    "diagram": Field(str),
    "cell": Field(_cell),
    "shade": Field(_choice("delay", "phase", "final"), default="delay"),
    "reach": Field(_number, default=0.9),
    "late": Field(_int),
    "budget": Field(_int),
    "train_metric": Field(str),
    "test_metric": Field(str),
    "final_metric": Field(str),
    "across": Field(str),
    "up": Field(str),
    "logs": Field(_names, _joined, default=["step"]),
    "tab": Field(_choice("phases", "paths", "new"), default="phases"),
    "key": Field(str),
    "job": Field(str),
    "find": Field(str, default=""),
    "figure": Field(str),
    "analysis": Field(str, default=""),
    "params": Field(str),
    "picture": Field(_choice("heat map", "CircuitsVis"), default="heat map"),
    "recipe": Field(str),
    "state": Field(str),
    "model_b": Field(str),
    "step_b": Field(_int),
    "edits": Field(str),
    "task": Field(str),
    "n_pairs": Field(_int),
    "pairs_seed": Field(_int),
    "source": Field(str),
    "n_rows": Field(_int),
    "row_length": Field(_int),
    "corpus_seed": Field(_int),
    "sae": Field(str),
    "feature": Field(_int),
    "energy": Field(str),
    "energy_step": Field(_int),
    "n_problems": Field(_int),
    "problem_seed": Field(_int),
    "harder": Field(_choice("yes", "no"), default="no"),
    "problem_task": Field(str),
    "level": Field(_int, default=0),
    "experiment": Field(str),
    "models": Field(_names, _joined, default=[]),
    "block": Field(str, default="all"),
    "family": Field(_family),
    "span": Field(_choice("some", "all"), default="some"),
}
NONE = "-"  # in a list field: nothing, where leaving the field out would mean its fallback
CARRIED = ("model", "step", "text", "tokens", "layer", "head", "edits", "task", "n_pairs", "pairs_seed", "source",
           "n_rows", "row_length", "corpus_seed", "sae", "feature", "energy", "energy_step", "n_problems",
           "problem_seed", "harder", "problem_task", "level")  # fmt: skip
#: pages that are not about a subject keep fields of their own
OWN = {
    "training": ("runs", "axis", "focus", "at", "marker", "views", "compare", "charts", "seeds", "layer", "head",
                 "tokens", "text"),
    "phase_diagram": ("diagram", "tab", "cell", "shade", "reach", "late", "budget", "train_metric", "test_metric",
                      "final_metric", "runs", "across", "up", "logs"),
    "compare": ("model", "step", "model_b", "step_b", "compare", "layer", "head", "tokens", "text", "task", "n_pairs",
                "pairs_seed", "source", "n_rows", "row_length", "corpus_seed", "params"),
    "experiment_queue": ("models", "n_problems", "problem_seed", "harder", "experiment", "params"),
    "spectra": (*CARRIED, "params", "block", "span", "family"),
    "": (), "results": (), "jobs": (), "glossary": (),
}  # fmt: skip


def get(name: str) -> Any:
    """Return the typed value of a field; nonsense in the URL counts as absent."""
    stale.renew()
    field = FIELDS[name]
    text = st.query_params.get(name)
    value = field.decode(text) if text is not None else None
    return field.default if value is None else value


def put(**values: Any) -> None:
    """Write fields; a value that is None or the default leaves the URL. What stands there already is not sent again: it
    might arrive after the user has left the page, whose address it would then replace."""
    stale.renew()
    left = stale.before()
    for name, value in values.items():
        if value is None or value == FIELDS[name].default:
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != (text := FIELDS[name].encode(value)):
            st.query_params[name] = text
    stale.wrote(left)


def query(**values: Any) -> dict[str, str]:
    """Return the query parameters of a link to another page: the subject as it is now, with changes."""
    state = {n: get(n) for n in CARRIED} | values
    return {n: FIELDS[n].encode(v) for n, v in state.items() if v is not None and v != FIELDS[n].default}


def carry(page: str) -> None:
    """Keep what identifies the view when the page changes or the browser goes back: what the URL of `page` lacks comes
    from the last visit. The subject is shared by all pages about one; other pages keep fields of their own."""
    stale.renew()
    names = OWN.get(page, CARRIED)
    before = st.session_state.setdefault("carried", {})
    arrived = st.session_state.get("page") != page
    st.session_state["page"] = page
    if arrived:
        notes.forget()
        stale.arrived()
    if arrived and names and names[0] not in st.query_params:
        put(**{n: before[n] for n in names if n in before and n not in st.query_params})
    before |= dict.fromkeys(names) | {n: get(n) for n in names if n in st.query_params}


def carried(name: str) -> Any:
    """Return the field as the address has it, else as the last page that carried it left it."""
    return get(name) or st.session_state.get("carried", {}).get(name)


def _say_unknown(label: str, name: str, shown: Any, more: Mapping[str, Any]) -> None:
    """Say where the address asks for something else than is `shown`; as long as that is shown, also after the address
    has been put right."""
    text = st.query_params.get(name)
    if text is None or shown == (asked := get(name)) or asked == [NONE]:
        notes.keep(name, shown)
        return
    gone = [v for v in asked if v not in shown] if isinstance(asked, list) and asked else [text]
    notes.keep(name, shown, notes.not_offered(label, gone, shown, more))


def _offered(value: Any, options: Any) -> bool:
    """Say whether the options hold a value, of a list any part; NONE stands for a list that was cleared on purpose."""
    if options is None or value == [NONE]:
        return True
    return any(v in options for v in value) if isinstance(value, list) else value in options


def _among(value: Any, options: Any) -> Any:
    return [v for v in value if v in options] if isinstance(value, list) and options is not None else value


def _within(value: Any, limits: Mapping[str, Any]) -> Any:
    """Return a list cut to `max_selections`, a number brought between `min_value` and `max_value`."""
    if isinstance(value, list):
        return value[: limits.get("max_selections") or len(value)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return max(limits.get("min_value", value), min(value, limits.get("max_value", value)))
    return value


def _drawn(widget: Callable[..., Any], label: str, more: Mapping[str, Any]) -> str | None:
    """Return all that tells the browser's widget from another one (with something else it would be a new widget), of
    those that are pressed several times in a second; others are given their value at every run, come what may."""
    if widget not in (st.slider, st.select_slider):
        return None
    said = more.get("format_func") or str
    words = {n: [str(said(o)) for o in v] if n == "options" else v for n, v in more.items() if not callable(v)}
    return repr((getattr(widget, "__name__", ""), label, words))


def bound(
    widget: Callable[..., Any],
    label: str,
    name: str,
    fallback: Any = None,
    also: Callable[[Any], dict] | None = None,
    **more: Any,
) -> Any:
    """Draw a widget whose value is the URL field `name`; `also(value)` gives further fields to write with it."""
    key, drawn = f"url:{name}", _drawn(widget, label, more)
    value, options = get(name), more.get("options")
    if value is None or not _offered(value, options):
        stale.displace(key, fallback, drawn)
        _say_unknown(label, name, fallback, more)
    else:
        allowed = _within(_among(value, options), more)
        stale.displace(key, allowed, drawn)
        _say_unknown(label, name, allowed, more)
        if allowed != value and value != [NONE]:
            put(**{name: allowed})  # the address says what is shown

    page = stale.page()

    def changed() -> None:
        if page != stale.page():  # a word of the page that was left, where this widget was drawn
            return
        chosen = [NONE] if st.session_state[key] == [] else st.session_state[key]
        if stale.displaced(key) or chosen == get(name):  # the second is the browser catching up after the first
            return
        put(**{name: chosen}, **(also(st.session_state[key]) if also else {}))

    return widget(label, key=key, on_change=changed, **more)
