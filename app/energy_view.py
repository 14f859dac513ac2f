"""The page Energy landscapes: one energy model, its answers beside trivial ones, an experiment at a time."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import asking, auto_page, energy_training, theme, url
from app.links import link
from app.parts import asked_level, by_slider
from app.subject import Bar, subject_bar
from backend.contract import Problems

ERRORS = {"mse": "this model", "mse_linear": "best linear map", "mse_mean": "mean solution", "mse_zero": "answering 0"}
CAPTION = (
    "An energy model E(x, y, k) answers a matrix problem x by walking y downhill from noise, from the smoothest "
    "annealing level to level 0, the sharpest. Pick an experiment; one slider moves all "
    "that is of one level."
)


def page(house: Any) -> None:
    """Draw the page."""
    st.markdown("### Energy landscapes")
    st.caption(CAPTION)
    bar = subject_bar(house, Problems)
    _summary(house, bar)
    known = house.experiments()
    name = url.bound(st.selectbox, "Experiment", "experiment", fallback=next(iter(known)), options=list(known),
                     format_func=lambda n: known[n].title)  # fmt: skip
    one = known[name]
    st.caption(one.asks)
    left, right = auto_page.beside()
    with right:
        params = auto_page.form(one, shared=True, without=by_slider(one.params), most=bar.most)
        link("experiment_queue", "All experiments at once", icon="playlist_play")
        link("spectra", "Curvature of its parameters", icon="ssid_chart",
             query={**url.query(energy=bar.spec, energy_step=bar.step), "family": "energy models"})  # fmt: skip
    with left:
        params = params and params | asked_level(one.params, bar.card)
        key = asking.answer(house, name, bar.card, bar.subject, params) if params is not None else None
        if key:
            auto_page.figures(house, one, key, bar)
    if key and params is not None:
        energy_training.through(house, one, bar, params, shared=True)
        asking.provenance(house, key)


def _summary(house: Any, bar: Bar) -> None:
    """Say how well the model answers, beside what needs no reasoning: as its training logged it last."""
    told, run = bar.card["energy"], bar.spec.removeprefix("run:")
    size = f"{told['side']} x {told['side']}"
    words = {"inverse": f"Inverses of {size} matrices", "addition": f"Sums of two {size} matrices",
             "completion": f"{size} matrices of rank {told['rank']}, half of each shown",
             "gauss": f"Gaussian {size} matrices: every answer is known in closed form",
             "rank1": f"All {size} matrices of rank 1, no problem given: the answers are a manifold"}  # fmt: skip
    found = _logged(house, run) if bar.spec.startswith("run:") else {}
    badges = [(words[told["task"]], "neutral")]
    ours = found.get("mse")
    for name, called in ERRORS.items():
        if name in found:
            worse = name != "mse" and ours is not None and found[name] <= ours
            badges.append((f"{called} {theme.number(found[name])}",
                           "accent" if name == "mse" else "warn" if worse else "neutral"))  # fmt: skip
    theme.badges(badges)
    if found:
        st.caption("Squared error per entry on held-out problems, as the run last logged it. Where a trivial answer is "
                   "as good as the model (marked), its landscape explains that answer.")  # fmt: skip


def _logged(house: Any, run: str) -> dict[str, float]:
    """Return the last logged errors of a run; {} where it logged none."""
    names = [n for n in ERRORS if n in house.metric_names(run)]
    table = house.metrics(run, names) if names else None
    if table is None or not len(table):
        return {}
    last = table.sort_values("step").groupby("metric")["value"].last()
    return {n: float(last[n]) for n in names if n in last}
