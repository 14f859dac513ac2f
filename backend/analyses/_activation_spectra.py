"""What spectra of activations share, whatever the model: the knobs, the columns, the null and the figures.

Formulas, errors and sources: activation_spectra.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _saes
from backend.contract import Params, Value
from backend.figures import CATEGORIES, NULL_GREY, Line, lines

SAMPLE = 8192  # tokens of the null
GROUPS = 10
MEASURES = ("participation_ratio", "rankme", "top_share")


class SpectraOfActivationsParams(Params):
    """The null, and what counts as rogue."""

    draws: int = Field(3, ge=1, le=50, description="shuffles of the null")
    rogue_times: float = Field(
        10.0, ge=2.0, le=1000.0, description="times an equal share of the mean square that make a coordinate rogue"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null")


VALUES = [
    Value("variance", "total variance (trace of the covariance)"),
    Value("participation_ratio", "(tr C)^2 / tr C^2 without bias: 1 on a line, d_model where all are alike"),
    Value("participation_ratio_se", "its standard error over rows; NULL for one row"),
    Value("participation_ratio_null", "the same with every coordinate shuffled by itself"),
    Value("rankme", "exp(entropy of the roots of the eigenvalues): the effective rank"),
    Value("rankme_se", "its standard error over rows; NULL for one row"),
    Value("rankme_null", "the same of shuffled coordinates"),
    Value("top_share", "share of the largest eigenvalue in the variance"),
    Value("top_share_se", "its standard error over rows; NULL for one row"),
    Value("top_share_null", "the same of shuffled coordinates"),
    Value("coordinate", "coordinate with the largest mean square", kind="int"),
    Value("coordinate_share", "its share of the mean square"),
    Value("rogue", "coordinates of more than rogue_times an equal share, largest first", kind="str"),
    Value("rogue_share", "their share of the mean square"),
    Value("ratio_without", "participation_ratio without them"),
    Value("eigenvalues", "eigenvalues of the covariance, falling", kind="array", dtype="float32"),
    Value("eigenvalues_null", "those of shuffled coordinates, mean over draws", kind="array", dtype="float32"),
]


def measured(x: Any, params: SpectraOfActivationsParams) -> dict[str, Any]:
    """Return the columns of activations x [row, pos, d]."""
    from backend.maths import spectra
    from backend.maths.streaming import Reservoir, shuffled

    flat, rows = x.flatten(0, 1).double(), len(x)
    covariance = flat.T.cov()
    whole, values = _measures(covariance, len(flat))
    left_out = _without_groups(x.double(), min(GROUPS, rows)) if rows > 1 else []
    sample = Reservoir(SAMPLE, params.seed)
    sample.update(flat)
    nulls = [_measures(shuffled(sample.kept, _saes.dice(params.seed + i)).T.cov(), len(sample.kept))
             for i in range(params.draws)]  # fmt: skip
    columns: dict[str, Any] = {"variance": float(covariance.trace()), "eigenvalues": values}
    for name in MEASURES:
        spread = np.array([one[name] for one in left_out])
        error = np.sqrt((len(spread) - 1) * spread.var()) if len(spread) > 1 else np.nan
        columns |= {name: whole[name], f"{name}_se": error, f"{name}_null": np.mean([one[name] for one, _ in nulls])}
    rogue = _rogue(flat, params.rogue_times)
    out = set(map(int, rogue["rogue"].split()))
    keep = [i for i in range(flat.shape[1]) if i not in out]
    without = float(spectra.unbiased_ratio(covariance[keep][:, keep], len(flat))) if keep else np.nan
    return {**columns, **rogue, "ratio_without": without, "eigenvalues_null": np.mean([v for _, v in nulls], 0)}


def _measures(covariance: Any, n: int) -> tuple[dict[str, float], np.ndarray]:
    """Return the measures of a covariance [d, d] of n tokens, and its eigenvalues falling."""
    import torch

    from backend.maths import random_matrix, spectra

    values = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0).numpy()
    if not values.sum() > 0:
        return dict.fromkeys(MEASURES, np.nan), values
    ratio = float(spectra.unbiased_ratio(covariance, n))
    rank, share = random_matrix.effective_rank(np.sqrt(values)), float(values[0] / values.sum())
    return dict(zip(MEASURES, (ratio, rank, share), strict=True)), values


def _without_groups(x: Any, groups: int) -> list[dict[str, float]]:
    """Return the measures without each of `groups` groups of rows of x [row, pos, d]."""
    import torch

    found = []
    for part in torch.arange(len(x)).tensor_split(groups):
        rest = x[[i for i in range(len(x)) if i not in set(part.tolist())]].flatten(0, 1)
        found.append(_measures(rest.T.cov(), len(rest))[0])
    return found


def _rogue(flat: Any, times: float) -> dict[str, Any]:
    """Return the columns about single coordinates."""
    squares = flat.square().mean(0)
    total = float(squares.sum()) or 1.0
    share = (squares / total).numpy()
    order = [int(i) for i in np.argsort(-share, kind="stable") if share[i] > times / len(share)]
    first = int(share.argmax())
    return {"coordinate": first, "coordinate_share": float(share[first]), "rogue": " ".join(map(str, order)),
            "rogue_share": float(share[order].sum())}  # fmt: skip


def operations(d: int, n: int, groups: int, draws: int) -> float:
    """Return the operations of the covariances of n vectors of size d and their eigenvalues (about 4 d^3), of all, of
    every group left out and of every draw of the null."""
    return 2.0 * d**2 * (n * (1 + groups) + draws * min(n, SAMPLE)) + 4.0 * (1 + groups + draws) * d**3


# ---------------------------------------------------------------- figures


def over(table: pd.DataFrame, axis: str, name: str, y_title: str, named: Callable[[Any], str]) -> Any:
    """Draw a measure over an axis, a line per point with its error as a band; grey: shuffled coordinates."""
    curves = []
    for at, (point, rows) in enumerate(table.groupby("point", sort=False)):
        mine, error = rows[name], rows[f"{name}_se"].fillna(0)
        null = rows[f"{name}_null"]
        hover = [in_words(row, named) for row in rows.to_dict("records")]
        curves.append(Line(f"{point}, shuffled", rows[axis], null, colour=NULL_GREY))
        curves.append(Line(str(point), rows[axis], mine, mine - error, mine + error, CATEGORIES[at], hover))
    figure = lines(curves, x_title=axis, y_title=f"{y_title} (band: ± s.e.)", height=360)
    figure.update_traces(line={"dash": "dot"}, selector=lambda trace: str(trace.name).endswith(", shuffled"))
    return figure.update_xaxes(dtick=1 if table[axis].max() < 20 else None)


def eigenvalues_of(table: pd.DataFrame) -> Any:
    """Draw the eigenvalues of every row of a table; grey: shuffled coordinates."""
    curves = []
    for at, row in enumerate(table.to_dict("records")):
        for name, colour, values in ((f"{row['point']}, shuffled", NULL_GREY, row["eigenvalues_null"]),
                                     (row["point"], CATEGORIES[at], row["eigenvalues"])):  # fmt: skip
            values = np.asarray(values, float)
            values = values[values > 1e-7 * values.max()]  # the others are rounding
            curves.append(Line(name, np.arange(1, len(values) + 1), values, colour=colour))
    figure = lines(curves, x_title="rank (1: the largest)", y_title="eigenvalue (variance)", log_x=True, height=380)
    return figure.update_yaxes(type="log", exponentformat="power", dtick=1)


def in_words(row: dict[Any, Any], named: Callable[[Any], str]) -> str:
    """Return a row for a hover."""
    said = [named(row)]
    for name, words in (("participation_ratio", "participation ratio"), ("rankme", "RankMe"),
                        ("top_share", "largest eigenvalue's share")):  # fmt: skip
        error = "" if pd.isna(row[f"{name}_se"]) else f" ± {row[f'{name}_se']:.2g}"
        said.append(f"{words} {row[name]:.3g}{error}, shuffled {row[f'{name}_null']:.3g}")
    rogue = row["rogue"].split()
    if rogue:
        more = "" if len(rogue) <= 5 else f" and {len(rogue) - 5} more"
        said.append(f"rogue coordinates {', '.join(rogue[:5])}{more}: {row['rogue_share']:.0%} of the mean square, "
                    f"ratio without {row['ratio_without']:.3g}")  # fmt: skip
    else:
        said.append(f"no rogue coordinate; the largest, {row['coordinate']}, holds {row['coordinate_share']:.1%}")
    return "<br>".join(said)
