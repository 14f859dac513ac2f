"""The page Spectra: the Hessian's spectrum of the chosen model, block by block, and along the run's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import asking, auto_page, over_checkpoints, theme, url, widgets
from app.charts import Curve, Mark, Row, linked
from app.links import link
from app.over_checkpoints import Over
from app.subject import Bar, family_of, first_rows, subject_bar
from app.training_charts import mark_of, transitions_of
from backend.contract import Corpus, Problems, Subject
from backend.figures.spectrum import SQUARED_ERROR, UNIT, ridgeline

BLOCKS, GROUP = "hessian_blocks", "Spectra"
PATIENCE = 3.0  # s that the rest of the page waits for the spectrum
SOME = 12  # checkpoints along training, unless all are asked for
#: quantities of the table, in order, with their words
SUMS = {
    "loss": "loss", "trace": "trace", "participation_ratio": "participation ratio",
    "spectral_gap": "spectral gap", "n_params": "parameters of the block", "n_matvecs": "products made",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What the page asks of one family of models: the analysis, what it is about, units, what a sweep leaves out."""

    analysis: str
    subject: type[Subject]
    loss: str
    unit: str
    caption: str
    blocks: str
    lean: dict[str, Any]


FAMILIES = {
    url.FAMILIES[0]: Family(
        "hessian_spectrum", Corpus, "nats", UNIT, "the cross-entropy of the right answers on rows of a corpus",
        "All parameters, those of one layer, or one matrix by its name.",
        {"null": "none", "pyhessian": "no", "exact_up_to": 0}),
    url.FAMILIES[1]: Family(
        "energy_hessian", Problems, "squared error", SQUARED_ERROR, "the squared error of the energy's gradient field "
        "against the noise, at every annealing level, as in training",
        "All parameters, those of one module (fc1: its weight and bias), or one by its name.",
        {"null": "none", "pyhessian": "no", "by_module": "no", "exact_up_to": 0}),
}  # fmt: skip


def show(house: Any) -> None:
    """Draw the page."""
    st.markdown("### Spectra")
    st.caption("How is the loss curved around the weights? Both ends, density and sums of its Hessian; where in the "
               "model that curvature sits; how it moves while the model trains.")  # fmt: skip
    name = url.bound(st.segmented_control, "Family", "family", fallback=_family(house), options=list(FAMILIES),
                     label_visibility="collapsed", format_func=str.capitalize, required=True)  # fmt: skip
    family = FAMILIES[name]
    one = house.analysis(family.analysis)
    bar = subject_bar(house, family.subject, first_rows(GROUP))
    if reason := one.unfit(bar.card["capabilities"]):
        widgets.empty_state("Not possible for this model", f"{reason}. Choose another model above.")
        st.stop()
    left, right = auto_page.beside()
    with right:
        params = _params(house, one, bar, family)
    with left:
        key = asking.answer(house, one.name, bar.card, bar.subject, params, patience=PATIENCE) if params else None
        if key:
            for figure in one.figures.values():
                st.markdown(f"**{figure.title}**")
                st.plotly_chart(house.figure(key, figure.name), key=f"{key}:{figure.name}")
        else:
            widgets.empty_state("The spectrum appears here", "Its density on a logarithmic scale with the eigenvalues "
                                "at both ends, beside the same model with shuffled weights.")  # fmt: skip
    if key and params:
        _sums(house, one, key, params, family)
    if params:
        _along_training(house, bar, params, family)
        if family.subject is Corpus:
            _by_block(house, bar, params)
    _others(house, family)
    if key:
        asking.provenance(house, key)


def _family(house: Any) -> str:
    """Return the family of the model that a link names, transformers where it names none."""
    energies = {f"run:{r['name']}" for r in house.runs() if family_of(r) == "energy"}
    named = url.get("model") or ("" if url.get("energy") is None else url.get("energy"))
    return "energy models" if named in energies else "transformers"


def _params(house: Any, one: Any, bar: Bar, family: Family) -> dict[str, Any] | None:
    """Draw the block's picker and the form; the block lives in the URL."""
    blocks = house.blocks(bar.card)
    block = url.bound(st.selectbox, f"Block ({len(blocks)} to choose from)", "block", fallback="all", options=blocks,
                      help=family.blocks)  # fmt: skip
    st.caption(f"The loss is {family.caption}.{_not_of_it(bar.card)} Every ± is of the random vectors: other rows or "
               "problems give other values.")  # fmt: skip
    with st.expander("What is computed, and how"):
        params = auto_page.form(one, without=("block",))
    return params and {**params, "block": block}


def _not_of_it(card: dict[str, Any]) -> str:
    if not (card.get("training") or {}).get("params", {}).get("contrastive"):
        return ""
    return " This model was trained with a contrastive term beside it, which is no part of this loss: it has no " \
           "Gauss-Newton form here."  # fmt: skip


