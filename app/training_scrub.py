"""The checkpoint scrubber of the Training page and the views that it moves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app import asking, theme, url, views, widgets
from app.links import link
from app.subject import openable, trained_for
from app.training_data import LIVE, nearest
from app.training_rows import at as at_step
from app.training_runs import POLL
from backend.contract import Prompt
from backend.errors import PhasescopeError


def scrubber(house: Any, focus: str, chosen: Sequence[str], runs: Mapping[str, Any]) -> int | None:
    """Draw the scrubber over the focused run's checkpoints; return the step, None where there is nothing to move to."""
    st.markdown("##### Checkpoints", help="Moves every view below and the dotted line in the charts.")
    steps = runs[focus]["checkpoints"] if focus in runs else []
    if len(chosen) > 1:
        url.bound(st.segmented_control, "Of which run", "focus", fallback=focus, options=list(chosen),
                  also=lambda _: {"marker": None})  # fmt: skip
    if not steps or not openable(runs[focus]):
        _without_model(runs.get(focus))
        return None
    now = nearest(steps, url.get("at"))
    _moves(steps, now)
    if runs[focus]["state"] in LIVE:
        st.fragment(newer, run_every=POLL)(house, focus, len(steps))
    return now


def newer(house: Any, run: str, shown: int) -> None:
    """Offer the checkpoints that a run in progress has written since the scrubber was drawn: it stands still for those
    who look at a view."""
    more = len(house.run(run)["checkpoints"]) - shown
    words = f"Show {more} newer checkpoint{'s' * (more > 1)}"
    if more > 0 and st.button(words, key="newer", icon=":material/update:", type="tertiary"):
        st.rerun()


def _without_model(run: Mapping[str, Any] | None) -> None:
    made_for = (run or {}).get("companion")
    if run and isinstance(made_for, dict):
        trained_for(str(run["name"]), made_for)
    elif run and run["checkpoints"] and not openable(run):
        widgets.empty_state("Not possible for this run", "What it trains is no transformer that could be looked into: "
                            "it keeps curves and weights, and names no model.")  # fmt: skip
    elif run and run.get("state") in LIVE and not run.get("recipe"):
        widgets.empty_state("No checkpoint yet", "The program that writes this run has kept none so far; it does by "
                            "run.checkpoint(step, model). Until then there is no model to look into.")  # fmt: skip
    elif run and run.get("state") in LIVE:
        widgets.empty_state("No checkpoint yet", "The first one is written when training begins; then its views open.")
    else:
        widgets.empty_state("Not possible for this run", "It keeps numbers only: no checkpoint was written, so there "
                            "is no model to look into. In your own loop call run.checkpoint(step, model).")  # fmt: skip


def _moves(steps: Sequence[int], now: int) -> None:
    at = list(steps).index(now)
    with st.container(key="at-row"):
        back, slider, on, around = st.columns([1, 18, 1, 4], vertical_alignment="bottom", gap="small")
    back.button("", icon=":material/chevron_left:", key="at-back", help="Previous checkpoint", disabled=at == 0,
                on_click=_go, args=(steps[max(at - 1, 0)],), type="tertiary")  # fmt: skip
    with slider:
        if len(steps) > 1:
            url.put(at=now if url.get("at") is not None else None)
            url.bound(st.select_slider, f"Step ({at + 1} of {len(steps)})", "at", fallback=now, options=list(steps))
        else:
            st.caption(f"One checkpoint: step {now}")
    on.button("", icon=":material/chevron_right:", key="at-on", help="Next checkpoint", disabled=at == len(steps) - 1,
              on_click=_go, args=(steps[min(at + 1, len(steps) - 1)],), type="tertiary")  # fmt: skip
    around.button("Compare around", icon=":material/compare:", key="at-around", disabled=len(steps) < 2,
                  on_click=lambda: url.put(marker=now), help="Open the checkpoint before and this one side by side")


def _go(step: int) -> None:
    url.put(at=step)


@dataclass
class Look:
    """What is looked at: a checkpoint, the views that are open, and what they are asked about."""

    card: dict[str, Any]
    known: dict[str, str]
    picked: list[str]
    prompt: Prompt | None
    place: Any  # where it is said which steps are ready, once the views are drawn


def look(house: Any, focus: str, step: int) -> Look | None:
    """Draw the pickers of views, prompt, layer and head; None until the model is open."""
    card = views.opened(house, focus, step)
    if card is None:
        return None
    known = views.fitting(house, card)
    if card["energy"]:
        return _look_at_energy(card, known)
    above, row = st.columns(2), st.columns([2, 2, 4, 4], vertical_alignment="bottom")
    with above[0]:
        picked = url.bound(st.multiselect, "Views", "views", fallback=views.first_views(card, list(known)),
                           options=list(known), format_func=lambda n: known[n])  # fmt: skip
    with above[1]:
        prompt = views.prompt_of(house, card)
    for place, axis, n in zip(row[:2], ("layer", "head"), (card["n_layers"], card["n_heads"]), strict=True):
        with place:
            url.bound(st.selectbox, axis.capitalize(), axis, 0, options=list(range(n)))
    with row[2]:
        link("attention", label=f"Open step {step}", icon="open_in_full", query=at_step(focus, step))
    return Look(card, known, picked, prompt, row[3].container())


def _look_at_energy(card: dict[str, Any], known: dict[str, str]) -> Look:
    """Draw the picker of views of an energy model: no prompt, no heads."""
    left, middle, right = st.columns([6, 2, 4], vertical_alignment="bottom")
    with left:
        picked = url.bound(st.multiselect, "Views", "views", fallback=views.first_views(card, list(known)),
                           options=list(known), format_func=lambda n: known[n])  # fmt: skip
    with middle:
        link("energy_landscapes", label="Energy landscapes", icon="open_in_full",
             query=url.query(energy=card["spec"], energy_step=card["step"]))  # fmt: skip
    return Look(card, known, picked, None, right.container())


