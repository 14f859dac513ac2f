"""The cells of a phase diagram, their legend, and what lies behind the chosen one."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import theme, url
from app.components.chart_clicks import chart_clicks
from app.links import link
from backend.figures import phase

WORDS = {
    "comprehension": "train and test reach it, test less than the delay later",
    "grokking": "test reaches it at least the delay later",
    "memorisation": "only train reaches it",
    "confusion": "train does not reach it",
}
STRIPES = "repeating-linear-gradient(135deg,rgba(20,20,20,.75) 0 2px,rgba(150,150,150,.35) 2px 6px)"
SWATCH = "display:inline-block;width:1.1em;height:.9em;vertical-align:-.05em;margin-right:.3em;background:"


def show(house: Any, made: Mapping[str, Any], chosen: dict[str, Any]) -> None:
    """Draw diagram, legend, the chosen cell's curves, and the numbers."""
    cells = _cells(house, made, chosen)
    _draw(made, cells, chosen)
    if chosen["pair"] and chosen["shade"] != "final":
        _legend(cells, chosen)
    _behind(house, made, cells, chosen)
    _numbers(made, cells)


def _cells(house: Any, made: Mapping[str, Any], chosen: dict[str, Any]) -> pd.DataFrame:
    pair = chosen["pair"] or ("", "")
    limits = {k: chosen[k] for k in ("accuracy", "delay", "budget") if k in chosen}
    outcomes = house.diagram_outcomes(made["name"], train=pair[0], test=pair[1], **limits)
    outcomes["progress"] = (outcomes["progress"] * 10 + 1e-9) // 1 / 10  # in tenths: each new picture blinks
    cells = house.diagram_cells(outcomes)
    cells["value"] = np.nan
    if chosen["final"]:
        _final(cells, house.diagram_final(made["name"], chosen["final"]))
    groups = dict(list(outcomes.groupby(["i", "j"])))
    cells["seeds"] = [[_seed(r) for r in groups[c.i, c.j].to_dict("records")] for c in cells.itertuples()]
    cells["words"] = [_hover(made, c, chosen) for c in cells.to_dict("records")]
    return cells


def _final(cells: pd.DataFrame, last: pd.DataFrame) -> None:
    """Set `value`: the mean over the runs that have ended, else over those under way, which is provisional."""
    ended, all_ = (f.groupby(["i", "j"])["value"].mean() for f in (last[last["state"] == "finished"], last))
    places = list(zip(cells["i"], cells["j"], strict=True))
    cells["provisional"] = [not np.isfinite(ended.get(p, np.nan)) for p in places]
    cells["value"] = [ended[p] if np.isfinite(ended.get(p, np.nan)) else all_.get(p, np.nan) for p in places]
    cells["agree"] = True  # the hatch belongs to phases


def _hover(made: Mapping[str, Any], cell: Mapping[Any, Any], chosen: dict[str, Any]) -> str:
    lines = [f"{made['x']} {cell['x']:g}, {made['y']} {cell['y']:g}"]
    if chosen["final"] and pd.notna(cell["value"]):
        end = "so far" if cell["provisional"] else "at the end"
        lines.append(f"{html.escape(chosen['final'])} {end}: {cell['value']:.3g} (mean over seeds)")
    lines += cell["seeds"]
    return "<br>".join(lines + (["click for the curves"] if made["done"] else []))


def _seed(run: Mapping[Any, Any]) -> str:
    """What one seed says."""
    state = run["state"] + (f" at {run['progress']:.0%}" if run["state"] not in ("finished", "missing") else "")
    if not run["phase"]:
        return f"seed {run['seed']}: {state}"
    error = (run["delay_high"] - run["delay_low"]) / 2
    late = f", test {run['delay']:.0f} ± {error:.0f} steps after train" if pd.notna(run["delay"]) else ""
    return f"seed {run['seed']}: {run['phase']}{late}" + ("" if run["final"] else f", so far ({state})")


