"""How many directions do activations use at each layer, and does one direction or coordinate rule them?

At the end of each layer (resid_post) and at what its attention and MLP write (attn_out, mlp_out), over all tokens of
the corpus: the eigenvalues of their covariance. `participation_ratio` = (tr C)^2 / tr C^2, numerator and denominator
each without bias from the number of tokens (the plain ratio cannot exceed it); `rankme` = exp(entropy of the square
roots of the eigenvalues, as shares); `top_share` the largest eigenvalue's share. Each with its standard error over
rows: the jackknife that leaves out one of at most 10 groups of rows. Tokens of a row are no independent draws, which
the error knows and the correction does not: with few rows the ratio is too high by what it is with more.

The null: every coordinate shuffled over tokens by itself, so only variances are left (at most 8,192 tokens, `draws`
times). A `rogue` coordinate holds more than `rogue_times` an equal share of the mean square; `ratio_without` is the
participation ratio without those. That is about the model's own basis, all else is not.
Cost: a forward over the corpus per layer; an eigenproblem of size d_model per group and draw.
Source: Gao et al. (2017), A theory of multineuronal dimensionality; Srivastava (2005), lemma 2.1 (correction); Garrido
et al. (2023), RankMe (there not centred); Timkey and van Schijndel (2021), All bark and no bite (rogue dimensions).
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from backend.analyses._activation_spectra import (
    GROUPS,
    VALUES,
    SpectraOfActivationsParams,
    eigenvalues_of,
    in_words,
    measured,
    operations,
    over,
)
from backend.analyses._units import batches
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Progress, Rows, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, bars


@analysis(
    version=1, group="Spectra",
    title="Activation spectra", asks="How many directions do activations use at each layer, and does one rule them?",
    subject=Corpus, params=SpectraOfActivationsParams,
    axes=[Axis("layer", "layer, 0-based"), Axis("point", "resid_post, attn_out or mlp_out", kind="str")],
    values=VALUES,
)  # fmt: skip
def activation_spectra(
    model: Model, subject: Rows, params: SpectraOfActivationsParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (layer, point)."""
    if subject.tokens.size < 4:
        raise BadInput("Activation spectra", f"{subject.tokens.size} tokens, at least 4 are needed", "Use more rows")
    rows = []
    for layer in range(model.card.n_layers):
        progress(layer / model.card.n_layers, f"Layer {layer}")
        for point, x in _read(model, subject, layer).items():
            rows.append({"layer": layer, "point": point, **measured(x, params)})
    declared: Any = activation_spectra
    return pd.DataFrame(rows)[[c.name for c in (*declared.axes, *declared.values)]]


def points_of(card: ModelCard) -> list[str]:
    """Return the points that are read in every layer."""
    return ["resid_post", "attn_out", *(["mlp_out"] if card.d_mlp else [])]


def _read(model: Model, subject: Rows, layer: int) -> dict[str, Any]:
    """Return {point: activations [row, pos, d_model]} of one layer on the CPU."""
    import torch

    found: dict[str, list] = {point: [] for point in points_of(model.card)}
    for _, tokens in batches(model, subject, 3 * model.card.d_model):
        for (point, _), x in model.capture(tokens, list(found), [layer]).items():
            found[point].append(x.cpu())
    return {point: torch.cat(parts) for point, parts in found.items()}


@activation_spectra.costs
def work(card: ModelCard, subject: Corpus, params: SpectraOfActivationsParams) -> Work:
    """The corpus once per layer; a covariance and its eigenvalues (about 4 d^3) for all, every group and every draw."""
    plan, d, tokens = Plan(card), card.d_model, subject.rows * min(subject.length, card.n_ctx)
    plan.corpus(subject, 3 * d, n=card.n_layers)
    points, groups = len(points_of(card)), min(GROUPS, subject.rows)
    each = operations(d, tokens, groups, params.draws)
    held = tokens * d * (4 * points + 8 * 4) + 8 * 4 * d**2
    return plan.total(held, each * points * card.n_layers, FEWER_ROWS)


# ---------------------------------------------------------------- figures


@activation_spectra.figure("Participation ratio")
def ratio(table: pd.DataFrame, view: View) -> Any:
    """The number of directions in use, by layer; dotted: every coordinate shuffled by itself."""
    return over(table, "layer", "participation_ratio", "participation ratio", _name)


@activation_spectra.figure("RankMe")
def rank(table: pd.DataFrame, view: View) -> Any:
    """The effective rank, which weighs small directions more, by layer; dotted: shuffled."""
    return over(table, "layer", "rankme", "RankMe", _name)


@activation_spectra.figure("Share of the largest eigenvalue")
def top(table: pd.DataFrame, view: View) -> Any:
    """How much of the variance lies along one direction, by layer; dotted: shuffled."""
    return over(table, "layer", "top_share", "share of the variance, 0 to 1", _name)


@activation_spectra.figure("The largest coordinate")
def coordinates(table: pd.DataFrame, view: View) -> Any:
    """The share of the mean square that one coordinate holds; orange where it is rogue; grey: an equal share."""
    rows = table.to_dict("records")
    return bars([f"L{r['layer']} {r['point']}: {r['coordinate']}" for r in rows], table["coordinate_share"],
                null=[1 / len(r["eigenvalues"]) if "eigenvalues" in r else _equal(view) for r in rows],
                hover=[in_words(r, _name) for r in rows], colours=[CATEGORIES[1 if r["rogue"] else 0] for r in rows],
                x_title="point: its largest coordinate", y_title="share of the mean square",
                names_of=("largest coordinate", "equal share"))  # fmt: skip


def _equal(view: View) -> float:
    return 1 / max(1, int(view.card.get("d_model", 0) or 1))


@activation_spectra.figure("Eigenvalues of one layer", choose=("layer",))
def eigenvalues(table: pd.DataFrame, view: View) -> Any:
    """The spectrum at each point of the chosen layer; grey: shuffled coordinates."""
    return eigenvalues_of(table[table["layer"] == table["layer"].iloc[0]])


def _name(row: Any) -> str:
    return f"L{row['layer']} {row['point']}"
