"""One feature as a card: how often and how strongly, in which contexts, what it writes, what is lost without it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import asking, theme, url, widgets
from app.links import link
from app.subject import Bar

RESIDUAL = ("resid_pre", "resid_post", "attn_out", "mlp_out")  # points at which Intervene can add a direction


def draw(house: Any, bar: Bar, run: Mapping[str, Any], features: pd.DataFrame, feature: int) -> None:
    """Draw the card of a feature of the autoencoder `run`."""
    with st.container(border=True, key="feature-card"):
        _head(features, feature)
        _ablation(house, bar, run["name"], feature)
        key = asking.answer(house, "feature_card", bar.card, bar.subject, {"sae": run["name"], "feature": feature})
        if key:
            _pictures(house, key)
        _steer(run, feature, float(features["mean_active"].to_numpy()[feature]))


def _head(features: pd.DataFrame, feature: int) -> None:
    row = features.loc[feature]
    left, right = st.columns([9, 3], vertical_alignment="center")
    left.markdown(f"#### Feature {feature}")
    with right:
        url.bound(st.number_input, "Feature", "feature", fallback=feature, min_value=0, max_value=len(features) - 1,
                  step=1, label_visibility="collapsed")  # fmt: skip
    if row["density"] == 0:
        theme.badges([("never active on this corpus", "warn")])
        return
    theme.badges([
        (f"active on {100 * row['density']:.3g} ± {theme.number(100 * row['density_se'])} % of tokens", "accent"),
        (f"mean {theme.number(row['mean_active'])} where active", "neutral"),
        (f"max {theme.number(row['max'])}", "neutral"),
        (f"nearest: feature {row['nearest']:.0f}, cosine {row['nearest_cosine']:.2f}", "neutral"),
    ])  # fmt: skip


def _ablation(house: Any, bar: Bar, run: str, feature: int) -> None:
    """What the model loses without it; measured when asked for, then kept."""
    asked = ("feature_ablation", bar.card, bar.subject, {"sae": run, "feature": feature})
    request = house.request(*asked)
    if not house.has(request.key):
        wanted = house.last_job(request.key) or widgets.pressed(
            st.button, "Measure what is lost without it", f"ablate:{feature}", icon=":material/content_cut:",
            help="Takes what it writes out on every token, beside features of like density and random directions.",
        )  # fmt: skip
        if wanted and asking.answer(house, *asked, start=True, patience=3.0):
            st.rerun()
        return
    st.caption(":material/content_cut: " + ablation_words(house.table(request.key)))


def ablation_words(table: pd.DataFrame) -> str:
    """Say the effect of taking a feature out, beside its two controls."""
    rows = table.set_index("condition")
    chosen = rows.loc["chosen"]
    said: list[str] = []
    controls = {"random features": "features of like density", "random directions": "as much along random directions"}
    for value, name in (("loss_change", "loss"), ("kl", "KL of the predictions")):
        if not pd.isna(chosen[value]):
            beside = [f"{w} {theme.number(rows.loc[c, value])}" for c, w in controls.items() if c in rows.index]
            low, high = (theme.number(chosen[f"{value}_{end}"]) for end in ("low", "high"))
            said.append(f"{name} {theme.number(chosen[value])} nats (95 %: {low} to {high}; {', '.join(beside)})")
    return f"Taken out on every token: {'; '.join(said)}."


def _pictures(house: Any, key: str) -> None:
    st.markdown("##### In context", help="Its largest activations; q90 and q50: active tokens at these quantiles; "
                "random: any token. Top examples alone mislead.")  # fmt: skip
    st.plotly_chart(house.figure(key, "contexts"), key=f"{key}:contexts")
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("##### What it writes", help="Its direction read through W_U. Grey: a random direction's list.")
        st.plotly_chart(house.figure(key, "logits"), key=f"{key}:logits")
    with right:
        st.markdown("##### Nearest features", help="Cosine of directions. Grey: those nearest to a random direction.")
        st.plotly_chart(house.figure(key, "near"), key=f"{key}:near")


def line_of(run: Mapping[str, Any], feature: int, amount: float) -> str:
    """Return the intervention that adds the feature's direction; "" at a point where no direction can be added."""
    made = run["companion"]
    there = made["point"] in RESIDUAL and not math.isnan(amount)
    return f"add L{made['layer']}.{made['point']} {amount:.3g} feature {run['name']} {feature}" if there else ""


def _steer(run: Mapping[str, Any], feature: int, usual: float) -> None:
    """A link that adds this feature's direction, as strongly as it usually is."""
    line = line_of(run, feature, usual)
    if line:
        link("intervene", label="Steer with it on Intervene", icon="tune", query=url.query(edits=line))
