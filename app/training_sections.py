"""What the Training page adds for a recipe: induction heads with ablation and control; grokking's measures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import asking, theme, url, views, widgets
from app.charts import Curve, Heat, Row, linked
from app.training_data import families, is_control, nearest, on_grid, strongest, words
from app.training_phases import RULE, phases, shade
from backend.contract import Weights
from backend.figures.compare import share_limits

INDUCTION = "induction_score"
#: the chart of grokking's losses: solid as trained and tested, dashed as the Fourier circuit alone has it
LOSSES = {"train_loss": "solid", "test_loss": "solid", "restricted_loss": "dash", "excluded_loss": "dash"}
ACCURACIES = ("train_acc", "test_acc", "train_accuracy", "test_accuracy")


def induction(house: Any, run: Mapping[str, Any], step: int) -> None:
    """Prefix matching through training beside the one-layer control, and what ablating the heads costs."""
    st.markdown("##### Induction heads", help="Olsson et al. (2022): heads that attend to the token after an earlier "
                "occurrence of the present one.")  # fmt: skip
    everyone = {r["name"]: r for r in house.runs()}
    control = _control(run, everyone)
    st.plotly_chart(linked(_trajectory(house, run, control), url.get("axis"), step=step), key="section:trajectory")
    st.caption("Prefix matching: mean attention to the token after the earlier occurrence, strongest head in colour"
               + (f"; grey: {control['name']}, one layer." if control else "."))  # fmt: skip
    _ablation(house, run, step, control)


def _control(run: Mapping[str, Any], runs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the one-layer run to stand beside: of the same seed where there is one, a shipped one else."""
    found = [r for r in runs.values() if is_control(r) and r["checkpoints"] and r["name"] != run["name"]]
    seed = (run.get("params") or {}).get("seed")
    return min(found, key=lambda r: ((r.get("params") or {}).get("seed") != seed, not r.get("shipped")), default=None)


def _trajectory(house: Any, run: Mapping[str, Any], control: Mapping[str, Any] | None) -> list[Row]:
    said = words(house.metric_words(), INDUCTION)
    row, acc = Row(said.title, said.unit, legend=True), Row("", "")
    for metric, place in ((INDUCTION, row), ("second_copy_accuracy", acc)):
        told = words(house.metric_words(), metric)
        place.title, place.unit = told.title, told.unit
        for one, colour in ((control, theme.NULL), (run, theme.LINES[0])):
            frame = house.metrics(one["name"], [metric], points=600) if one else pd.DataFrame()
            if len(frame):
                line = strongest(frame)
                place.curves.append(Curve(one["name"], colour, line["step"], line["value"], one["name"]))  # type: ignore[index]
    return [r for r in (row, acc) if r.curves]


def _ablation(house: Any, run: Mapping[str, Any], step: int, control: Mapping[str, Any] | None) -> None:
    if "induction_ablation" not in house.analyses():
        return
    st.markdown("##### What the heads carry")
    sides = [(run, step, "")] + ([(control, nearest(control["checkpoints"], step), ": control, one layer")]
                                 if control else [])  # fmt: skip
    places = st.columns(2, gap="medium")
    keys = []
    for (one, at, said), place in zip(sides, places, strict=False):
        with place:
            st.markdown(f"**{one['name']}**, step {theme.count(at)}{said}")
            keys.append(_ablated(house, one, at))
    figures = house.analysis("induction_ablation").figures
    drawn = [[house.figure(key, name) if key else None for key in keys] for name in figures]
    for name, pair in zip(figures, drawn, strict=True):
        share_limits([f for f in pair if f is not None])
        for figure, (one, _, _), place in zip(pair, sides, places, strict=False):
            if figure is not None:
                place.plotly_chart(figure, key=f"section:{name}:{one['name']}")


def _ablated(house: Any, run: Mapping[str, Any], step: int) -> str | None:
    """Say in words what ablation showed at this step and return the key of its table."""
    card = views.opened(house, run["name"], step)
    if card is None:
        return None
    reason = house.analysis("induction_ablation").unfit(card["capabilities"])
    if reason:
        widgets.empty_state("Not possible for this model", f"{reason}.")
        return None
    key = asking.answer(house, "induction_ablation", card, Weights(), patience=views.PATIENCE)
    if key:
        st.caption(ablation_words(house.table(key, arrays=False), card["n_layers"], card["n_heads"]))
    return key