def open_views(house: Any, focus: str, seen: Look, steps: Sequence[int]) -> None:
    """Draw the open views at the scrubbed step, and say which other steps are ready."""
    if not seen.picked:
        st.caption("Choose a view above to see the model at this step.")
        return
    places = st.columns(min(2, len(seen.picked)))
    for i, name in enumerate(seen.picked):
        with places[i % len(places)]:
            st.markdown(f"**{seen.known[name]}** · step {seen.card['step']}")
            views.single(house, name, seen.card, seen.prompt)
    with seen.place:
        _ready(house, focus, steps, seen.card, seen.picked, seen.prompt)


# ---------------------------------------------------------------- which steps are ready


def missing(
    house: Any, run: str, steps: Sequence[int], names: Sequence[str], prompt: Prompt | None
) -> dict[tuple[str, int], str | None]:
    """Return the (analysis, step) pairs that are not kept yet, with their key where the checkpoint is known."""
    found: dict[tuple[str, int], str | None] = {}
    for step in steps:
        card = house.card(f"run:{run}", step)
        for name in names:
            subject = views.subject_of(house, name, prompt, card.model_dump()) if card else None
            if card and subject is None:
                continue
            told = views.params_of(name, card.model_dump(), prompt) if card else {}
            key = house.request(name, card, subject, told).key if card else None
            if key is None or not house.has(key):
                found[name, step] = key
    return found


def _ready(
    house: Any, run: str, steps: Sequence[int], card: dict[str, Any], names: Sequence[str], prompt: Prompt | None
) -> None:
    absent = missing(house, run, steps, names, prompt)
    _ticks(steps, {s for _, s in absent}, card["step"])
    waiting = _sweep_jobs(house, absent)
    if not absent:
        st.session_state.pop("sweep-left", None)
        return
    asked = widgets.unpress("sweep") if waiting else widgets.pressed(
        st.button, f"Compute all {len(absent)} missing", "sweep", icon=":material/play_arrow:",
        help=_estimate(house, absent, card, prompt))  # fmt: skip
    if asked:
        with st.empty():  # asking for many takes a second or two
            st.progress(0.0, text=f"Starting {len(absent)} computations; they can be cancelled in a moment")
            _sweep(house, run, absent, card, prompt)
        widgets.unpress("sweep")  # a second click while it started
        waiting = _sweep_jobs(house, absent)
        before, absent = len(absent), missing(house, run, steps, names, prompt)
        if len(absent) < before and not waiting:  # done while it was asked for: the ticks above do not know
            st.rerun()
    if waiting:
        _progress(house, absent, len(absent))


def _estimate(house: Any, absent: Iterable[tuple[str, int]], card: dict[str, Any], prompt: Prompt | None) -> str | None:
    """Say what all of it takes; None where an analysis cannot be estimated."""
    try:
        each = {n: house.estimate(n, card, views.subject_of(house, n, prompt, card), views.params_of(n, card, prompt))
                for n in {n for n, _ in absent}}  # fmt: skip
    except PhasescopeError:  # said where it is asked
        return None
    return f"About {theme.seconds(sum(each[n]['seconds'] or 0.0 for n, _ in absent))} of one worker"


def _ticks(steps: Sequence[int], absent: set[int], now: int) -> None:
    """A dot per checkpoint: full where every open view is kept."""
    dots = "".join(
        f'<span class="ps-tick{"" if s in absent else " ps-ready"}{" ps-now" if s == now else ""}" '
        f'title="step {s}: {"not computed" if s in absent else "ready"}"></span>'
        for s in list(steps)[:: max(1, len(steps) // 120)]
    )
    ready = len(steps) - len(absent)
    st.html(f'<div class="ps-ticks">{dots}<span class="ps-num">{ready} of {len(steps)} steps ready</span></div>')


def _sweep(
    house: Any, run: str, absent: Collection[tuple[str, int]], card: dict[str, Any], prompt: Prompt | None
) -> None:
    try:
        for name in dict.fromkeys(n for n, _ in absent):
            subject = views.subject_of(house, name, prompt, card)
            house.sweep(name, f"run:{run}", [s for n, s in absent if n == name], subject,
                        views.params_of(name, card, prompt))  # fmt: skip
    except PhasescopeError as error:
        widgets.error_panel(error)


def _sweep_jobs(house: Any, absent: Mapping[tuple[str, int], str | None]) -> list[dict[str, Any]]:
    """Return the unfinished jobs that compute what is missing: the same analysis of another prompt is none of them."""
    wanted = set(absent.values())
    return [j for j in house.jobs(states=["queued", "running"]) if j["key"] in wanted]


@st.fragment(run_every=0.7)
def _progress(house: Any, absent: Mapping[tuple[str, int], str | None], total: int) -> None:
    """Say how far the sweep is; the page is redrawn when it has ended."""
    waiting = _sweep_jobs(house, absent)
    if not waiting:
        st.rerun()
    total = max(total, len(waiting))
    bar, cancel = st.columns([6, 1], vertical_alignment="center")
    words = f"{len(waiting)} left · {asking.words(waiting[-1])}"
    bar.progress(1 - len(waiting) / total, text=words)
    cancel.button("Cancel", key="sweep-cancel", on_click=_cancel, args=(house.cancel, [j["id"] for j in waiting]))


def _cancel(cancel: Callable[[str], Any], jobs: Sequence[str]) -> None:
    for job in jobs:
        cancel(job)
