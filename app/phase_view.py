"""The Phase diagram page: which diagram, how it is coloured, its thresholds, and how far it is. Its cells and what
lies behind them: phase_cells.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import phase_cells, phase_path, phase_start, theme, url, widgets
from backend.errors import PhasescopeError

TABS = {"phases": "Diagram", "paths": "Two metrics of a run", "new": "New diagram"}
SHADES = {"delay": "delay", "phase": "phase", "final": "final value"}


def show(house: Any) -> None:
    """Draw the page."""
    known = {d["name"]: d for d in house.diagrams()}
    tab = url.bound(st.segmented_control, "View", "tab", options=list(TABS), format_func=TABS.get,
                    label_visibility="collapsed") or "phases"  # fmt: skip
    if tab == "paths":
        phase_path.show(house)
    elif tab == "new":
        phase_start.form(house)
    elif not known:
        widgets.empty_state("No phase diagram yet", "Choose “New diagram”: a recipe, two of its params and their "
                            "values. The diagram then fills in cell by cell.")  # fmt: skip
    else:
        _diagram(house, known)


def _diagram(house: Any, known: dict[str, Any]) -> None:
    side, main = st.columns([3, 8], gap="medium")
    with side:
        name = _picked(known)
        logged = house.diagram_metrics(name)
        chosen = _controls(house, name, logged or house.declared_metrics(known[name]["recipe"]), bool(logged))
        chosen["logged"] = logged
    with main.container(key="wide"):  # where the page is narrow its columns stand below each other, chart or not
        busy = known[name]["state"] == "running"
        st.fragment(_live, run_every=1.0 if busy else None)(house, name, chosen, busy)


def _picked(known: dict[str, Any]) -> str:
    first = url.get("diagram") if url.get("diagram") in known else next(iter(known))
    url.put(diagram=url.get("diagram") if url.get("diagram") in known else None)
    return url.bound(
        st.selectbox, "Diagram", "diagram", fallback=first, options=list(known), also=lambda _: {"cell": None},
        format_func=lambda n: n + (" · shipped" if known[n]["shipped"] else f" · {known[n]['state']}"),
    )


def _controls(house: Any, name: str, metrics: list[str], logged: bool) -> dict[str, Any]:
    """Draw what the phases depend on; return the arguments of `diagram_outcomes`, and how the cells are coloured.

    Before the first line of a run `metrics` is what the recipe says it will log.
    """
    pair = house.phase_metrics(metrics)
    given = (url.get("train_metric"), url.get("test_metric"))
    pair = given if all(m in metrics for m in given) else pair
    shades = list(SHADES) if pair else ["final"]
    shade = url.bound(st.segmented_control, "Colour", "shade", fallback=shades[0], options=shades,
                      format_func=SHADES.get) or shades[0]  # fmt: skip
    chosen: dict[str, Any] = {"shade": shade, "pair": pair, "final": ""}
    if shade == "final" and metrics:
        first = next((m for m in ("test_accuracy", "loss") if m in metrics), metrics[0])
        chosen["final"] = url.bound(st.selectbox, "Metric at the end", "final_metric", fallback=first, options=metrics)
    if pair:
        st.markdown("**Thresholds**")
        chosen |= _thresholds(_steps(house, name))
    with st.expander("Metrics of the phases", expanded=logged and not pair):
        if not pair:
            st.caption("This recipe logs no accuracy on training and held-out data: choose two metrics for the phases."
                       if metrics else "Nothing is logged yet.")
        for field, label, at in (("train_metric", "On training data", 0), ("test_metric", "On held-out data", 1)):
            url.bound(st.selectbox, label, field, fallback=pair[at] if pair else None, options=metrics, index=None)
    return chosen


def _thresholds(steps: int) -> dict[str, Any]:
    """The phases are read anew from the curves; nothing is trained again."""
    accuracy = url.bound(st.number_input, "Accuracy reached at", "reach", min_value=0.01, max_value=1.0, step=0.05,
                         format="%g", help="both curves; a value equal to it counts")  # fmt: skip
    late = url.bound(st.number_input, "Delay of grokking (steps)", "late", fallback=max(steps // 5, 1), min_value=0,
                     step=50, help="test this many steps after train, or more, is grokking")  # fmt: skip
    budget = url.bound(st.number_input, "Step budget", "budget", fallback=steps, min_value=1, step=100,
                       help="what is reached later does not count")  # fmt: skip
    return {"accuracy": float(accuracy), "delay": float(late), "budget": float(budget)}


def _steps(house: Any, name: str) -> int:
    made = house.diagram(name)
    for axis in ("x", "y"):
        if made[axis] == "steps":  # a shorter run ends before the budget, which its phase then says
            return int(max(made[f"{axis}s"]))
    declared = house.recipes().get(made["recipe"])
    default = declared.params.model_fields["steps"].default if declared else 1000
    return int(made["params"].get("steps", default))


def _live(house: Any, name: str, chosen: dict[str, Any], busy: bool) -> None:
    made = house.diagram(name)
    if busy and (made["state"] != "running" or house.diagram_metrics(name) != chosen["logged"]):
        st.rerun()  # the whole page: what can be chosen beside the diagram has changed
    _head(house, made)
    phase_cells.show(house, made, chosen)


def _head(house: Any, made: Mapping[str, Any]) -> None:
    """Where it stands: runs done, what runs, cancel or continue."""
    total = len(made["runs"])
    share = sum(r["progress"] for r in made["runs"]) / total
    kind = {"running": "accent", "done": "good"}.get(made["state"], "neutral")
    words = [(made["state"], kind), (f"{made['done']} of {total} runs", "neutral"),
             (f"{len(made['xs'])} x {len(made['ys'])} cells, {_seeds(len(made['seeds']))}", "neutral")]  # fmt: skip
    words += [(f"{made['failed']} failed", "bad")] if made["failed"] else []
    words += [("shipped example", "neutral")] if made["shipped"] else []
    theme.badges(words)
    if made["state"] == "running":
        st.progress(min(share, 1.0), text=f"{share:.0%} of all steps")
        st.button("Cancel", icon=":material/stop:", on_click=widgets.act, args=(house.cancel_diagram, made["name"]),
                  help="What is finished stays; what runs is kept at the step it reached")  # fmt: skip
    elif made["state"] == "unfinished" and not made["shipped"] and widgets.pressed(
        st.button, f"Compute the {total - made['done']} that are missing", f"continue:{made['name']}",
        icon=":material/play_arrow:", type="primary",
    ):
        try:
            house.continue_diagram(made["name"])
            st.rerun()
        except PhasescopeError as error:
            widgets.error_panel(error)


def _seeds(n: int) -> str:
    return f"{n} seed" + ("" if n == 1 else "s")
