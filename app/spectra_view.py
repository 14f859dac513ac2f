"""The page Spectra: the Hessian's spectrum of the chosen model, block by block, and along the run's training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import asking, auto_page, over_checkpoints, theme, url, widgets
from app.charts import Curve, Mark, Row, linked
from app.over_checkpoints import Over
from app.subject import Bar, subject_bar
from app.training_charts import mark_of, transitions_of
from backend.analyses._curving import blocks_of
from backend.analyses.hessian_spectrum import FAILURES, INSTALL
from backend.contract import Corpus
from backend.figures.spectrum import ridgeline

NAME, BLOCKS, GROUP = "hessian_spectrum", "hessian_blocks", "Spectra"
PATIENCE = 3.0  # s that the rest of the page waits for the spectrum
ROWS = 16  # of the corpus on a first visit: a spectrum takes some hundred products over them
SOME = 12  # checkpoints along training, unless all are asked for
#: quantities of the table, in order, with their words
SUMS = {
    "loss": "loss (nats)", "trace": "trace", "participation_ratio": "participation ratio",
    "spectral_gap": "spectral gap", "n_params": "parameters of the block", "n_matvecs": "products made",
}  # fmt: skip


def show(house: Any) -> None:
    """Draw the page."""
    one = house.analysis(NAME)
    st.markdown("### Spectra")
    st.caption("How is the loss curved around the weights? Both ends, density and sums of its Hessian; where in the "
               "model that curvature sits; how it moves while the model trains.")  # fmt: skip
    bar = subject_bar(house, Corpus, ROWS)
    if reason := one.unfit(bar.card["capabilities"]):
        widgets.empty_state("Not possible for this model", f"{reason}. Choose another model above.")
        st.stop()
    left, right = st.columns([3, 1], gap="medium")
    with right:
        params = _params(one, bar)
    with left:
        key = asking.answer(house, NAME, bar.card, bar.subject, params, patience=PATIENCE) if params else None
        if key:
            for figure in ("density", "both_ends"):
                st.plotly_chart(house.figure(key, figure), key=f"{key}:{figure}")
        else:
            widgets.empty_state("The spectrum appears here", "Its density on a logarithmic scale with the eigenvalues "
                                "at both ends, beside the same model with shuffled weights.")  # fmt: skip
    if key and params:
        _sums(house.table(key), params)
    if params:
        _along_training(house, bar, params)
        _by_block(house, bar, params)
    _others(house)
    if key:
        asking.provenance(house, key)


def _params(one: Any, bar: Bar) -> dict[str, Any] | None:
    """Draw the block's picker and the form; the block lives in the URL."""
    blocks = blocks_of(list(bar.card.get("parameters") or {}))
    words = "All parameters, those of one layer, or one matrix by its name."
    block = url.bound(st.selectbox, f"Block ({len(blocks)} to choose from)", "block", fallback="all", options=blocks,
                      help=words)  # fmt: skip
    with st.expander("What is computed, and how"):
        params = auto_page.form(one, without=("block",))
    return params and {**params, "block": block}


def _sums(table: pd.DataFrame, params: dict[str, Any]) -> None:
    """Draw the table of single numbers, of the model, its null and the dense matrix."""
    rows = [row for quantity, words in SUMS.items() if (row := _sum(table, quantity, words))]
    shown = pd.DataFrame(rows)
    shown = shown[[c for c in shown if (shown[c] != "").any()]].fillna("")
    st.dataframe(shown, hide_index=True)
    said = "± are standard errors, of the gap the residuals that bound its error."
    odd = table[(table["converged"] == 0) & (table["of"] == "model")]
    if len(odd):
        which = ", ".join(f"{q} {r}" for q, r in zip(odd["quantity"], odd["rank"], strict=True))
        said += f" Not converged within {params['products']} products: {which}; allow more, or open it in float64."
    if table["exact"].notna().any():
        ends = table[(table["of"] == "model") & table["quantity"].isin(["high", "low"])]
        off = (ends["value"] - ends["exact"]).abs().max() / ends["exact"].abs().max()
        said += f" Against the dense matrix the ends are off by at most {off:.1g} of the largest eigenvalue."
    st.caption(said)
    if table["pyhessian"].notna().any():
        st.caption(f":material/info: PyHessian 0.1 on torch 2: {FAILURES}.")
    else:
        st.caption(f"PyHessian 0.1 stands beside these where it is installed (`{INSTALL}`) and asked for: a column of "
                   "comparison with known failures.")  # fmt: skip