def _draw(made: Mapping[str, Any], cells: pd.DataFrame, chosen: dict[str, Any]) -> None:
    key = f"diagram:{made['name']}"
    figure = phase.diagram(cells, x=made["xs"], y=made["ys"], x_title=made["x"], y_title=made["y"],
                           shade=chosen["shade"], value=chosen["final"].replace("_", " "),
                           chosen=_place(cells))  # fmt: skip
    st.plotly_chart(figure, key=key)
    clicked = chart_clicks(key)
    if clicked:
        i, j = clicked[0]
        url.put(cell=f"x{int(i)}y{int(j)}")
        st.rerun()  # the diagram outlines it


def _place(cells: pd.DataFrame) -> tuple[int, int] | None:
    """Return (i, j) of the chosen cell, None where there is none."""
    places = {f"x{i}y{j}": (int(i), int(j)) for i, j in zip(cells["i"], cells["j"], strict=True)}
    return places.get(url.get("cell") or "")


def _legend(cells: pd.DataFrame, chosen: dict[str, Any]) -> None:
    """The phases, their colours, and the thresholds that make them."""
    limits = (f"accuracy {chosen['accuracy']:g}, delay {theme.count(int(chosen['delay']))} steps, "
              f"budget {theme.count(int(chosen['budget']))} steps")
    chips = [f'<span title="{WORDS[p]}"><span style="color:{c}">&#9632;</span> {p}</span>'
             for p, c in phase.COLOURS.items()
             if chosen["shade"] == "phase" or p in ("memorisation", "confusion")]
    if not cells["agree"].all():
        chips.append(f'<span><span style="{SWATCH}{STRIPES}"></span>seeds disagree</span>')
    if cells["provisional"].any():
        swatch = f'<span style="{SWATCH}rgba(0,158,115,{phase.LIGHTER})"></span>'
        chips.append(f"<span>{swatch}lighter: so far, no run has ended</span>")
    if chosen["shade"] == "delay":
        chips.append("<span>comprehension and grokking: coloured by the delay in steps</span>")
    st.html('<div class="ps-row">' + "&emsp;".join(chips) + f"</div><div class='ps-text'>At {limits}.</div>")


def _behind(house: Any, made: Mapping[str, Any], cells: pd.DataFrame, chosen: dict[str, Any]) -> None:
    """The runs of the chosen cell as curves, and links to them."""
    place = _place(cells)
    if place is None:
        st.caption("Click a cell: the curves of its runs, seed by seed, with the thresholds.")
        return
    cell = cells[(cells["i"] == place[0]) & (cells["j"] == place[1])].iloc[0]
    runs = [r for r in made["runs"] if (r["i"], r["j"]) == (cell["i"], cell["j"])]
    st.markdown(f"**{made['x']} = {cell['x']:g}, {made['y']} = {cell['y']:g}**")
    if chosen["pair"]:
        st.caption("; ".join(cell["seeds"]) + ".")
    pair = chosen["pair"] or ((chosen["final"],) if chosen["final"] else ())
    curves = house.diagram_curves(made["name"], list(pair), [r["run"] for r in runs])
    if curves.empty:
        st.caption("Nothing is logged here yet.")
        return
    figure = phase.behind(curves, runs, pair, chosen.get("accuracy"), chosen.get("budget"))
    st.plotly_chart(figure, key=f"behind:{made['name']}:{url.get('cell')}")
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
        kept = ["x", "y", "phase", "seeds", "agree", "n", "n_seeds", "delay"]
        kept += ["value"] if cells["value"].notna().any() else []
        table = cells[kept].rename(columns={"x": made["x"], "y": made["y"], "delay": "delay (steps)", "n": "n ended"})
        st.dataframe(table, hide_index=True)
        base = ", ".join(f"{k} = {v}" for k, v in made["params"].items()) or "the recipe's defaults"
        st.caption(f"Recipe {made['recipe']}; {base}; seeds {', '.join(map(str, made['seeds']))}. Phases: Liu et al. "
                   "(2022), arXiv 2205.10343, with the thresholds beside the diagram; a cell is what most of the runs "
                   "that have ended say, at a tie the phase that learns less. A step is known to its logging interval "
                   "(±).")  # fmt: skip
        if made["command"]:
            st.code(made["command"], language="bash", wrap_lines=True)
