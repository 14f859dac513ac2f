"""The panels of the Attention page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import over_checkpoints, theme, url
from app.charts import curves
from app.components.circuitsvis import LIMIT, circuitsvis
from app.components.frame import pending, visible
from app.components.heads import head_grid
from app.components.pattern import pattern
from app.components.token_strip import token_strip
from app.over_checkpoints import Over
from app.subject import Bar
from backend.contract import Weights

SCORES = {
    "induction_score": "induction",
    "previous_token_score": "previous token",
    "duplicate_token_score": "duplicate token",
}

#: px; all columns of the table are in view beside a large map
WIDTHS = {"name": 55, "induction": 95, "label": 110}


def _pick_head() -> None:
    picked = pending("heads")
    if isinstance(picked, list | tuple) and len(picked) == 2 and all(type(v) is int for v in picked):
        url.put(layer=picked[0], head=picked[1], query=None)


def grid(house: Any, key: str, bar: Bar, score_key: str | None, chosen: tuple[int, int]) -> None:
    """All heads as thumbnails; those that a score supports are bordered and named."""
    parts, pixels = house.thumbnails(key, "pattern")
    labels, hover = {}, {}
    if score_key:
        for row in house.table(score_key, arrays=False).itertuples():
            hover[(row.layer, row.head)] = (
                f"induction {theme.number(row.induction_score)}, "
                f"previous token {theme.number(row.previous_token_score)}"
            )
            if row.label not in (None, "", "none"):
                labels[(row.layer, row.head)] = str(row.label)
    head_grid(
        pixels, bar.card["n_layers"], bar.card["n_heads"], chosen, labels, key="heads", hover=hover, on_pick=_pick_head
    )
    st.caption(
        "Rows are layers, columns heads. Query runs down, key runs right; brighter is more attention. "
        "An orange frame marks a head that its score labels."
    )


def _pick_query(at_most: int) -> None:
    picked = pending("pattern")
    position = picked.get("query") if isinstance(picked, dict) else pending("strip")
    if type(position) is int and 0 <= position < at_most:
        url.put(query=position)


def large_head(house: Any, key: str, bar: Bar, layer: int, head: int) -> None:
    """One head large, and the text strip: where the chosen query looks."""
    short = len(bar.labels) <= LIMIT
    picture = (
        url.bound(
            st.segmented_control,
            f"Layer {layer}, head {head}",
            "picture",
            options=["heat map", "CircuitsVis"],
            disabled=not short,
            help=f"CircuitsVis up to {LIMIT} tokens; above, it would take many seconds.",
        )
        if short
        else "heat map"
    )
    block = house.array(key, "pattern", {"layer": layer, "head": head})
    if picture == "CircuitsVis":
        st.markdown(f"**L{layer}H{head}**")
        props = {"tokens": [visible(t) for t in bar.labels], "attention": np.round(block.astype(float), 4).tolist(),
                 "maskUpperTri": "causal" in bar.card["capabilities"], "showAxisLabels": True}  # fmt: skip
        circuitsvis("AttentionPattern", props, key="circuitsvis", height=520)
        return
    query = min(url.get("query") if url.get("query") is not None else len(bar.labels) - 1, len(bar.labels) - 1)
    n = len(bar.labels)
    pattern(
        block,
        bar.labels,
        (0.0, 1.0),
        key="pattern",
        title=f"L{layer}H{head}",
        unit="attention",
        selected=query,
        on_pick=lambda: _pick_query(n),
    )
    st.caption(f"Where position {query} (outlined) looks. Click a token or a row to choose another query.")
    token_strip(
        bar.labels,
        block[query].astype(float).tolist(),
        (0.0, 1.0),
        query,
        key="strip",
        name="attention",
        on_pick=lambda: _pick_query(n),
    )


def scores_table(house: Any, key: str, score_key: str | None) -> None:
    """Per head: entropy and previous-token on this prompt; induction on repeated random tokens with error and null."""
    by_head = house.table(key, arrays=False).groupby(["layer", "head"], as_index=False)
    shown = by_head[["entropy", "previous_token"]].mean().rename(columns={"previous_token": "previous token"})
    if score_key:
        scores = house.table(score_key, arrays=False)
        error = [
            f"{m:.2f} ± {e:.2f}" for m, e in zip(scores["induction_score"], scores["induction_score_se"], strict=True)
        ]
        columns = {"induction": error, "null": scores["induction_null"].to_numpy(), "label": scores["label"].to_numpy()}
        shown = shown.merge(scores[["layer", "head"]].assign(**columns), on=["layer", "head"])
    shown.insert(0, "name", [f"L{a}H{b}" for a, b in zip(shown["layer"], shown["head"], strict=True)])
    numbers = {c: st.column_config.NumberColumn(format="%.3f") for c in shown.select_dtypes("float")}
    numbers |= {"entropy": st.column_config.NumberColumn("entropy", format="%.3f", help="nats")}
    numbers |= {"previous token": st.column_config.NumberColumn("previous", format="%.3f", help="previous-token score")}
    numbers |= {c: st.column_config.Column(width=w) for c, w in WIDTHS.items() if c in shown}
    height = min(35 * (len(shown) + 1) + 3, 320)
    st.dataframe(shown.drop(columns=["layer", "head"]), hide_index=True, height=height, column_config=numbers)
    st.caption("Entropy and previous token: means over this prompt. Induction: on repeated random tokens, ± s.e.")


def through_training(house: Any, bar: Bar, layer: int, head: int) -> None:
    """The chosen head's scores over the run's checkpoints, with the scrubber's position."""
    st.markdown("##### Through training", help="Head scores at every checkpoint; each is computed once and kept.")
    over = Over("head_scores", bar.spec, bar.checkpoints, Weights(), place="sweep-head")
    sweep = over_checkpoints.kept(house, over)
    missing = len(bar.checkpoints) - len(sweep)
    if len(sweep) > 1:
        table = house.sweep_table(sweep)
        table = table[(table["layer"] == layer) & (table["head"] == head)]
        long = pd.concat(
            [
                table[["step"]].assign(metric="head", layer=np.nan, head=np.nan, value=table[c], run=w)
                for c, w in SCORES.items()
                if c in table
            ]
        )
        frames = {w: part.sort_values("step") for w, part in long.groupby("run")}
        figure = curves(frames, "head", "linear", bar.step)
        figure.update_layout(title=f"L{layer}H{head} over training")
        st.plotly_chart(figure.update_yaxes(title="score (attention probability)"), key="through-training")
        if missing:
            st.caption(f"{len(sweep)} of {len(bar.checkpoints)} checkpoints; lines join those that are computed")
