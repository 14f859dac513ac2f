"""What spectra of weights share, whatever the model: the null, the columns of one matrix beside it, the figures.

Formulas and sources: weight_spectra.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.contract import Params, Value
from backend.figures import Spectrum, bars, spectra

LEAST = 10  # singular values below which no tail is fitted
SHOWN = 24
Shape = tuple[int, int, int]  # rows, columns, rank of a product of two matrices or 0
Words = Callable[[Any], str]  # of a row of the table
NOISE = "noise (Marchenko-Pastur; products: simulated)"


class WeightNullParams(Params):
    """The null."""

    draws: int = Field(20, ge=5, le=500, description="random matrices of the null, per shape; 19 or more for its 95 %")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null")


VALUES = (
    Value("outliers", "singular values above edge_high, where noise of this shape seldom has one", kind="int"),
    Value("rows", "rows of the matrix", kind="int"),
    Value("columns", "columns of the matrix", kind="int"),
    Value("rank", "singular values that can differ from 0", kind="int"),
    Value("largest", "largest singular value"),
    Value("norm", "Frobenius norm"),
    Value("stable_rank", "sum of squared singular values over the largest one"),
    Value("participation_ratio", "(sum s^2)^2 / sum s^4: how many equal ones would have these moments"),
    Value("edge", "singular value where noise with this bulk ends; NULL for a matrix of zeros"),
    Value("edge_high", "what the largest of such noise passes in 5 % of matrices"),
    Value("exponent", "exponent of the tail of squared singular values; NULL below 10 of them"),
    Value("exponent_se", "its standard error from the number of values in the tail"),
    Value("tail_n", "values in the tail", kind="int"),
    Value("null_exponent", "mean exponent of random matrices of this shape"),
    Value("null_sd", "standard deviation of the exponent over random matrices"),
    Value("z", "(exponent - null_exponent) / null_sd: below 0 a heavier tail than noise has"),
    Value("singular_values", "singular values, falling", kind="array", dtype="float32"),
    Value("noise", "those of noise with this bulk, mean over draws", kind="array", dtype="float32"),
)


class Null:
    """Random matrices of one shape: singular values [draw, rank], tail exponents [draw], `high` over their median."""

    def __init__(self, shape: Shape, draws: int, seed: int):
        from backend.maths import random_matrix

        dice = np.random.default_rng(seed)
        n, m, through = shape
        self.shape = shape
        self.values = np.stack([random_matrix.gaussian_singular(n, m, dice, through) for _ in range(draws)])
        self.largest = self.values[:, 0]
        # by each draw's own median, as a matrix is judged by its own; so a further draw is above in 1 of 20
        self.high = float(np.quantile(self.largest / np.median(self.values, 1), 0.95, method="weibull"))
        self.exponents = np.array([tail(one)["exponent"] for one in self.values])


class Nulls(dict[Shape, Null]):
    """The null of every shape, drawn when it is first asked for."""

    def __init__(self, params: WeightNullParams):
        super().__init__()
        self.params = params

    def __missing__(self, shape: Shape) -> Null:
        self[shape] = Null(shape, self.params.draws, self.params.seed)
        return self[shape]


def row_of(values: np.ndarray, null: Null) -> dict[str, Any]:
    """Return the columns of one matrix beside the null of its shape, scaled to the matrix' own bulk."""
    from backend.maths import random_matrix

    n, m, through = null.shape
    squares, total = values**2, float((values**2).sum())
    middle = float(np.median(values))
    scale, high = middle / float(np.median(null.values)), middle * null.high
    ends = random_matrix.edges(n, m, 1.0)[1] ** 0.5 * max(n, m) ** 0.5 if not through else null.largest.mean()
    told, spread = tail(values), float(null.exponents.std(ddof=1))
    return {
        "rows": n, "columns": m, "rank": len(values), "largest": values[0], "norm": total**0.5,
        "stable_rank": total / squares[0] if total else np.nan,
        "participation_ratio": total**2 / (squares**2).sum() if total else np.nan,
        "edge": scale * ends if total else np.nan, "edge_high": high if total else np.nan,
        "outliers": int((values > high).sum()) if total else 0,
        **told, "null_exponent": null.exponents.mean(), "null_sd": spread,
        "z": (told["exponent"] - null.exponents.mean()) / spread if spread > 0 else np.nan,
        "singular_values": values, "noise": scale * null.values.mean(0),
    }  # fmt: skip


def tail(values: np.ndarray) -> dict[str, Any]:
    """Return exponent, exponent_se and tail_n of squared singular values; NaN where they are too few."""
    from backend.maths import random_matrix

    alive = values[values > 1e-9 * values.max()] if values.max() > 0 else values[:0]  # the others are rounding
    if len(alive) < LEAST:
        return {"exponent": np.nan, "exponent_se": np.nan, "tail_n": pd.NA}
    found = random_matrix.power_tail(alive**2, LEAST)
    return {"exponent": found.exponent, "exponent_se": found.error, "tail_n": found.n}


# ---------------------------------------------------------------- figures


def tails(table: pd.DataFrame, name: Words) -> Any:
    """Draw the exponents of the matrices whose tail differs most from noise of their shape; grey: the null's mean."""
    known = table.dropna(subset=["exponent", "z"])
    shown = known.reindex(known["z"].abs().sort_values(ascending=False).index).head(SHOWN).to_dict("records")
    return bars([name(r) for r in shown], [r["exponent"] for r in shown], errors=[r["exponent_se"] for r in shown],
                null=[r["null_exponent"] for r in shown], hover=[in_words(r, name) for r in shown],
                x_title=f"matrix (largest |z| first, {len(shown)} of {len(known)})",
                y_title="tail exponent (error: s.e.)", names_of=("measured", "random matrices"))  # fmt: skip


def bulks(rows: list[dict[Any, Any]], name: Words, product: Callable[[Any], bool] = lambda row: False) -> Any:
    """Draw the singular values of these matrices; grey: noise. `product` says of a row whether it is one of two."""
    shown = []
    for row in rows:
        x, y = noise_density(row, product(row))
        title = f"{name(row)}: {row['outliers']} of {row['rank']} above noise"
        shown.append(Spectrum(title, row["singular_values"], x, y, row["edge"]))
    return spectra(shown, x_title="singular value", noise=NOISE)


def noise_density(row: dict[Any, Any], product: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the density of the noise over singular values: Marchenko-Pastur, of products what was simulated."""
    from backend.maths import random_matrix

    if product:
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


def in_words(row: Any, name: Words) -> str:
    """Return what is known of one matrix."""
    said = f"{name(row)}: {row['outliers']} of {row['rank']} above noise, stable rank {row['stable_rank']:.3g}"
    if pd.isna(row["exponent"]):
        return f"{said}<br>too few values for a tail"
    return (f"{said}<br>tail exponent {row['exponent']:.3g} ± {row['exponent_se']:.2g} ({row['tail_n']} values)"
            f"<br>noise {row['null_exponent']:.3g} ± {row['null_sd']:.2g}, z {row['z']:.3g}")  # fmt: skip
