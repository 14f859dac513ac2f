"""One question at every checkpoint of a run: what is kept, what is under way, a button for the rest, a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import streamlit as st

from app import asking, theme, widgets
from backend.contract import Analysis, Subject
from backend.errors import PhasescopeError
from backend.figures.over_steps import SHOWN, by_change, over_steps


@dataclass(frozen=True)
class Over:
    """What is asked, of which run, at which steps; `place` tells its widgets from those of another.

    A result for the params `richer`, which holds all that is asked and more, is taken where it is kept.
    """

    analysis: str
    spec: str
    steps: list[int]
    subject: Subject
    params: dict[str, Any] = field(default_factory=dict)
    place: str = "over"
    richer: dict[str, Any] | None = None


def kept(house: Any, over: Over) -> pd.DataFrame:
    """Draw what is missing and how far it is; return [step, key] of the checkpoints that are computed."""
    keys = _keys(house, over)
    rows = [(step, key) for step, key in keys.items() if house.has(key)]
    missing = len(over.steps) - len(rows)
    if missing:
        _rest(house, over, missing, bool(_waiting(house, list(keys.values()))))
    return pd.DataFrame(rows, columns=["step", "key"])


def section(
    house: Any, one: Analysis, over: Over, step: int | None, keep: Callable[[pd.DataFrame], pd.DataFrame] | None = None
) -> None:
    """Draw the part of a page that shows an analysis through training: a value to choose, a curve per part.

    `keep` takes the rows of a table that are drawn: one for each part of `one.axes`.
    """
    values = [v for v in one.values if v.kind in ("int", "float", "bool")]
    if len(over.steps) < 2 or not values:
        return
    st.markdown("##### Through training", help="The same question at every checkpoint; each is computed once and kept.")
    found = kept(house, over)
    if len(found) > 1:
        table = house.sweep_table(found)
        _picture(keep(table) if keep else table, one, values, over, step)
    if len(found) < len(over.steps):
        st.caption(f"{len(found)} of {len(over.steps)} checkpoints are computed; curves join those that are")


def _picture(table: pd.DataFrame, one: Analysis, values: list[Any], over: Over, step: int | None) -> None:
    axes = [a.name for a in one.axes]
    table = table.assign(**{a.name: table[a.name].map(dict(enumerate(a.words))) for a in one.axes if a.words})
    left, right = st.columns([1, 3])
    value = left.selectbox("Value", values, format_func=lambda v: v.name.replace("_", " "), key=f"{over.place}:value")
    parts = by_change(table, axes, value.name)
    chosen = parts
    if len(parts) > 1:
        chosen = right.multiselect(
            "Parts", parts, parts[:SHOWN], key=f"{over.place}:parts:{value.name}", max_selections=2 * SHOWN,
            help="Those whose value changes most come first")  # fmt: skip
    st.caption(value.help)
    if chosen:
        figure = over_steps(table, axes, value.name, unit=value.unit, parts=chosen, step=step)
        st.plotly_chart(figure, key=f"{over.place}:picture")
    else:
        st.caption("Choose a part")


def _keys(house: Any, over: Over) -> dict[int, str]:
    cards = {step: house.card(over.spec, step) for step in over.steps}
    return {step: _key(house, over, card) for step, card in cards.items() if card}


def _key(house: Any, over: Over, card: Any) -> str:
    """Return the key of a checkpoint: that of the richer params where their result is kept."""
    asked = [over.params] if over.richer is None else [over.richer, over.params]
    keys = [house.request(over.analysis, card, over.subject, params).key for params in asked]
    return next((key for key in keys if house.has(key)), keys[-1])


def _waiting(house: Any, keys: list[str]) -> list[dict[str, Any]]:
    return mine(house.jobs(states=["queued", "running"]), keys)


def mine(jobs: list[dict[str, Any]], keys: list[str]) -> list[dict[str, Any]]:
    """Return the jobs that compute one of these keys."""
    wanted = set(keys)
    return [j for j in jobs if j["key"] in wanted]


def _rest(house: Any, over: Over, missing: int, waits: bool) -> None:
    label = f"Compute at all {len(over.steps)} checkpoints ({missing} missing{_price(house, over, missing)})"
    if not waits and widgets.pressed(st.button, label, f"{over.place}:all", help="Time of one worker, estimated from "
                                     "one checkpoint; several workers share it."):  # fmt: skip
        try:
            kept = {step for step, key in _keys(house, over).items() if house.has(key)}
            steps = [step for step in over.steps if step not in kept]
            house.sweep(over.analysis, over.spec, steps, over.subject, over.params)
        except PhasescopeError as error:
            widgets.error_panel(error)
            return
        st.rerun()
    if waits:
        _progress(house, over)


def _price(house: Any, over: Over, missing: int) -> str:
    """Say what the rest takes: ", about 12 s", one checkpoint as estimated, times how many; nothing where not known."""
    card = next((c for c in (house.card(over.spec, step) for step in reversed(over.steps)) if c), None)
    try:
        each = house.estimate(over.analysis, card, over.subject, over.params)["seconds"] if card else None
    except PhasescopeError:  # said where it is asked
        each = None
    return f", about {theme.seconds(each * missing)}" if each else ""


@st.fragment(run_every=1.0)
def _progress(house: Any, over: Over) -> None:
    """Say how far it is; the page is redrawn when it moved."""
    waiting = _waiting(house, list(_keys(house, over).values()))
    if waiting:
        text = f"{len(waiting)} checkpoints left · {asking.words(waiting[-1])}"
        st.progress(1 - len(waiting) / max(len(over.steps), len(waiting)), text=text)
        st.button("Cancel the rest", key=f"{over.place}:cancel", on_click=_cancel, args=(house, waiting))
    left = f"{over.place}:left"
    before = st.session_state.get(left, 0)
    st.session_state[left] = len(waiting)
    if len(waiting) < before:
        st.rerun()


def _cancel(house: Any, jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        house.cancel(job["id"])
