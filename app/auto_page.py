"""The page that an analysis gets for nothing: subject bar, form, every figure, through training, provenance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import streamlit as st

from app import asking, claims_view, energy_training, house, notes, over_checkpoints, picks, url, widgets
from app.fields import in_words, label_of
from app.links import PAGES, link
from app.parts import SLIDERS, asked_level, by_slider, part_pickers
from app.subject import Bar, begin
from backend.contract import Analysis

#: of a form with `search`: what the other search alone reads
SEARCHES = {"greedy exact": ("least",), "by score": ("threshold",)}


def unused(one: Analysis, given: dict[str, Any]) -> tuple[str, ...]:
    """Return the fields that mean nothing with what is given: they are not drawn."""
    fields = one.params.model_fields
    if "search" not in fields:
        return ()
    return tuple(n for n in SEARCHES.get(given.get("search", fields["search"].default), ()) if n in fields)


def page(one: Analysis) -> Any:
    """Return the st.Page of an analysis."""

    def show() -> None:
        render(house.backend(), one.name)

    return st.Page(show, title=one.title, icon=":material/insights:", url_path=one.name)


def render(backend: Any, name: str, also: Callable[[Any, str], None] | None = None) -> None:
    """Draw the page of the analysis `name`; `also(backend, key)` draws below the figures of its result."""
    one = backend.analysis(name)
    bar = begin(backend, name, one.asks)
    left, right = beside()
    with right:
        params = form(one, without=by_slider(one.params), most=bar.most, choices=picks.of(backend, one, bar))
    with left:
        key = None
        params = params and params | asked_level(one.params, bar.card)
        if params is not None and not _wants_companion(backend, one, bar, params):
            key = asking.answer(backend, one.name, bar.card, bar.subject, params)
        if key:
            figures(backend, one, key, bar)
    if key and also:
        also(backend, key)
    if key and params is not None:
        if one.subject.family == "energy":
            energy_training.through(backend, one, bar, params)
        else:
            asked = over_checkpoints.Over(one.name, bar.spec, bar.checkpoints, bar.subject, params, f"over:{one.name}")
            over_checkpoints.section(backend, one, asked, bar.step)
        asking.provenance(backend, key)


def beside() -> Any:
    """Return the columns of the figures and of their settings; on a narrow page the settings stand above, in rows."""
    with st.container(key="beside"):
        return st.columns([3, 1], gap="medium")


def _wants_companion(backend: Any, one: Analysis, bar: Bar, params: dict[str, Any]) -> bool:
    """Where the form names no tuned lens or autoencoder and must, offer those of this model or say how one is made."""
    field, kind = next(((f, k) for f, k in one.params.named.items() if k and not params.get(f)), ("", ""))
    if not field:
        return False
    words = str(backend.recipe(kind).title)
    made = {r["name"]: r.get("companion") or {} for r in backend.runs()}
    fit = [n for n, c in made.items() if c.get("kind") == kind and c.get("fingerprint") == bar.card["fingerprint"]]
    todo = "Choose one that was trained for it:" if fit else f"Train one on the Training page: recipe {words.lower()}."
    widgets.empty_state(f"{words}: none is named yet", f"This page reads a {words.lower()} of this model. {todo}")
    for name in fit[:6]:
        st.button(name, key=f"companion:{name}", on_click=_name, args=(one, {**params, field: name}))
    if not fit:
        link("training", f"Train a {words.lower()}", icon="monitoring", query={"recipe": kind})
    return True


def _name(one: Analysis, params: dict[str, Any]) -> None:
    url.put(params=widgets.params_to_query(one.params, params) or None)


def link_to(one: Analysis, query: dict[str, Any]) -> None:
    """Draw a link to the page of an analysis, its own or the automatic one."""
    if (PAGES / f"{one.name}.py").exists():
        link(one.name, label=one.title, icon="insights", query=query)
    else:
        st.page_link(page(one), label=one.title, icon=":material/insights:", query_params=query)


def _in_address(one: Analysis, shared: bool) -> dict[str, Any]:
    before = f"{one.name}." if shared else ""
    everything = widgets.decode(url.get("params") or "")
    return {k.removeprefix(before): v for k, v in everything.items() if k.startswith(before)}


def told(one: Analysis) -> dict[str, Any]:
    """Return the params of an analysis that the address of a page of several (`form` with `shared`) changes."""
    given = widgets.params_from_query(one.params, widgets.encode(_in_address(one, True)))
    return widgets.changed(one.params, given)


def form(
    one: Analysis, shared: bool = False, columns: int = 1, without: Collection[str] = (),
    most: Mapping[str, int] | None = None,
    choices: Mapping[str, Callable[[Any], dict[Any, str]]] | None = None,
) -> dict[str, Any] | None:
    """Draw the params form and return its values, None where one is wrong (which it says); they live in the URL.

    `shared`: the URL holds the params of several analyses, each as `analysis.param`. Fields `without` a widget are left
    at their defaults; `most` are upper bounds that the subject sets; `choices` {field: given values -> {value: words}}
    are what one is picked from.
    The widgets stay the same while the form itself writes the URL and are made anew where it changed otherwise (the
    browser's Back, a link): keyed by the text, every second edit would go to a widget that is no longer there.
    """
    before = f"{one.name}." if shared else ""
    everything, mine = widgets.decode(url.get("params") or ""), _in_address(one, shared)
    told, at = widgets.encode(mine), f"form:{one.name}"
    turn, written = st.session_state.get(at, (0, told))
    turn += told != written
    given = picks.offered(one, widgets.params_from_query(one.params, told), f"params:{one.name}:{turn}", choices or {})
    if wrong := [f"{k}={v}" for k, v in mine.items() if k not in given]:
        notes.say(f"params:{one.name}", f"{one.title}: the address asks for {', '.join(wrong)}, which is no setting "
                  "here or out of its range. Shown: the usual value.")  # fmt: skip
    drawn = f"params:{one.name}:{turn}.search"  # what was just chosen is not in the URL yet
    titles = {n: in_words(n) for n in one.params.model_fields if label_of(one.params, n) == n}
    now = {**given, "search": st.session_state[drawn]} if drawn in st.session_state else given
    for name in choices or {}:
        chosen = f"params:{one.name}:{turn}.{name}"
        now = {**now, name: st.session_state[chosen]} if chosen in st.session_state else now
    picked = {name: found for name, pick in (choices or {}).items() if (found := pick(now))}
    values = widgets.form(one.params, key=f"params:{one.name}:{turn}", values=given, columns=columns,
                          titles=titles, without={*without, *unused(one, now)}, most=most, choices=picked)
    changed = widgets.changed(one.params, values or {})
    others = {k: v for k, v in everything.items() if shared and not k.startswith(before)}
    url.put(params=widgets.encode({**others, **{before + k: v for k, v in changed.items()}}) or None)
    st.session_state[at] = turn, widgets.encode(changed)
    return values


def figures(backend: Any, one: Analysis, key: str, bar: Bar) -> None:
    """Draw every figure of a kept result, with a picker, once, for each axis of the parts they show; then what the
    result says of what was expected."""
    shown = one.figures.values()
    sliders = [axis for axis in SLIDERS if any(axis in (*f.choose, *f.marks) for f in shown)]
    chosen = part_pickers(backend, key, sliders)
    for figure in shown:
        chosen |= part_pickers(backend, key, [axis for axis in figure.choose if axis not in chosen])
        part = {axis: chosen[axis] for axis in (*figure.choose, *figure.marks)}
        st.markdown(f"**{figure.title}**" + (f" · level {part['level']}" if "level" in figure.choose else ""))
        st.plotly_chart(backend.figure(key, figure.name, part), key=f"{key}:{figure.name}")
    claims_view.claims(backend.claims(key))
