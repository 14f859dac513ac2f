"""The page Features of an SAE: which autoencoder, its features in a table, the chosen one as a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import asking, feature_card, features_over_steps, url, widgets
from app.links import link
from app.subject import Bar, begin
from backend.contract import canonical_hash
from backend.errors import PhasescopeError

TOKENS = 5  # of each list in the table
TABLE_HEIGHT = 300  # px


def show(house: Any) -> None:
    """Draw the page."""
    bar = begin(house, "sae_features", "What a sparse autoencoder found at one point of the model: pick a feature in "
                "the table and read its card.")  # fmt: skip
    run = autoencoder(house, bar)
    key = asking.answer(house, "sae_features", bar.card, bar.subject, {"sae": run["name"]})
    if not key:
        st.stop()
    features = house.table(key).set_index("feature")
    feature = _table(house, bar, features, key)
    feature_card.draw(house, bar, run, features, feature)
    features_over_steps.draw(house, bar, run, autoencoders(house, bar.spec), feature)
    with st.expander("The whole dictionary: densities and largest activations"):
        for name in ("densities", "cards"):
            st.plotly_chart(house.figure(key, name), key=f"{key}:{name}")
    asking.provenance(house, key)


# ---------------------------------------------------------------- which autoencoder


def autoencoders(house: Any, spec: str) -> dict[str, dict[str, Any]]:
    """Return {run: its record} of the autoencoders that were trained, to the end, for checkpoints of this model."""
    made = {r["name"]: r for r in house.runs() if (r.get("companion") or {}).get("kind") == "sae"}
    return {
        n: r for n, r in made.items() if r["companion"]["spec"] == spec and r["params"]["steps"] in r["checkpoints"]
    }


def autoencoder(house: Any, bar: Bar) -> dict[str, Any]:
    """Draw the picker and return the run's record; stops the page where there is none for these very weights."""
    known = autoencoders(house, bar.spec)
    asked = url.get("sae") or ""
    if "/" in asked:
        known = {asked: _foreign(house, asked), **known}
    if not known:
        _none(house)
    here = [n for n, r in known.items() if r["companion"]["fingerprint"] in (bar.card["fingerprint"], "")]
    first = (here or list(known))[0]
    name = url.bound(st.selectbox, "Autoencoder", "sae", fallback=first, options=[*known], accept_new_options=True,
                     format_func=lambda n: words(known[n]) if n in known else n,
                     also=lambda n: {"step": _step_of(known, n), "feature": None},
                     help="One trained here, or type the path of a folder in the SAELens layout (cfg.json beside "
                     "sae_weights.safetensors).")  # fmt: skip
    if name not in here:
        _elsewhere(known[name], bar)
    return known[name]


def _step_of(known: Mapping[str, Mapping[str, Any]], name: str) -> int | None:
    """The checkpoint that a choice moves to: the one that it was trained for, else where one stands."""
    step = known[name]["companion"]["step"] if name in known else None
    return url.get("step") if step is None else step


def _foreign(house: Any, path: str) -> dict[str, Any]:
    """Return the record of a SAELens folder; stops the page with the reason, and a way back, where it is none."""
    try:
        return house.companion(path)
    except PhasescopeError as error:
        widgets.error_panel(error)
        st.button("Back to the autoencoders trained here", on_click=lambda: url.put(sae=None))
        st.stop()
        raise


def _none(house: Any) -> None:
    todo = "Train one on the Training page: recipe Sparse autoencoder, with this model as its spec."
    widgets.empty_state("No autoencoder for this model yet", f"{todo} A minute is enough for the shipped runs.")
    link("training", label="Train an autoencoder", icon="monitoring", query={"recipe": "sae"})
    with st.popover("Open one of others", icon=":material/folder_open:"):
        path = st.text_input("Folder in the SAELens layout", key="foreign-sae", placeholder="/shared/saes/layer-8")
        if path.strip() and "/" in path:
            url.put(sae=path.strip())
            st.rerun()
    st.stop()