def ablation_words(table: pd.DataFrame, n_layers: int, n_heads: int) -> str:
    """Say what the ablation measured, with its numbers: intact, suspects, as many others, one at a time."""
    rows = table.set_index("condition")
    acc, drop, n, said = (rows[c].to_dict() for c in ("second_copy_accuracy", "drop", "n_heads", "heads"))
    intact = f"Accuracy on the second copy: {acc['intact']:.2f} intact"
    if "suspects" not in acc:
        return f"{intact}. Nothing to ablate: {said['intact']}."
    found = [f"{intact}; {acc['suspects']:.2f} without the {_heads(n['suspects'])} of high induction score"]
    if "random" in acc:
        found[0] += f"; {acc['random']:.2f} without {_others(said, n['random'], n_layers, n_heads)}"
        error = math.hypot(*(np.nan_to_num(rows["second_copy_accuracy_se"][c]) for c in ("suspects", "random")))
        gap = drop["suspects"] - drop["random"]
        found.append("The suspects carry more of it than those" if gap > 2 * error else
                     "Those carry more of it than the suspects" if gap < -2 * error else
                     "The two cannot be told apart")
    if "one suspect" in acc:
        found.append(f"One head alone: a suspect costs {drop['one suspect']:.2f} in the mean"
                     + (f", another head {drop['one other']:.2f} ({said['one other']})" if "one other" in acc else ""))
    return ". ".join(found) + "."


def _heads(n: Any) -> str:
    return f"{int(n)} head" + ("" if int(n) == 1 else "s")


def _others(said: Mapping[Any, str], n: Any, n_layers: int, n_heads: int) -> str:
    """Name the arm beside the suspects: which heads where there was one choice only, else of how many it was drawn."""
    suspects = {(int(a), int(b)) for a, b in re.findall(r"L(\d+)H(\d+)", said["intact"])}
    others = [(a, b) for a in range(n_layers) for b in range(n_heads) if (a, b) not in suspects]
    if int(n) < len(others):
        return f"{int(n)} of the {len(others)} other heads (mean over choices)"
    layers = sorted({a for a, _ in others})
    return f"the {len(others)} other heads" + (f", all of layer {layers[0]}" if len(layers) == 1 < n_layers else "")


# ---------------------------------------------------------------- grokking


def grokking(house: Any, run: Mapping[str, Any], step: int) -> None:
    """Accuracies, the four losses on one chart, key frequencies through time, and W_E's spectrum at the step."""
    st.markdown("##### Grokking", help="Nanda et al. (2023): the restricted loss falls long before the test loss does.")
    left, right = st.columns(2, gap="medium")
    with left:
        rows = grokking_rows(house, run["name"])
        if rows:
            drawn = linked(rows, url.get("axis"), step=step)
            st.plotly_chart(shade(drawn, phases(house.metrics(run["name"], list(LOSSES)))), key="section:grokking")
            st.caption("Restricted loss: with the key frequencies alone, on test data. Excluded loss: without them, on "
                       f"training data. {RULE}")  # fmt: skip
        else:
            widgets.empty_state("No measures logged yet", "They come with the first reading of the monitors.")
    with right:
        _spectrum(house, run, step)


def grokking_rows(house: Any, run: str) -> list[Row]:
    """Return the rows: accuracy, losses (log), and the explained variance by frequency."""
    there, known = set(house.metric_names(run)), house.metric_words()
    family = families(there).get("fve", {})
    wanted = [m for m in (*ACCURACIES, *LOSSES, *family.values()) if m in there]
    frame = house.metrics(run, wanted, points=400) if wanted else pd.DataFrame({"metric": []})
    rows = [_together("Accuracy", frame, dict.fromkeys(ACCURACIES, "solid"), known, run),
            _together("Loss (nats)", frame, LOSSES, known, run)]  # fmt: skip
    rows[1].log_y = True
    if family:
        steps, values = on_grid([frame[frame["metric"] == m] for m in family.values()], 240)
        rows.append(Row("Explained variance by frequency", heat=Heat(steps, list(family), values)))
    return [r for r in rows if r.curves or r.heat]


def _together(title: str, frame: pd.DataFrame, metrics: Mapping[str, str], known: Mapping[str, Any], run: str) -> Row:
    row = Row(title, legend=True)
    for i, (name, dash) in enumerate(metrics.items()):
        line = frame[frame["metric"] == name]
        if len(line):
            said, colour = words(known, name).title, theme.LINES[i]
            row.curves.append(Curve(said, colour, line["step"], line["value"], run, dash=dash))
    return row


def _spectrum(house: Any, run: Mapping[str, Any], step: int) -> None:
    st.markdown(f"**Fourier spectrum** · step {step}")
    if "fourier_spectrum" not in house.analyses():
        return
    card = views.opened(house, run["name"], step)
    key = asking.answer(house, "fourier_spectrum", card, Weights(), patience=views.PATIENCE) if card else None
    if key:
        for name, figure in list(house.analysis("fourier_spectrum").figures.items())[:2]:
            st.markdown(figure.title)
            st.plotly_chart(house.figure(key, name), key=f"section:spectrum:{name}")
