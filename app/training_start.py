"""Starting a run: recipe, preset, params; and runs that others write."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import theme, url, widgets
from backend.contract import Preset, Recipe
from backend.errors import PhasescopeError

OWN_SETTINGS = "my own settings"
TWICE = 6.0  # s within which the same start again is taken for a slip
FIRST = "induction"  # the shortest that shows a transition


def start_form(house: Any) -> None:
    """A form made from the recipe's params; starting shows the run at once."""
    with st.expander("Start a run", icon=":material/play_arrow:",
                     expanded=not house.runs() or bool(url.get("recipe"))):  # a link that names a recipe is to start it
        recipes = house.recipes()
        name = url.bound(st.selectbox, "Recipe", "recipe", fallback=FIRST if FIRST in recipes else next(iter(recipes)),
                         options=list(recipes),
                         format_func=lambda n: recipes[n].title, also=lambda _: {"preset": None})  # fmt: skip
        recipe = recipes[name]
        st.caption(recipe.asks)
        preset = _preset(recipe)
        if preset and len(preset.runs) > 1:
            _start_many(house, recipe, preset)
        else:
            _start_one(house, recipe, preset)
    with st.expander("Attach a run from elsewhere", icon=":material/link:"):
        _attach(house)


def _preset(recipe: Recipe) -> Preset | None:
    known = {p.name: p for p in recipe.presets}
    if not known:
        return None
    chosen = url.bound(st.selectbox, "Preset", "preset", fallback=next(iter(known)), options=[*known, OWN_SETTINGS],
                       help="Settings that are known to work; they fill the form below.")  # fmt: skip
    preset = known.get(chosen)
    if preset:
        st.caption(preset.help)
    return preset


def preset_of(recipe: Recipe, params: Mapping[str, Any]) -> str:
    """Return the preset of a single run that these params are of, "" where they are of none."""
    single = [p for p in recipe.presets if len(p.runs) == 1]
    defaults = recipe.params().model_dump()
    free = ("seed", "device", "n_checkpoints", "log_every", "monitor_every")  # it stays the same preset
    for preset in single:
        told = {k: v for k, v in (defaults | dict(preset.runs[0])).items() if k not in free}
        if all(params.get(k, v) == v for k, v in told.items()):
            return preset.name
    return ""


def seconds_of(recipe: Recipe, given: dict[str, Any]) -> float | None:
    """Return the estimated seconds of one run on one CPU core, None where the recipe does not say."""
    return float(recipe.seconds(recipe.params(**given))) if recipe.seconds else None


def _start_one(house: Any, recipe: Recipe, preset: Preset | None) -> None:
    key = f"train:{recipe.name}:{preset.name if preset else ''}"
    with st.form("start-run", border=False, enter_to_submit=False):
        run_name = st.text_input("Name", placeholder="chosen for you", help="Folder of the run; letters, digits, . - _")
        params = widgets.form(recipe.params, key=key, values=dict(preset.runs[0]) if preset else None, columns=2,
                              bounded=False)  # fmt: skip
        seconds = seconds_of(recipe, params) if params is not None else None
        if seconds:
            st.caption(f"About {theme.seconds(seconds)} on one CPU core with these settings.")
        pressed = widgets.pressed(st.form_submit_button, "Start training", "start-one", type="primary")
    if pressed and params is None:
        st.html('<div class="ps-error" role="alert">Not started: mend what is said in red above this button.</div>')
    if pressed and params is not None:
        asked, (before, when) = (recipe.name, params, run_name), st.session_state.get("last-start", (None, 0.0))
        if asked == before and time.monotonic() - when < TWICE:
            st.toast("It was started already a moment ago; press again to start another one like it.")
            return
        st.session_state["last-start"] = asked, time.monotonic()
        try:
            started = house.train(recipe.name, params, name=run_name.strip())
        except PhasescopeError as error:
            widgets.error_panel(error)
            return
        _show([started["run"]])


def _show(runs: list[str]) -> None:
    url.put(runs=runs[:8], focus=runs[0], marker=None, at=None)
    widgets.scroll_to("training-top")
    st.rerun()


def many_words(total: float, runs: int, workers: int) -> str:
    """Say how long several runs take on the workers that are there."""
    at_once = min(runs, workers)
    here = f"about {theme.seconds(total / at_once)} with {at_once} at a time" if at_once > 1 else "one after the other"
    return f"{here} ({theme.seconds(total)} of one CPU core in all)"


def varied(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what differs between the runs, the seed first: what all share would push it out of sight."""
    names = list(dict.fromkeys(n for run in runs for n in run))
    differ = [n for n in names if len({repr(run.get(n)) for run in runs}) > 1] or names
    order = sorted(differ, key=lambda n: n != "seed")
    return [{n: run.get(n) for n in order} for run in runs]


def _start_many(house: Any, recipe: Recipe, preset: Preset) -> None:
    """A family or the seeds of one setting: how many, how long, what differs; all start at once and wait in turn."""
    shared = _shared(recipe, preset)
    if shared is None:
        return
    runs = [{**run, **shared} for run in preset.runs]
    each = [seconds_of(recipe, run) for run in runs]
    total, workers = sum(s for s in each if s), max(1, int(house.health()["workers"]) - 1)
    st.markdown(f"**{len(preset.runs)} runs**" + (f", {many_words(total, len(each), workers)}" if total else "") + ".")
    st.dataframe(varied(preset.runs), hide_index=True, height=min(38 + 35 * len(preset.runs), 180),
                 column_config={n: st.column_config.Column(width="small") for n in preset.runs[0]})  # fmt: skip
    group = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{recipe.name}-{preset.name}").strip("-")
    if widgets.pressed(st.button, f"Start {len(preset.runs)} runs", f"start-many:{recipe.name}:{preset.name}",
                       type="primary"):  # fmt: skip
        try:
            started = house.train_many(recipe.name, runs, group=group)
        except PhasescopeError as error:
            widgets.error_panel(error)
            return
        _show([s["run"] for s in started])


def _shared(recipe: Recipe, preset: Preset) -> dict[str, Any] | None:
    """Draw the params that the runs of a preset do not vary; return the changed ones, None where one is wrong."""
    own = {n for run in preset.runs for n in run}
    same = {n: preset.runs[0][n] for n in own if len({repr(run.get(n)) for run in preset.runs}) == 1}
    swept = own - same.keys()
    with st.expander("Settings that all of them share"):
        told = widgets.form(recipe.params, f"many:{recipe.name}:{preset.name}", same, without=swept)
    before = recipe.params().model_dump() | same
    return None if told is None else {n: v for n, v in told.items() if n not in swept and v != before[n]}


def _attach(house: Any) -> None:
    st.caption("A folder that another program or machine writes: run folders (a Recorder) or TensorBoard event files. "
               "It is only read.")
    with st.form("attach-run", border=False, clear_on_submit=False):
        path = st.text_input("Folder", placeholder="/shared/runs", key="attach-path")
        pressed = widgets.pressed(st.form_submit_button, "Attach", "attach")
    if pressed:
        try:
            house.attach(path.strip())
        except PhasescopeError as error:
            widgets.error_panel(error)
        else:
            st.rerun()
    for place in house.attached():
        row, button = st.columns([5, 2], vertical_alignment="center")
        row.caption(f":material/folder_open: {place['path']} · " + (f"{len(place['runs'])} runs" if place["there"] else
                    "not there now"))  # fmt: skip
        button.button("Detach", key=f"detach:{place['name']}", on_click=widgets.act,
                      args=(house.detach, place["name"]), type="tertiary",
                      help="Takes it off the list; its files stay as they are.")  # fmt: skip