def _sum(table: pd.DataFrame, quantity: str, words: str) -> dict[str, Any] | None:
    found = {str(r["of"]): r for r in table[table["quantity"] == quantity].to_dict("records")}
    if "model" not in found:
        return None
    row: dict[str, Any] = {"": words}
    said = (lambda n: theme.count(int(n))) if quantity.startswith("n_") else theme.number
    for of, one in found.items():
        row[of] = said(one["value"]) + ("" if pd.isna(one["error"]) else f" ± {theme.number(one['error'])}")
    for column, name in (("exact", "dense matrix"), ("pyhessian", "PyHessian")):
        value = found["model"][column]
        row[name] = "" if pd.isna(value) else theme.number(value)
    return row


# ---------------------------------------------------------------- along training


def spread(steps: list[int], n: int) -> list[int]:
    """Return at most n of the checkpoints, the first and the last among them."""
    return [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(n, len(steps)))})]


def _along_training(house: Any, bar: Bar, params: dict[str, Any]) -> None:
    if len(bar.checkpoints) < 2:
        return
    left, right = st.columns(2, vertical_alignment="bottom")
    left.markdown("##### Along training", help="The same spectrum, without its null, at the run's checkpoints; each is "
                  "computed once and kept. Dashed: transitions found in the run's metrics.")  # fmt: skip
    words = {"some": f"{min(SOME, len(bar.checkpoints))} checkpoints", "all": f"all {len(bar.checkpoints)}"}
    with right:
        span = url.bound(st.segmented_control, "Checkpoints", "span", fallback="some", options=list(words),
                         format_func=words.get, label_visibility="collapsed")  # fmt: skip
    steps = bar.checkpoints if span == "all" else spread(bar.checkpoints, SOME)
    asked = {**params, "null": "none", "pyhessian": "no", "exact_up_to": 0}
    found = over_checkpoints.kept(house, Over(NAME, bar.spec, steps, bar.subject, asked, "spectra"))
    if len(found) < 2:
        widgets.empty_state("Not computed yet", "The density of every checkpoint appears here as a ridge, with the "
                            "run's transitions between them.")  # fmt: skip
        return
    run = next((r for r in house.runs() if f"run:{r['name']}" == bar.spec), None)
    _curves(house.sweep_table(found), [mark_of(t) for t in transitions_of(house, run)], bar)


def _curves(table: pd.DataFrame, marks: list[Mark], bar: Bar) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        drawn = ridgeline(table, [(m.step, m.label, m.colour) for m in marks], bar.step)
        st.plotly_chart(drawn, key="spectra:ridges")
    with right:
        st.plotly_chart(linked(rows_of(table), "linear", marks, bar.step), key="spectra:ends")
        st.caption("Bands: ± residual or standard error.")


def rows_of(table: pd.DataFrame) -> list[Row]:
    """Return the charts over steps: both outermost eigenvalues, the trace, the participation ratio."""
    blue, orange = theme.LINES[:2]
    ends = [_curve(table, "high", "largest", blue), _curve(table, "low", "smallest", orange)]
    return [Row("Largest and smallest eigenvalue", curves=ends, legend=True),
            Row("Trace", curves=[_curve(table, "trace", "trace", blue)]),
            Row("Participation ratio", curves=[_curve(table, "participation_ratio", "ratio", blue)])]  # fmt: skip


def _curve(table: pd.DataFrame, quantity: str, name: str, colour: str) -> Curve:
    rows = table[(table["of"] == "model") & (table["quantity"] == quantity) & (table["rank"] == 0)].sort_values("step")
    value, error = rows["value"].astype(float), rows["error"].astype(float)
    return Curve(name, colour, rows["step"], value, low=value - error, high=value + error)


# ---------------------------------------------------------------- by block, and what else there is


def _by_block(house: Any, bar: Bar, params: dict[str, Any]) -> None:
    st.markdown("##### By block", help="Trace and outermost eigenvalues of the diagonal block of every matrix: the "
                "traces sum to that of the whole.")  # fmt: skip
    asked = {"matrix": params["matrix"], "seed": params["seed"]}
    key = asking.answer(house, BLOCKS, bar.card, bar.subject, asked, start=False)
    if not key:
        return
    for figure in ("traces", "largest"):
        st.plotly_chart(house.figure(key, figure), key=f"{key}:{figure}")


def _others(house: Any) -> None:
    """Link to the other analyses of this group, whatever they are."""
    others = [a for a in house.analyses().values() if a.group == GROUP]
    st.markdown("##### More of this group")
    for start in range(0, len(others), 3):
        for place, one in zip(st.columns(3), others[start : start + 3], strict=False):
            with place:
                auto_page.link_to(one, url.query())
                st.caption(one.asks)
