"""Which singular values of the weights stand above noise, and how heavy is their tail?

For W_QK = W_Q W_K' and W_OV = W_V W_O of every head (what attention computes with: a head's inner basis is free, theirs
is not), W_in and W_out of every layer, W_E and W_U. Singular values s; `stable_rank` = sum s^2 / max s^2,
`participation_ratio` = (sum s^2)^2 / sum s^4; `exponent` of a power law p(s^2) ~ (s^2)^-exponent fitted to the tail,
with `exponent_se` = (exponent - 1) / sqrt(k), k = `tail_n` values.

The null, `draws` times: a random Gaussian matrix of the same shape; for W_QK and W_OV a product of two, of the same
rank, which no Marchenko-Pastur law describes. Every such matrix has a tail that can be fitted: only z = (exponent -
mean of the null) / sd of the null says something, and exponents of other shapes do not compare. The noise's scale is
that at which its median meets the matrix' own. `edge` is where the bulk ends: the Marchenko-Pastur edge, for products
the null's mean largest value. `outliers` counts values above `edge_high`, which is the matrix' median times the 95 %
quantile of largest over median in the null: noise of that shape has one in 5 % of matrices (of fewer than 19 draws the
largest is taken: more).

Exact but for the null. Gains of norms are not folded in. Cost: no call of the model, an SVD per matrix.
Source: Marchenko and Pastur (1967); Martin and Mahoney (2021), Implicit self-regularization in deep neural networks;
Clauset, Shalizi and Newman (2009), section 3; Elhage et al. (2021) for W_QK and W_OV.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from backend.analyses._weight_spectra import VALUES, Nulls, Shape, WeightNullParams, bulks, in_words, row_of, tails
from backend.contract import Axis, Model, ModelCard, Progress, View, Weights, analysis
from backend.costs import Work
from backend.figures import Panel, panels


class WeightSpectraParams(WeightNullParams):
    """The null."""


@analysis(
    version=2, group="Spectra",
    title="Weight spectra", asks="Which singular values of the weights stand above noise, and how heavy is their tail?",
    subject=Weights, params=WeightSpectraParams, needs=["named_weights"],
    axes=[
        Axis("layer", "layer, 0-based; -1: the whole model (W_E, W_U)"),
        Axis("head", "head within the layer; -1: no head's (W_in, W_out, W_E, W_U)"),
        Axis("matrix", "W_QK, W_OV, W_in, W_out, W_E or W_U", kind="str"),
    ],
    values=VALUES,
)  # fmt: skip
def weight_spectra(model: Model, subject: Weights, params: WeightSpectraParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, head, matrix)."""
    nulls, rows = Nulls(params), list[dict[str, Any]]()
    for place, shape, values in spectra_of(model):
        progress(min(0.95, len(rows) / (2 * model.card.n_layers * (model.card.n_heads + 1) + 2)), place[2])
        at = dict(zip(("layer", "head", "matrix"), place, strict=True))
        rows.append({**at, **row_of(values, nulls[shape])})
    declared: Any = weight_spectra
    found = pd.DataFrame(rows)[[c.name for c in (*declared.axes, *declared.values)]]
    return found.astype({"tail_n": "Int64"}).sort_values(["layer", "head", "matrix"], ignore_index=True)


