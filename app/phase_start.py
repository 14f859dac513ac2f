"""The form that starts a phase diagram: recipe, two params with their values, seeds, shared params, and its price."""

from __future__ import annotations

import re
from typing import Any

import streamlit as st

from app import theme, url, widgets
from backend.errors import BadInput, PhasescopeError

#: recipe -> the two params and values that a first visit proposes
PROPOSED = {
    "modular_addition": ("weight_decay", "0, 0.3, 1, 3", "train_fraction", "0.3, 0.5, 0.8"),
    "induction": ("lr", "0.001, 0.003, 0.01", "n_layers", "1, 2"),
}
OTHERS = ("lr", "0.001, 0.003, 0.01", "weight_decay", "0, 0.1, 1")


def form(house: Any) -> None:
    """Draw the form; starting it opens the diagram, which fills in cell by cell."""
    recipes = house.recipes()
    first = "modular_addition" if "modular_addition" in recipes else next(iter(recipes))
    name = url.bound(st.selectbox, "Recipe", "recipe", fallback=first, options=list(recipes),
                     format_func=lambda n: recipes[n].title)  # fmt: skip
    st.caption(recipes[name].asks)
    given = _axes(house, name)
    with st.expander("Params shared by all runs", expanded=False):
        swept = (given["x"], given["y"], "seed")
        shared = widgets.form(recipes[name].params, key=f"diagram:{name}", columns=3, without=swept)
    if shared is None:
        return
    defaults = recipes[name].params().model_dump()
    given["params"] = {k: v for k, v in shared.items() if v != defaults[k] and k not in swept}
    try:
        plan = house.plan_diagram(name, **_read(given))
    except PhasescopeError as error:
        widgets.error_panel(error)
        return
    _price(plan)
    if widgets.pressed(st.button, f"Start {plan['runs']} runs", f"start-diagram:{name}", type="primary",
                       icon=":material/play_arrow:"):  # fmt: skip
        _start(house, name, _read(given))


def _axes(house: Any, recipe: str) -> dict[str, Any]:
    numbers = house.sweepable(recipe)
    x, xs, y, ys = PROPOSED.get(recipe, OTHERS)
    proposed = {"x": (x if x in numbers else numbers[0], xs), "y": (y if y in numbers else numbers[1], ys)}
    given: dict[str, Any] = {}
    for axis, words in (("x", "Columns"), ("y", "Rows")):
        left, right = st.columns([2, 5])
        param, values = proposed[axis]
        given[axis] = left.selectbox(words, numbers, index=numbers.index(param), key=f"diagram:{recipe}:{axis}")
        given[f"{axis}s"] = right.text_input(f"Values of {given[axis]}", values, key=f"diagram:{recipe}:{axis}s",
                                             help="numbers with commas between them")  # fmt: skip
    left, right = st.columns([2, 5])
    given["seeds"] = left.number_input("Seeds per cell", 1, 20, 2, key=f"diagram:{recipe}:seeds")
    given["name"] = right.text_input("Name", "", placeholder="chosen for you", key=f"diagram:{recipe}:name").strip()
    return given


def _read(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "xs": numbers(given["xs"], given["x"]), "ys": numbers(given["ys"], given["y"]),
            "seeds": int(given["seeds"])}  # fmt: skip


def numbers(text: str, param: str) -> list[float]:
    """Read "0.01, 0.1 1" as numbers. Raises BadInput that names the first word that is none."""
    words = [w for w in re.split(r"[,;\s]+", text) if w]
    for word in words:
        try:
            float(word)
        except ValueError:
            raise BadInput(f"Values of {param}", f"{word!r} is no number", "Write numbers like 0.01, 0.1, 1") from None
    return [float(w) for w in words]


def _price(plan: dict[str, Any]) -> None:
    """Say before anything starts how many runs there are and how long they will take."""
    made = plan["diagram"]
    words = f"{len(made['xs'])} x {len(made['ys'])} cells, {len(made['seeds'])} seeds: {plan['runs']} runs"
    if plan["seconds"] is not None:
        words += (f"; about {theme.seconds(plan['wall'])} on {plan['workers']} "
                  f"{'worker' if plan['workers'] == 1 else 'workers'} (the recipe's estimate: "
                  f"{theme.seconds(plan['seconds'])} of one core)")
    st.caption(words + ".")


def _start(house: Any, recipe: str, given: dict[str, Any]) -> None:
    try:
        made = house.start_diagram(recipe, **given)
    except PhasescopeError as error:
        widgets.error_panel(error)
        return
    url.put(diagram=made["name"], tab="phases", cell=None, shade=None, late=None, budget=None)
    st.rerun()