def words(run: Mapping[str, Any]) -> str:
    """Return an autoencoder in a line: name, point, size, step of its model."""
    made = run["companion"]
    step = f" · step {made['step']}" if made.get("step") is not None else ""
    null = " · trained on a Gaussian (null)" if made.get("surrogate") else ""
    return f"{run['name']} · {made['point']} of layer {made['layer']} · {made['d_sae']} features{step}{null}"


def _elsewhere(run: Mapping[str, Any], bar: Bar) -> None:
    """The autoencoder belongs to another checkpoint, or to weights that are gone: say so and offer the way."""
    step = run["companion"]["step"]
    there = step in bar.checkpoints and step != bar.step
    todo = f"Go to step {step} to read its features." if there else "Train it again for these weights."
    found = f"{run['name']} was trained for step {step}" if there else f"{run['name']} was trained for other weights"
    if widgets.empty_state(found, todo, f"Go to step {step}" if there else None, key="go-to-step"):
        url.put(step=step)
        st.rerun()
    st.stop()


# ---------------------------------------------------------------- the table


def _table(house: Any, bar: Bar, features: pd.DataFrame, key: str) -> int:
    """Draw the features that fit the search; return the one that the address or a click names."""
    rows = _rows(house, bar, features)
    with st.container(key="feature-search"):
        left, right, _ = st.columns([4, 3, 5], vertical_alignment="bottom")
    text = left.text_input("Find a token", key="find-token", placeholder="in the top, raised or lowered tokens")
    dead = right.toggle(f"Never active too ({int((rows['density'] == 0).sum())})", key="dead-too")
    shown = rows if dead else rows[rows["density"] > 0]
    if text.strip():
        texts = shown[["top tokens", "raises", "lowers"]].agg(" ".join, axis=1)
        shown = shown[texts.str.contains(text.strip(), case=False, regex=False)]
    now = url.get("feature")
    now = now if now in features.index else int(features["density"].to_numpy().argmax())
    picked = st.dataframe(
        shown, hide_index=True, height=min(TABLE_HEIGHT, 38 + 35 * max(len(shown), 1)), column_config=_columns(),
        # another feature, other rows: another table, so that an old selection never chooses again
        key=f"features:{canonical_hash([key, now, text, dead])}", on_select="rerun", selection_mode="single-row",
    )  # fmt: skip
    st.caption(f"{len(shown)} of {len(features)} features. A click on the left edge of a row opens its card.")
    chosen = picked["selection"]["rows"]
    if chosen and int(shown.iloc[chosen[0]]["feature"]) != now:
        url.put(feature=int(shown.iloc[chosen[0]]["feature"]))
        st.rerun()
    return now


def _rows(house: Any, bar: Bar, features: pd.DataFrame) -> pd.DataFrame:
    """Return what the table shows, the most active first."""
    said = house.tokenizer(bar.card)

    def tokens(ids: str) -> str:
        return "  ".join(said.label(int(t)) for t in dict.fromkeys(str(ids or "").split()[:TOKENS]))

    frame = features.reset_index()[["feature", "density", "max", "nearest_cosine"]].copy()
    for column, name in (("tops", "top tokens"), ("raises", "raises"), ("lowers", "lowers")):
        frame[name] = [tokens(ids) for ids in features[column]]
    return frame.sort_values("density", ascending=False, kind="stable", ignore_index=True)


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "feature": column.NumberColumn("feature", width=70, format="%d"),
        "density": column.NumberColumn("density", width=80, format="%.3f", help="share of tokens with activity"),
        "max": column.NumberColumn("max", width=70, format="%.2f", help="largest activation"),
        "nearest_cosine": column.NumberColumn("nearest", width=75, format="%.2f", help="cosine with the closest other"),
        "top tokens": column.TextColumn("top tokens", help="tokens of its largest activations, each once"),
        "raises": column.TextColumn("raises", help="tokens that its direction raises most"),
        "lowers": column.TextColumn("lowers", help="tokens that its direction lowers most"),
    }  # fmt: skip
