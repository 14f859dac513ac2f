"""Which frequencies modulo p do the weights hold?

For a matrix with a row per number 0..p-1 (W_E; W_U and W_L = W_out W_U by their output classes) `share` is the part of
its squared norm along cos and sin of frequency w = 0 .. (p-1)/2 over the rows; the shares of a matrix sum to 1. The
`null` is that of a random Gaussian matrix of the same shape and norm: its mean is 2/p for each w > 0 by symmetry, and
`null_high` is the 95 % quantile, over `n_null` draws, of the largest share of any w > 0. `stands_out` says that a share
is above it; that is a statement about weights. `is_key` is about the model's answers: on all p^2 inputs (a, b, '='),
cos(w (a + b - c)) explains more than 1 % of the logits' variance (fve). It needs p <= 257 and 3 positions, else NULL.

The number p is that of the run's recipe, else d_vocab - 1. For a model of another task the shares stay true of the
weights and say nothing of what it does. Exact but for the null. Cost: one forward on p^2 inputs of 3 tokens.
Source: Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability, section 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._modular import BATCH, MOST_P, modulus, seen_everywhere
from backend.analyses._work import Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Value, View, Weights, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, bars, level

WIDEST = 2049  # rows above which this is no model of modular addition


class FourierSpectrumParams(Params):
    """The modulus, and the null."""

    p: int = Field(0, ge=0, le=WIDEST, description="modulus; 0: the run's own, else d_vocab - 1")
    n_null: int = Field(50, ge=10, le=1000, description="random matrices of the null")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null")


@analysis(
    version=1, group="Training", title="Fourier spectrum", asks="Which frequencies modulo p do the weights hold?",
    subject=Weights, params=FourierSpectrumParams, needs=["named_weights"],
    axes=[Axis("matrix", "W_E, W_U or W_L = W_out W_U", kind="str"),
          Axis("frequency", "w: waves over 0..p-1; 0 is the constant", "cycles per p")],
    values=[
        Value("share", "share of the matrix's squared norm along this frequency, 0 to 1"),
        Value("null", "mean share of a random matrix of the same shape and norm"),
        Value("null_high", "95 % quantile of the largest share (w > 0) of such a matrix"),
        Value("stands_out", "1 where share is above null_high (w > 0)", kind="int"),
        Value("fve", "fraction of the logits' variance that cos(w (a + b - c)) explains; NULL where not computed"),
        Value("is_key", "1 where fve is above 0.01; NULL where not computed", kind="int"),
    ],
)
def fourier_spectrum(model: Model, subject: Weights, params: FourierSpectrumParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (matrix, frequency)."""
    import torch

    from backend.maths import fourier

    p = modulus(model, params.p, WIDEST)
    progress(0.1, f"Spectra modulo {p}")
    fve = _explained(model, p)
    parts = []
    for name, matrix in matrices(model.weights(), p).items():
        matrix = matrix.detach().to("cpu", torch.float64)
        share = fourier.power(matrix).numpy()
        null, high = _null(matrix.shape, params.n_null, params.seed)
        parts.append(pd.DataFrame({
            "matrix": name, "frequency": range(len(share)), "share": share, "null": null, "null_high": high,
            "stands_out": ((share > high) & (np.arange(len(share)) > 0)).astype(int), "fve": fve,
            "is_key": pd.array([pd.NA if np.isnan(x) else int(x > fourier.KEY_FVE) for x in fve], dtype="Int64"),
        }))  # fmt: skip
        progress(0.1 + 0.3 * len(parts), name)
    return pd.concat(parts, ignore_index=True)


def matrices(weights: dict[str, Any], p: int) -> dict[str, Any]:
    """Return the matrices with a row per number: W_E, W_U and, with an MLP, W_L of the last layer."""
    found = {"W_E": weights["W_E"][:p], "W_U": weights["W_U"][:, :p].T}
    if weights.get("W_out"):
        found["W_L"] = (weights["W_out"][-1] @ weights["W_U"][:, :p]).T
    return found


def _explained(model: Model, p: int) -> np.ndarray:
    """Return FVE by frequency, 0 for the constant; NaN where the model cannot be asked."""
    from backend.maths import fourier

    if p > MOST_P or model.card.n_ctx < 3:
        return np.full(1 + p // 2, np.nan)
    means = fourier.class_means(seen_everywhere(model, p)[0][:, :p].double())
    return np.concatenate([[0.0], fourier.cosine_similarities(means).clamp_min(0).square().numpy()])


def _null(shape: Any, draws: int, seed: int) -> tuple[np.ndarray, float]:
    """Return (mean share by frequency, quantile of the largest) of Gaussian matrices; no share depends on the norm.

    The squared length of a Gaussian row component is chi squared with `width` degrees of freedom, so the spectrum is
    drawn directly.
    """
    rows, width = shape
    dice = np.random.default_rng(seed)
    components = dice.chisquare(width, (draws, rows))
    power = np.concatenate([components[:, :1], components[:, 1:].reshape(draws, -1, 2).sum(2)], 1)
    shares = power / power.sum(1, keepdims=True)
    return shares.mean(0), float(np.quantile(shares[:, 1:].max(1), 0.95))


@fourier_spectrum.costs
def work(card: ModelCard, subject: Weights, params: FourierSpectrumParams) -> Work:
    """All inputs once, where they are few enough; the spectra are of matrices, not of the model."""
    plan, p = Plan(card), modulus(Plan(card), params.p, WIDEST)
    kept = 8 * params.n_null * p + 48 * p * max(card.d_model, card.d_mlp, p)
    if p <= MOST_P and card.n_ctx >= 3:
        plan.call_parts(p * p, BATCH, 3)
        kept += 12 * p * p * card.d_vocab_out
    return plan.total(kept, 12 * p**2 * (card.d_model + card.d_mlp), "Give a smaller p")


# ---------------------------------------------------------------- figures


def _spectrum(table: pd.DataFrame, matrix: str) -> Any:
    rows = table[(table["matrix"] == matrix) & (table["frequency"] > 0)]
    key = rows["is_key"].fillna(0).astype(int)
    colours = [CATEGORIES[1] if k else CATEGORIES[0] for k in key]
    words = [f"w = {w}<br>share {s:.3g}, null {n:.3g}<br>explains {f:.3g} of the logits{', key' if k else ''}"
             for w, s, n, f, k in zip(rows["frequency"], rows["share"], rows["null"], rows["fve"], key, strict=True)]
    figure = bars([str(w) for w in rows["frequency"]], rows["share"], null=rows["null"], colours=colours, hover=words,
                  x_title="frequency w (cycles per p; key ones in orange)", y_title=f"share of the norm of {matrix}")
    high = float(rows["null_high"].iloc[0])
    level(figure, [str(w) for w in rows["frequency"]], high, "95 % of the null's largest")
    return figure


@fourier_spectrum.figure("Spectrum of W_E")
def embedding(table: pd.DataFrame, view: View) -> Any:
    """Share by frequency of the embedding; the null in grey, key frequencies in orange."""
    return _spectrum(table, "W_E")


@fourier_spectrum.figure("Spectrum of the output map")
def output(table: pd.DataFrame, view: View) -> Any:
    """The same of W_L, from neurons to logits (of W_U where there is no MLP)."""
    return _spectrum(table, "W_L" if (table["matrix"] == "W_L").any() else "W_U")
