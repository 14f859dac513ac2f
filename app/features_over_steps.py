"""A feature and its dictionary over the checkpoints of the run, and other checkpoints' autoencoders beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import asking, over_checkpoints, theme
from app.over_checkpoints import Over
from app.subject import Bar
from backend.contract import Weights
from backend.figures import NULL_GREY, Line, lines

PATIENCE = 3.0  # s that the rest of the page waits for an agreement


def draw(
    house: Any, bar: Bar, run: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], feature: int
) -> None:  # fmt: skip
    """Draw the section; nothing where the model has a single checkpoint."""
    if len(bar.checkpoints) < 2:
        return
    st.markdown("##### Over checkpoints", help="The same dictionary read at every checkpoint of the run; each is "
                "computed once and kept. Grey: a Gaussian of the checkpoint's covariance.")  # fmt: skip
    over = Over("feature_drift", bar.spec, bar.checkpoints, bar.subject, {"sae": run["name"]}, "sweep-features")
    sweep = over_checkpoints.kept(house, over)
    if len(sweep) > 1:
        _curves(house.sweep_table(sweep), feature, run["companion"]["step"])
    _others(house, bar, run, known, feature)


def _curves(table: pd.DataFrame, feature: int, own: int | None) -> None:
    one = table[table["feature"] == feature].sort_values("step")
    step, density, error = one["step"], one["density"], one["density_se"]
    left, right = st.columns(2, gap="medium")
    rate = [Line("Gaussian null", step, one["density_null"], colour=NULL_GREY),
            Line(f"feature {feature}", step, density, density - error, density + error)]  # fmt: skip
    fit = [Line("Gaussian null", step, one["fvu_null"], colour=NULL_GREY),
           Line("the dictionary", step, one["fvu"], one["fvu_low"], one["fvu_high"])]  # fmt: skip
    panels = ((left, rate, "density (share of tokens; band: ± s.e.)", "linear"),
              (right, fit, "variance unexplained (logarithmic; band: 95 %)", "log"))  # fmt: skip
    for place, curves, title, scale in panels:
        figure = lines(curves, x_title="step", y_title=title).update_yaxes(type=scale)
        if own is not None:
            figure.add_vline(x=own, line={"color": NULL_GREY, "dash": "dot", "width": 1})
        place.plotly_chart(figure, key=f"over-steps:{title[:7]}")
    trained = "" if own is None else f"; the dotted line is step {own}, at which the dictionary was trained"
    st.caption(f"{len(one)} checkpoints{trained}.")


# ---------------------------------------------------------------- other checkpoints' autoencoders


def comparable(run: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the other autoencoders of the same point, in the order of their checkpoints."""
    at = run["companion"]["point"], run["companion"]["layer"]
    found = [r for r in known.values() if (r["companion"]["point"], r["companion"]["layer"]) == at
             and r["name"] != run["name"]]  # fmt: skip
    return {r["name"]: r for r in sorted(found, key=lambda r: (r["companion"]["step"] or 0, r["name"]))}


def _others(
    house: Any, bar: Bar, run: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], feature: int
) -> None:  # fmt: skip
    """Pair the dictionary with those of other checkpoints (or seeds): MCC, and this feature's partner."""
    beside, rows = comparable(run, known), []
    for name, other in beside.items():
        key = asking.answer(house, "sae_agreement", bar.card, Weights(), {"a": run["name"], "b": name},
                            patience=PATIENCE)  # fmt: skip
        if key:
            rows.append(_pairing(house.table(key, arrays=False), feature, name, other["companion"]["step"]))
    if not beside:
        st.caption("Train an autoencoder of this point at another checkpoint (recipe sae, `model_step`), and the two "
                   "dictionaries are paired here.")  # fmt: skip
    if rows:
        st.dataframe(rows, hide_index=True, column_config=_column_words(feature))
    seed = run["params"].get("seed")
    if any(other["params"].get("seed") == seed for other in beside.values()):
        st.caption(f":material/info: Autoencoders of one seed ({seed}) start from the same directions: "
                   "what agrees beyond another seed's is partly that start.")  # fmt: skip


def _pairing(table: pd.DataFrame, feature: int, name: str, step: int | None) -> dict[str, Any]:
    first, mine = table.iloc[0], table[table["feature"] == feature].iloc[0]
    partner = mine["partner"]
    return {
        "autoencoder": name, "step": step,
        "MCC": f"{first['mcc']:.2f} [{first['mcc_low']:.2f}, {first['mcc_high']:.2f}]",
        "random": f"{first['mcc_null']:.2f}",
        "partner": "none" if pd.isna(partner) else f"feature {int(partner)}",
        "cosine": theme.number(mine["cosine"]) if not pd.isna(mine["cosine"]) else "–",
    }  # fmt: skip


def _column_words(feature: int) -> dict[str, Any]:
    column = st.column_config.TextColumn
    return {"MCC": column("MCC", help="mean cosine of directions paired one to one, with its 95 % interval"),
            "random": column("random", help="MCC with as many random directions"),
            "partner": column(f"partner of {feature}", help="the feature paired with this one")}  # fmt: skip