def spectra_of(model: Model) -> Iterator[tuple[tuple[int, int, str], Shape, np.ndarray]]:
    """Yield ((layer, head, matrix), (rows, columns, rank of a product or 0), singular values falling, float64)."""
    import torch

    from backend.maths.heads import grouped

    known = model.weights()
    for name in ("W_E", "W_U"):
        yield (-1, -1, name), (*known[name].shape, 0), torch.linalg.svdvals(known[name].double()).cpu().numpy()
    for layer, W_Q in enumerate(known["W_Q"]):  # noqa: N806 - the glossary's names
        W_K, W_V = (grouped(known[name][layer], W_Q)[0] for name in ("W_K", "W_V"))  # noqa: N806
        both = {"W_QK": (W_Q, W_K), "W_OV": (W_V, known["W_O"][layer].mT)}
        for name, (left, right) in both.items():
            inner = [torch.linalg.qr(m.double(), mode="r").R for m in (left, right)]
            values = torch.linalg.svdvals(inner[0] @ inner[1].mT).cpu().numpy()
            for head, one in enumerate(values):
                yield (layer, head, name), (left.shape[1], right.shape[1], left.shape[2]), one
        for name in ("W_in", "W_out"):
            if name in known:
                matrix = known[name][layer]
                yield (layer, -1, name), (*matrix.shape, 0), torch.linalg.svdvals(matrix.double()).cpu().numpy()


@weight_spectra.costs
def work(card: ModelCard, subject: Weights, params: WeightSpectraParams) -> Work:
    """No call: an SVD per matrix (about 14 n m min(n, m)) and per draw of the null."""
    d, inner, wide, vocab = card.d_model, card.d_head, card.d_mlp, max(card.d_vocab, card.d_vocab_out)
    heads = card.n_layers * card.n_heads * 2
    own = heads * (8 * d * inner**2 + 14 * inner**3) + card.n_layers * 28 * wide * d * min(wide, d) + 28 * vocab * d**2
    null = params.draws * 14 * (2 * inner**3 + min(wide, d) ** 3 + 2 * min(d, vocab) ** 3)
    held = 8 * (3 * vocab * d + 3 * wide * d + (params.draws + 4) * (heads * inner + card.n_layers * 2 * d + 3 * d))
    return Work(held_bytes=held, operations=own + null, knobs="Ask for fewer draws of the null")


# ---------------------------------------------------------------- figures


@weight_spectra.figure("Heads: outliers above the noise, and the tail's z")
def heads(table: pd.DataFrame, view: View) -> Any:
    """Layer by head: how many singular values stand above noise, and how the tail differs from that of noise."""
    mine = table[table["head"] >= 0]
    mine = mine.assign(words=[in_words(row, _name) for row in mine.to_dict("records")])
    drawn = {}
    for name in ("W_QK", "W_OV"):
        one = mine[mine["matrix"] == name].set_index(["layer", "head"])
        counts, z = (one[column].unstack("head").to_numpy(float) for column in ("outliers", "z"))
        hover = one["words"].unstack("head").to_numpy().tolist()
        drawn[f"{name}: outliers"] = Panel(counts, (0.0, float(max(1, mine["outliers"].max()))), hover=hover)
        drawn[f"{name}: z of the tail"] = Panel(z, diverging=True, hover=hover)
    return panels(drawn, x_title="head", y_title="layer", columns=2)


@weight_spectra.figure("Tail exponents beside random matrices")
def exponents(table: pd.DataFrame, view: View) -> Any:
    """The matrices whose tail differs most from noise of their shape; grey: the null's mean."""
    return tails(table, _name)


@weight_spectra.figure("Spectrum beside noise", choose=("layer", "head"))
def bulk(table: pd.DataFrame, view: View) -> Any:
    """The singular values of the chosen head's W_QK and W_OV, or of the layer's or model's matrices; grey: noise."""
    return bulks(_first_part(table), _name, is_product)


def _first_part(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the rows of the chosen layer and head; of a whole table those of the first."""
    return table[(table[["layer", "head"]] == table[["layer", "head"]].iloc[0]).all(axis=1)].to_dict("records")


def is_product(row: Any) -> bool:
    """Say whether a row is of a product of two matrices, which no Marchenko-Pastur law describes."""
    return row["matrix"] in ("W_QK", "W_OV")


def _name(row: Any) -> str:
    place = "" if row["layer"] < 0 else f"L{row['layer']}" + ("" if row["head"] < 0 else f"H{row['head']}")
    return f"{place} {row['matrix']}".strip()
