"""Which singular values of the weights stand above noise, and how heavy is their tail?

For W_QK = W_Q W_K' and W_OV = W_V W_O of every head (what attention computes with: a head's inner basis is free, theirs
is not), W_in and W_out of every layer, W_E and W_U. Singular values s; `stable_rank` = sum s^2 / max s^2,
`participation_ratio` = (sum s^2)^2 / sum s^4; `exponent` of a power law p(s^2) ~ (s^2)^-exponent fitted to the tail,
with `exponent_se` = (exponent - 1) / sqrt(k), k = `tail_n` values.

The null, `draws` times: a random Gaussian matrix of the same shape; for W_QK and W_OV a product of two, of the same
rank, which no Marchenko-Pastur law describes. Every such matrix has a tail that can be fitted: only z = (exponent -
mean of the null) / sd of the null says something, and exponents of other shapes do not compare. The noise's scale is
that at which its median meets the matrix' own. `edge` is where the bulk ends: the Marchenko-Pastur edge, for products
the null's mean largest value; `outliers` counts values above `edge_high`, the 95 % quantile of the largest in the null.

Exact but for the null. Gains of norms are not folded in. Cost: no call of the model, an SVD per matrix.
Source: Marchenko and Pastur (1967); Martin and Mahoney (2021), Implicit self-regularization in deep neural networks;
Clauset, Shalizi and Newman (2009), section 3; Elhage et al. (2021) for W_QK and W_OV.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.contract import Axis, Model, ModelCard, Params, Progress, Value, View, Weights, analysis
from backend.costs import Work
from backend.figures import Panel, Spectrum, bars, panels, spectra

LEAST = 10  # singular values below which no tail is fitted
SHOWN = 24


class WeightSpectraParams(Params):
    """The null."""

    draws: int = Field(20, ge=5, le=500, description="random matrices of the null, per shape")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null")


@analysis(
    version=1, group="Spectra",
    title="Weight spectra", asks="Which singular values of the weights stand above noise, and how heavy is their tail?",
    subject=Weights, params=WeightSpectraParams, needs=["named_weights"],
    axes=[
        Axis("layer", "layer, 0-based; -1: the whole model (W_E, W_U)"),
        Axis("head", "head within the layer; -1: no head's (W_in, W_out, W_E, W_U)"),
        Axis("matrix", "W_QK, W_OV, W_in, W_out, W_E or W_U", kind="str"),
    ],
    values=[
        Value("rows", "rows of the matrix", kind="int"),
        Value("columns", "columns of the matrix", kind="int"),
        Value("rank", "singular values that can differ from 0", kind="int"),
        Value("largest", "largest singular value"),
        Value("norm", "Frobenius norm"),
        Value("stable_rank", "sum of squared singular values over the largest one"),
        Value("participation_ratio", "(sum s^2)^2 / sum s^4: how many equal ones would have these moments"),
        Value("edge", "singular value where noise with this bulk ends; NULL for a matrix of zeros"),
        Value("edge_high", "95 % quantile of the largest singular value of such noise"),
        Value("outliers", "singular values above edge_high", kind="int"),
        Value("exponent", "exponent of the tail of squared singular values; NULL below 10 of them"),
        Value("exponent_se", "its standard error from the number of values in the tail"),
        Value("tail_n", "values in the tail", kind="int"),
        Value("null_exponent", "mean exponent of random matrices of this shape"),
        Value("null_sd", "standard deviation of the exponent over random matrices"),
        Value("z", "(exponent - null_exponent) / null_sd: below 0 a heavier tail than noise has"),
        Value("singular_values", "singular values, falling", kind="array", dtype="float32"),
        Value("noise", "those of noise with this bulk, mean over draws", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def weight_spectra(model: Model, subject: Weights, params: WeightSpectraParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, head, matrix)."""
    nulls: dict[tuple[int, int, int], _Null] = {}
    rows: list[dict[str, Any]] = []
    for place, shape, values in spectra_of(model):
        progress(min(0.95, len(rows) / (2 * model.card.n_layers * (model.card.n_heads + 1) + 2)), place[2])
        if shape not in nulls:
            nulls[shape] = _Null(shape, params.draws, params.seed)
        rows.append({**dict(zip(("layer", "head", "matrix"), place, strict=True)), **_row(values, shape, nulls[shape])})
    declared: Any = weight_spectra
    found = pd.DataFrame(rows)[[c.name for c in (*declared.axes, *declared.values)]]
    return found.astype({"tail_n": "Int64"}).sort_values(["layer", "head", "matrix"], ignore_index=True)


def spectra_of(model: Model) -> Iterator[tuple[tuple[int, int, str], tuple[int, int, int], np.ndarray]]:
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


class _Null:
    """Random matrices of one shape: their singular values [draw, rank] and tail exponents [draw]."""

    def __init__(self, shape: tuple[int, int, int], draws: int, seed: int):
        from backend.maths import random_matrix

        dice = np.random.default_rng(seed)
        n, m, through = shape
        self.values = np.stack([random_matrix.gaussian_singular(n, m, dice, through) for _ in range(draws)])
        self.largest = self.values[:, 0]
        self.exponents = np.array([_tail(one)["exponent"] for one in self.values])