def _sums(house: Any, one: Any, key: str, params: dict[str, Any], family: Family) -> None:
    """Draw the table of single numbers, of the model, its null and the dense matrix."""
    table = house.table(key)
    words = {**SUMS, "loss": f"loss ({family.loss})"}
    rows = [row for quantity, said in words.items() if (row := _sum(table, quantity, said))]
    shown = pd.DataFrame(rows)
    shown = shown[[c for c in shown if (shown[c] != "").any()]].fillna("")
    st.dataframe(shown, hide_index=True)
    said = "± are standard errors, of the gap the residuals that bound its error."
    odd = table[(table["converged"] == 0) & (table["of"] == "model") & table["quantity"].isin(["high", "low"])]
    if len(odd):
        which = ", ".join(f"{q} {r}" for q, r in zip(odd["quantity"], odd["rank"], strict=True))
        said += f" Not converged within {params['products']} products: {which}; allow more, or open it in float64."
    if table["exact"].notna().any():
        ends = table[(table["of"] == "model") & table["quantity"].isin(["high", "low"])]
        off = (ends["value"] - ends["exact"]).abs().max() / ends["exact"].abs().max()
        said += f" Against the dense matrix the ends are off by at most {off:.1g} of the largest eigenvalue."
    st.caption(said)
    _beside_null(house.claims(key))
    for column in (v for v in one.values if v.name == "pyhessian"):
        st.caption(f":material/info: PyHessian: {column.help}.")


def _beside_null(claims: list[dict[str, str]]) -> None:
    """Say what these random vectors do not tell from the null, and what to raise."""
    for claim in claims:
        if claim["verdict"] != "holds":
            words = claim["criterion"].removeprefix("its ").removeprefix("the ").replace(" is not ", " against ")
            st.caption(f":material/help: {words[0].upper()}{words[1:]}: {claim['value']}.")


def _sum(table: pd.DataFrame, quantity: str, words: str) -> dict[str, Any] | None:
    found = {str(r["of"]): r for r in table[table["quantity"] == quantity].to_dict("records")}
    if "model" not in found:
        return None
    row: dict[str, Any] = {"": words}
    said = (lambda n: theme.count(int(n))) if quantity.startswith("n_") else theme.number
    for of, one in found.items():
        row[of] = said(one["value"]) + ("" if pd.isna(one["error"]) else f" ± {theme.number(one['error'])}")
    for column, name in (("exact", "dense matrix"), ("pyhessian", "PyHessian")):
        value = found["model"].get(column)
        row[name] = "" if pd.isna(value) else theme.number(value)
    return row


# ---------------------------------------------------------------- along training


def spread(steps: list[int], n: int) -> list[int]:
    """Return at most n of the checkpoints, the first and the last among them."""
    return [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(n, len(steps)))})]


def _along_training(house: Any, bar: Bar, params: dict[str, Any], family: Family) -> None:
    if len(bar.checkpoints) < 2:
        return
    left, right = st.columns(2, vertical_alignment="bottom")
    left.markdown("##### Along training", help="The same spectrum, without its null, at the run's checkpoints; each is "
                  "computed once and kept. Dashed: transitions found in the run's metrics.")  # fmt: skip
    span = _span(len(bar.checkpoints), right) if len(bar.checkpoints) > SOME else "all"
    steps = bar.checkpoints if span == "all" else spread(bar.checkpoints, SOME)
    asked = {**params, **family.lean}
    found = over_checkpoints.kept(house, Over(family.analysis, bar.spec, steps, bar.subject, asked, "spectra", params))
    if len(found) < 2:
        widgets.empty_state("Not computed yet", "The density of every checkpoint appears here as a ridge, with the "
                            "run's transitions between them.")  # fmt: skip
        return
    run = next((r for r in house.runs() if f"run:{r['name']}" == bar.spec), None)
    _curves(house.sweep_table(found), [mark_of(t) for t in transitions_of(house, run)], bar, family)


def _span(n: int, place: Any) -> str:
    words = {"some": f"{SOME} checkpoints", "all": f"all {n}"}
    with place:
        return url.bound(st.segmented_control, "Checkpoints", "span", fallback="some", options=list(words),
                         format_func=words.get, label_visibility="collapsed")  # fmt: skip


def _curves(table: pd.DataFrame, marks: list[Mark], bar: Bar, family: Family) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        drawn = ridgeline(table, [(m.step, m.label, m.colour) for m in marks], bar.step, family.unit)
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
    for figure in house.analysis(BLOCKS).figures.values():
        st.markdown(f"**{figure.title}**")
        st.plotly_chart(house.figure(key, figure.name), key=f"{key}:{figure.name}")


def _others(house: Any, family: Family) -> None:
    """Link to the other analyses of this group that this family can be asked, and to the energy's own landscapes."""
    kind = family.subject.family
    others = [a for a in house.analyses().values() if a.group == GROUP and a.subject.family == kind]
    st.markdown("##### More of this group")
    for start in range(0, len(others), 3):
        for place, one in zip(st.columns(3), others[start : start + 3], strict=False):
            with place:
                auto_page.link_to(one, url.query())
                st.caption(one.asks)
    if kind == "energy":
        link("energy_landscapes", "Energy landscapes", icon="landscape", query=url.query())
