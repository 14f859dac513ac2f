"""The panels of the Phase diagram page: the diagram, the curves behind a cell, a run's path through two metrics."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import phase_path, phase_start, theme, url, widgets
from app.links import link
from backend.errors import PhasescopeError
from backend.figures import phase

TABS = {"phases": "Diagram", "paths": "Two metrics of a run", "new": "New diagram"}
SHADES = {"delay": "delay", "phase": "phase", "final": "final value"}
WORDS = {
    "comprehension": "train and test reach it, test less than the delay later",
    "grokking": "test reaches it at least the delay later",
    "memorisation": "only train reaches it",
    "confusion": "train does not reach it",
}


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
        metrics = house.diagram_metrics(name)
        chosen = _controls(house, name, metrics)
    with main:
        busy = known[name]["state"] == "running"
        st.fragment(_live, run_every=1.0 if busy else None)(house, name, chosen, busy)


def _picked(known: dict[str, Any]) -> str:
    first = url.get("diagram") if url.get("diagram") in known else next(iter(known))
    url.put(diagram=url.get("diagram") if url.get("diagram") in known else None)
    return url.bound(
        st.selectbox, "Diagram", "diagram", fallback=first, options=list(known), also=lambda _: {"cell": None},
        format_func=lambda n: n + (" · shipped" if known[n]["shipped"] else f" · {known[n]['state']}"),
    )


def _controls(house: Any, name: str, metrics: list[str]) -> dict[str, Any]:
    """Draw what the phases depend on; return the arguments of `diagram_outcomes`, and how the cells are coloured."""
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
    with st.expander("Metrics of the phases", expanded=not pair):
        if not pair:
            st.caption("This recipe logs no accuracy on training and held-out data: choose two metrics for the phases.")
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
    declared = house.recipes().get(made["recipe"])
    default = declared.params.model_fields["steps"].default if declared else 1000
    return int(made["params"].get("steps", default))


def _live(house: Any, name: str, chosen: dict[str, Any], busy: bool) -> None:
    made = house.diagram(name)
    if busy and made["state"] != "running":
        st.rerun()
    _head(house, made)
    cells = _cells(house, made, chosen)
    picked = _draw(made, cells, chosen)
    if chosen["pair"] and chosen["shade"] != "final":
        _legend(chosen)
    if picked and picked != url.get("cell"):
        url.put(cell=picked)
    _behind(house, made, cells, chosen)
    _numbers(made, cells)


def _head(house: Any, made: Mapping[str, Any]) -> None:
    """Where it stands: runs done, what runs, cancel or continue."""
    total = len(made["runs"])
    share = sum(r["progress"] for r in made["runs"]) / total
    kind = {"running": "accent", "done": "good"}.get(made["state"], "neutral")
    words = [(made["state"], kind), (f"{made['done']} of {total} runs", "neutral"),
             (f"{len(made['xs'])} x {len(made['ys'])} cells, {len(made['seeds'])} seeds", "neutral")]  # fmt: skip
    words += [(f"{made['failed']} failed", "bad")] if made["failed"] else []
    words += [("shipped example", "neutral")] if made["shipped"] else []
    theme.badges(words)
    if made["state"] == "running":
        st.progress(min(share, 1.0), text=f"{share:.0%} of all steps")
        st.button("Cancel", icon=":material/stop:", on_click=house.cancel_diagram, args=(made["name"],),
                  help="What is finished stays; what runs is kept at the step it reached")  # fmt: skip
    elif made["state"] == "unfinished" and not made["shipped"] and st.button(
        f"Compute the {total - made['done']} that are missing", icon=":material/play_arrow:", type="primary"
    ):
        try:
            house.continue_diagram(made["name"])
            st.rerun()
        except PhasescopeError as error:
            widgets.error_panel(error)


def _cells(house: Any, made: Mapping[str, Any], chosen: dict[str, Any]) -> pd.DataFrame:
    pair = chosen["pair"] or ("", "")
    limits = {k: chosen[k] for k in ("accuracy", "delay", "budget") if k in chosen}
    outcomes = house.diagram_outcomes(made["name"], train=pair[0], test=pair[1], **limits)
    cells = house.diagram_cells(outcomes)
    if chosen["final"]:
        last = house.diagram_final(made["name"], chosen["final"]).groupby(["i", "j"])["value"].mean()
        cells["value"] = [last.get((c.i, c.j)) for c in cells.itertuples()]
        cells["agree"] = True  # the hatch belongs to phases
    groups = dict(list(outcomes.groupby(["i", "j"])))
    cells["words"] = [_hover(made, c, groups[c["i"], c["j"]], chosen) for c in cells.to_dict("records")]
    return cells


def _hover(made: Mapping[str, Any], cell: Mapping[Any, Any], runs: pd.DataFrame, chosen: dict[str, Any]) -> str:
    lines = [f"{made['x']} {cell['x']:g}, {made['y']} {cell['y']:g}"]
    if chosen["final"] and pd.notna(cell["value"]):
        lines.append(f"{html.escape(chosen['final'])} at the end: {cell['value']:.3g} (mean over seeds)")
    for run in runs.to_dict("records"):
        state = run["state"] + (f" {run['progress']:.0%}" if run["state"] == "running" else "")
        error = (run["delay_high"] - run["delay_low"]) / 2
        late = f", test {run['delay']:.0f} ± {error:.0f} steps after train" if pd.notna(run["delay"]) else ""
        lines.append(f"seed {run['seed']}: {run['phase'] or state}{late}")
    return "<br>".join(lines + (["click for the curves"] if made["done"] else []))


def _draw(made: Mapping[str, Any], cells: pd.DataFrame, chosen: dict[str, Any]) -> str | None:
    figure = phase.diagram(cells, x=made["xs"], y=made["ys"], x_title=made["x"], y_title=made["y"],
                           shade=chosen["shade"], value=chosen["final"].replace("_", " "))  # fmt: skip
    event = st.plotly_chart(figure, key=f"diagram:{made['name']}", on_select="rerun", selection_mode="points")
    for point in event["selection"]["points"] if event else []:
        custom = point.get("customdata")
        place = list(custom.values()) if isinstance(custom, dict) else custom
        if place:
            return f"x{int(place[0])}y{int(place[1])}"
    return None


def _legend(chosen: dict[str, Any]) -> None:
    """The phases, their colours, and the thresholds that make them."""
    limits = (f"accuracy {chosen['accuracy']:g}, delay {theme.count(int(chosen['delay']))} steps, "
              f"budget {theme.count(int(chosen['budget']))} steps")
    chips = [f'<span title="{WORDS[p]}"><span style="color:{c}">&#9632;</span> {p}</span>'
             for p, c in phase.COLOURS.items()
             if chosen["shade"] == "phase" or p in ("memorisation", "confusion")]
    chips.append("hatched: seeds disagree")
    if chosen["shade"] == "delay":
        chips.append("comprehension and grokking: coloured by the delay in steps")
    st.html('<div class="ps-row">' + "&emsp;".join(chips) + f"</div><div class='ps-text'>At {limits}.</div>")


def _behind(house: Any, made: Mapping[str, Any], cells: pd.DataFrame, chosen: dict[str, Any]) -> None:
    """The runs of the chosen cell as curves, and links to them."""
    place = url.get("cell")
    at = cells[[f"x{i}y{j}" == place for i, j in zip(cells["i"], cells["j"], strict=True)]]
    if at.empty:
        st.caption("Click a cell: the curves of its runs, seed by seed, with the thresholds.")
        return
    cell = at.iloc[0]
    runs = [r for r in made["runs"] if (r["i"], r["j"]) == (cell["i"], cell["j"])]
    st.markdown(f"**{made['x']} = {cell['x']:g}, {made['y']} = {cell['y']:g}**")
    pair = chosen["pair"] or ((chosen["final"],) if chosen["final"] else ())
    curves = house.diagram_curves(made["name"], list(pair), [r["run"] for r in runs])
    if curves.empty:
        st.caption("Nothing is logged here yet.")
        return
    figure = phase.behind(curves, runs, pair, chosen.get("accuracy"), chosen.get("budget"))
    st.plotly_chart(figure, key=f"behind:{made['name']}:{place}")
    written = [r["run"] for r in runs if r["state"] != "missing"]
    if made["shipped"]:
        st.caption("The run folders of a shipped diagram are not here, their curves are. Its command: "
                   f"`{made['command']}`")  # fmt: skip
    elif written:
        link("training", "Open these runs in Training", icon="monitoring", query={"runs": ",".join(written)})
        url_paths = {"tab": "paths", "runs": ",".join(written)}
        link("phase_diagram", "Two metrics of these runs against each other", icon="timeline", query=url_paths)


def _numbers(made: Mapping[str, Any], cells: pd.DataFrame) -> None:
    with st.expander("Numbers and provenance"):
        kept = ["x", "y", "phase", "agree", "n", "n_seeds", "delay"] + (["value"] if "value" in cells else [])
        table = cells[kept].rename(columns={"x": made["x"], "y": made["y"], "delay": "delay (steps)", "n": "n decided"})
        st.dataframe(table, hide_index=True)
        base = ", ".join(f"{k} = {v}" for k, v in made["params"].items()) or "the recipe's defaults"
        st.caption(f"Recipe {made['recipe']}; {base}; seeds {', '.join(map(str, made['seeds']))}. Phases: Liu et al. "
                   "(2022), arXiv 2205.10343, with the thresholds beside the diagram; a cell is what most seeds say, "
                   "at a tie the phase that learns less. A step is known to its logging interval (±).")  # fmt: skip
        if made["command"]:
            st.code(made["command"], language="bash", wrap_lines=True)