def _row(values: np.ndarray, shape: tuple[int, int, int], null: _Null) -> dict[str, Any]:
    """Return the columns of one matrix beside the null of its shape, scaled to the matrix' own bulk."""
    from backend.maths import random_matrix

    n, m, through = shape
    squares, total = values**2, float((values**2).sum())
    scale = float(np.median(values) / np.median(null.values))
    ends = random_matrix.edges(n, m, 1.0)[1] ** 0.5 * max(n, m) ** 0.5 if not through else null.largest.mean()
    high = scale * float(np.quantile(null.largest, 0.95))
    tail, spread = _tail(values), float(null.exponents.std(ddof=1))
    return {
        "rows": n, "columns": m, "rank": len(values), "largest": values[0], "norm": total**0.5,
        "stable_rank": total / squares[0] if total else np.nan,
        "participation_ratio": total**2 / (squares**2).sum() if total else np.nan,
        "edge": scale * ends if total else np.nan, "edge_high": high if total else np.nan,
        "outliers": int((values > high).sum()) if total else 0,
        **tail, "null_exponent": null.exponents.mean(), "null_sd": spread,
        "z": (tail["exponent"] - null.exponents.mean()) / spread if spread > 0 else np.nan,
        "singular_values": values, "noise": scale * null.values.mean(0),
    }  # fmt: skip


def _tail(values: np.ndarray) -> dict[str, Any]:
    """Return exponent, exponent_se and tail_n of squared singular values; NaN where they are too few."""
    from backend.maths import random_matrix

    alive = values[values > 1e-9 * values.max()] if values.max() > 0 else values[:0]  # the others are rounding
    if len(alive) < LEAST:
        return {"exponent": np.nan, "exponent_se": np.nan, "tail_n": pd.NA}
    found = random_matrix.power_tail(alive**2, LEAST)
    return {"exponent": found.exponent, "exponent_se": found.error, "tail_n": found.n}


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
    mine = mine.assign(words=[_words(row) for row in mine.to_dict("records")])
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
    known = table.dropna(subset=["exponent", "z"])
    shown = known.reindex(known["z"].abs().sort_values(ascending=False).index).head(SHOWN)
    return bars([_name(r) for r in shown.to_dict("records")], shown["exponent"], errors=shown["exponent_se"],
                null=shown["null_exponent"], hover=[_words(r) for r in shown.to_dict("records")],
                                x_title=f"matrix (largest |z| first, {len(shown)} of {len(known)})",
                y_title="tail exponent (error: s.e.)", names_of=("measured", "random matrices"))  # fmt: skip


@weight_spectra.figure("Spectrum beside noise", choose=("layer", "head"))
def bulk(table: pd.DataFrame, view: View) -> Any:
    """The singular values of the chosen head's W_QK and W_OV, or of the layer's or model's matrices; grey: noise."""
    shown = []
    for row in _first_part(table):
        x, y = _noise_density(row)
        title = f"{_name(row)}: {row['outliers']} of {row['rank']} above noise"
        shown.append(Spectrum(title, row["singular_values"], x, y, row["edge"]))
    return spectra(shown, x_title="singular value", noise="noise (Marchenko-Pastur; products: simulated)")


def _first_part(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the rows of the chosen layer and head; of a whole table those of the first."""
    return table[(table[["layer", "head"]] == table[["layer", "head"]].iloc[0]).all(axis=1)].to_dict("records")


def _noise_density(row: dict[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the density of the noise over singular values: Marchenko-Pastur, of products what was simulated."""
    from backend.maths import random_matrix

    if row["matrix"] in ("W_QK", "W_OV"):
        values = np.asarray(row["noise"], float)
        width = 1.06 * values.std() * len(values) ** -0.2 or 1.0
        x = np.linspace(0, values[0] + 2 * width, 200)
        gaps = [(x[:, None] - side * values[None]) / width for side in (1, -1)]  # reflected at 0: none is negative
        return x, sum(np.exp(-(g**2) / 2) for g in gaps).mean(1) / (width * np.sqrt(2 * np.pi))
    n, m = int(row["rows"]), int(row["columns"])
    wide, top = max(n, m), float(row["edge"])
    x = np.linspace(top / 400, top, 400)
    variance = top**2 / wide / random_matrix.edges(n, m, 1.0)[1]
    return x, random_matrix.density(x**2 / wide, n, m, variance) * 2 * x / wide


def _name(row: Any) -> str:
    place = "" if row["layer"] < 0 else f"L{row['layer']}" + ("" if row["head"] < 0 else f"H{row['head']}")
    return f"{place} {row['matrix']}".strip()


def _words(row: Any) -> str:
    said = f"{_name(row)}: {row['outliers']} of {row['rank']} above noise, stable rank {row['stable_rank']:.3g}"
    if pd.isna(row["exponent"]):
        return f"{said}<br>too few values for a tail"
    return (f"{said}<br>tail exponent {row['exponent']:.3g} ± {row['exponent_se']:.2g} ({row['tail_n']} values)"
            f"<br>noise {row['null_exponent']:.3g} ± {row['null_sd']:.2g}, z {row['z']:.3g}")  # fmt: skip
