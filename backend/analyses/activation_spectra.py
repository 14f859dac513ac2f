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

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _saes
from backend.analyses._units import batches
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines

SAMPLE = 8192  # tokens of the null
GROUPS = 10
MEASURES = ("participation_ratio", "rankme", "top_share")


class ActivationSpectraParams(Params):
    """The null, and what counts as rogue."""

    draws: int = Field(3, ge=1, le=50, description="shuffles of the null")
    rogue_times: float = Field(
        10.0, ge=2.0, le=1000.0, description="times an equal share of the mean square that make a coordinate rogue"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null")


@analysis(
    version=1, group="Spectra",
    title="Activation spectra", asks="How many directions do activations use at each layer, and does one rule them?",
    subject=Corpus, params=ActivationSpectraParams,
    axes=[Axis("layer", "layer, 0-based"), Axis("point", "resid_post, attn_out or mlp_out", kind="str")],
    values=[
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
    ],
)  # fmt: skip
def activation_spectra(
    model: Model, subject: Rows, params: ActivationSpectraParams, progress: Progress
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


def measured(x: Any, params: ActivationSpectraParams) -> dict[str, Any]:
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


@activation_spectra.costs
def work(card: ModelCard, subject: Corpus, params: ActivationSpectraParams) -> Work:
    """The corpus once per layer; a covariance and its eigenvalues (about 4 d^3) for all, every group and every draw."""
    plan, d, tokens = Plan(card), card.d_model, subject.rows * min(subject.length, card.n_ctx)
    plan.corpus(subject, 3 * d, n=card.n_layers)
    points, groups = len(points_of(card)), min(GROUPS, subject.rows)
    each = (
        2 * d**2 * (tokens * (1 + groups) + params.draws * min(tokens, SAMPLE)) + 4 * (1 + groups + params.draws) * d**3
    )
    held = tokens * d * (4 * points + 8 * 4) + 8 * 4 * d**2
    return plan.total(held, each * points * card.n_layers, FEWER_ROWS)


# ---------------------------------------------------------------- figures


def _over_layers(table: pd.DataFrame, name: str, y_title: str) -> Any:
    """Draw a measure over layers, a line per point with its error as a band; grey: shuffled coordinates."""
    curves = []
    for at, (point, rows) in enumerate(table.groupby("point", sort=False)):
        mine, error = rows[name], rows[f"{name}_se"].fillna(0)
        null = rows[f"{name}_null"]
        hover = [_words(row) for row in rows.to_dict("records")]
        curves.append(Line(f"{point}, shuffled", rows["layer"], null, colour=NULL_GREY))
        curves.append(Line(str(point), rows["layer"], mine, mine - error, mine + error, CATEGORIES[at], hover))
    figure = lines(curves, x_title="layer", y_title=f"{y_title} (band: ± s.e.)", height=360)
    figure.update_traces(line={"dash": "dot"}, selector=lambda trace: str(trace.name).endswith(", shuffled"))
    return figure.update_xaxes(dtick=1 if table["layer"].max() < 20 else None)


@activation_spectra.figure("Participation ratio")
def ratio(table: pd.DataFrame, view: View) -> Any:
    """The number of directions in use, by layer; dotted: every coordinate shuffled by itself."""
    return _over_layers(table, "participation_ratio", "participation ratio")


@activation_spectra.figure("RankMe")
def rank(table: pd.DataFrame, view: View) -> Any:
    """The effective rank, which weighs small directions more, by layer; dotted: shuffled."""
    return _over_layers(table, "rankme", "RankMe")


@activation_spectra.figure("Share of the largest eigenvalue")
def top(table: pd.DataFrame, view: View) -> Any:
    """How much of the variance lies along one direction, by layer; dotted: shuffled."""
    return _over_layers(table, "top_share", "share of the variance, 0 to 1")


@activation_spectra.figure("The largest coordinate")
def coordinates(table: pd.DataFrame, view: View) -> Any:
    """The share of the mean square that one coordinate holds; orange where it is rogue; grey: an equal share."""
    rows = table.to_dict("records")
    return bars([f"L{r['layer']} {r['point']}: {r['coordinate']}" for r in rows], table["coordinate_share"],
                null=[1 / len(r["eigenvalues"]) if "eigenvalues" in r else _equal(view) for r in rows],
                hover=[_words(r) for r in rows], colours=[CATEGORIES[1 if r["rogue"] else 0] for r in rows],
                x_title="point: its largest coordinate", y_title="share of the mean square",
                names_of=("largest coordinate", "equal share"))  # fmt: skip


def _equal(view: View) -> float:
    return 1 / max(1, int(view.card.get("d_model", 0) or 1))


@activation_spectra.figure("Eigenvalues of one layer", choose=("layer",))
def eigenvalues(table: pd.DataFrame, view: View) -> Any:
    """The spectrum at each point of the chosen layer; grey: shuffled coordinates."""
    table, curves = table[table["layer"] == table["layer"].iloc[0]], []
    for at, row in enumerate(table.to_dict("records")):
        for name, colour, values in ((f"{row['point']}, shuffled", NULL_GREY, row["eigenvalues_null"]),
                                     (row["point"], CATEGORIES[at], row["eigenvalues"])):  # fmt: skip
            values = np.asarray(values, float)
            values = values[values > 1e-7 * values.max()]  # the others are rounding
            curves.append(Line(name, np.arange(1, len(values) + 1), values, colour=colour))
    figure = lines(curves, x_title="rank (1: the largest)", y_title="eigenvalue (variance)", log_x=True, height=380)
    return figure.update_yaxes(type="log", exponentformat="power", dtick=1)


def _words(row: dict[Any, Any]) -> str:
    said = [f"L{row['layer']} {row['point']}"]
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
