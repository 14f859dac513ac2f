"""An experiment on an energy model through its training: over the checkpoints, or how to get some."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from app import over_checkpoints, url, widgets
from app.links import link
from app.subject import Bar
from app.training_start import preset_of
from backend.contract import Analysis


def through(house: Any, one: Analysis, bar: Bar, params: dict[str, Any], shared: bool = False) -> None:
    """Draw an experiment over the checkpoints of the run, and the drift from the first where it knows one.

    `shared`: the address holds the params of several analyses, see `auto_page.form`.
    """
    if len(bar.checkpoints) < 2:
        _without(house, bar)
        return
    if params.get("first_step") == -1:
        at, name = bar.checkpoints[0], f"{one.name}.first_step" if shared else "first_step"
        st.button(f"Measure the drift from step {at}", icon=":material/trending_up:", key="drift-from",
                  help="The kernel beside that of the first checkpoint: how far training has moved it.",
                  on_click=_set, args=(name, at))  # fmt: skip
    asked = over_checkpoints.Over(one.name, bar.spec, bar.checkpoints, bar.subject, params, f"over:{one.name}")
    over_checkpoints.section(house, replace(one, axes=tuple(a for a in one.axes if a.name != "problem")), asked,
                             bar.step, keep=lambda table: _of_level(table, one))  # fmt: skip


def _of_level(table: pd.DataFrame, one: Analysis) -> pd.DataFrame:
    """Return the rows of the page's level where the experiment has it, means over problems."""
    axes = [a.name for a in one.axes]
    if "level" in axes and (table["level"] == url.get("level")).any():
        table = table[table["level"] == url.get("level")]
    if "problem" not in axes:
        return table
    parts = ["step", *(a for a in axes if a != "problem")]
    return table.groupby(parts, as_index=False, dropna=False).mean(numeric_only=True).drop(columns="problem")


def _set(name: str, value: Any) -> None:
    url.put(params=widgets.encode({**widgets.decode(url.get("params") or ""), name: value}))


def _without(house: Any, bar: Bar) -> None:
    """Say why nothing is seen through training, and lead to the form that trains the same with checkpoints."""
    recipe = house.recipes()["energy"]
    preset = preset_of(recipe, bar.card["training"].get("params", {})) or recipe.presets[0].name
    st.markdown("##### Through training")
    widgets.empty_state("One checkpoint only", "How this changes while the model trains needs checkpoints along the "
                        f"way, and this model keeps one. Train {preset} here: it keeps up to 20, and a minute or two "
                        "of one CPU core is enough.")  # fmt: skip
    link("training", f"Train {preset}", icon="monitoring", query={"recipe": "energy", "preset": preset})
