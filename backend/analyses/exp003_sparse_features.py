"""EXP-003: are there sparse features in what an energy computes, beyond what a Gaussian of its covariance has?

TopK autoencoders (backend/maths/sae.py) of five sources at one annealing level, on `samples` problems of which a
quarter is held out: the residual field dE/dy at the solutions sqrt(abar) y0 (0 for an ideal energy), the same at noised
solutions (what training makes white noise), and the hidden activations h1, h2, h3 at the solutions. Held-out fraction
of variance unexplained (FVU) with its 95 % bootstrap interval over samples, active features L0, dead share, MCC (mean
cosine of directions paired one to one) of two seeds, and the mean excess kurtosis of the coordinates.

Null of each: the Gaussian with the same mean and covariance, its own autoencoder, trained alike; its FVU needs no
structure, and the MCC of the data's features with its features needs none either. White noise has kurtosis 0 and the
FVU of its null. Ground truth: a known dictionary is found again, Gaussian data reach their null (tests).
Second null: the same net with untrained weights of three seeds, at the same problems, beside a Gaussian of its own
covariance: no hidden layer is Gaussian, trained or not. Only where the trained net's FVU lies further below its
Gaussian's than every untrained net's (ratios with 95 % bootstrap intervals, apart) has training made the structure.
Those intervals are over the held-out samples of one trained autoencoder each, not over trainings; so the untrained
nets' interval is widened by two standard deviations over initialisations, and within those nothing is told.
A feature's direction is shown among solutions: of a field its row of W_dec, of h_l the mean change d (h_l . v) / dy.
`rayleigh` is v'Hv of that direction at norm 1, H the mean Hessian at the solutions; its null is tr H / d.
Exact but for training and intervals. Cost: 45 trainings of `steps` updates. Absorption, a score of language models'
first letters, has no meaning here.
Source: Gao et al. (2024), Scaling and evaluating sparse autoencoders; Sharkey et al. (2022), Taking features out of
superposition with sparse autoencoders (MMCS).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _dictionaries, _energy
from backend.analyses._dictionaries import BATCH, NETS
from backend.contract import (
    Axis,
    Claim,
    Energies,
    Matrices,
    ModelCard,
    Params,
    Problems,
    Progress,
    Value,
    View,
    analysis,
)
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, Line, Panel, bars, lines, panels, scatter

SOURCES = ("residual field", "noised field", "h1", "h2", "h3")
SHOWN = 6  # feature cards at once
TRAININGS = len(SOURCES) * (3 + 2 * NETS)  # two seeds and a Gaussian; of each untrained net one and its Gaussian
WIDER = 2  # standard deviations over initialisations by which the untrained nets' interval is widened
SAME, ABOVE_NULL = 0.8, 0.1  # MCC of two seeds that find the same features, and how far above its null it is to lie
UPDATE_SECONDS = 2.5e-3  # of a training, on a CPU core, whatever the size (measured: 2.2 to 4)


class SparseFeaturesParams(Params):
    """The autoencoders."""

    level: int = Field(0, ge=0, le=99, description="annealing level; 0 is the sharpest")
    d_sae: int = Field(64, ge=2, le=4096, title="Dictionary features", description="features in each dictionary")
    k: int = Field(6, ge=1, le=512, title="Active features", description="features active per sample")
    samples: int = Field(2048, ge=64, le=65_536, description="problems that are read; a quarter is held out")
    steps: int = Field(400, ge=5, le=50_000, description="updates of each training, of 256 samples")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of problems, trainings and the bootstrap")


@analysis(
    version=3, group="Energy landscapes",
    title="EXP-003 Sparse features",
    asks="Are there sparse features in what an energy computes, beyond its covariance?",
    subject=Problems, params=SparseFeaturesParams,
    axes=[Axis("source", "0: residual field at solutions; 1: field at noised ones; 2 to 4: h1 to h3", words=SOURCES),
          Axis("feature", "feature, the most often active first")],
    values=[
        Value("what", "the source in words", kind="str"),
        Value("density", "share of held-out samples on which it is active"),
        Value("cosine", "cosine with its partner of the other seed; 0 without one"),
        Value("rayleigh", "v'Hv of its direction among solutions, at norm 1"),
        Value("rayleigh_null", "tr H / d: that of a random direction"),
        Value("fvu", "of the source: held-out fraction of variance unexplained"),
        Value("fvu_low", "lower end of its 95 % interval"),
        Value("fvu_high", "upper end of its 95 % interval"),
        Value("null_fvu", "the same of the Gaussian with this covariance, its own autoencoder"),
        Value("null_low", "lower end of its 95 % interval"),
        Value("null_high", "upper end of its 95 % interval"),
        Value("ratio", "FVU over that of the Gaussian: below 1 there is structure beyond the covariance"),
        Value("ratio_low", "lower end of its 95 % interval"),
        Value("ratio_high", "upper end of its 95 % interval"),
        Value("untrained", "the same ratio of the same net with untrained weights, mean over initialisations"),
        Value("untrained_low", "lowest end of their 95 % intervals"),
        Value("untrained_high", "highest end of their 95 % intervals"),
        Value("untrained_spread", "standard deviation of the ratio over initialisations"),
        Value("l0", "features active per held-out sample"),
        Value("dead", "share of features silent for 100 updates"),
        Value("mcc", "mean cosine of directions of two seeds, paired one to one"),
        Value("mcc_null", "the same with the directions that the Gaussian's autoencoder found"),
        Value("kurtosis", "mean excess kurtosis of the coordinates; 0 for a Gaussian"),
        Value("kurtosis_null", "that of as many Gaussian samples"),
        Value("direction", "its direction among solutions", kind="array", dtype="float32"),
        Value("example", "the solution of the held-out sample on which it is most active", kind="array",
              dtype="float32"),
        *(Value(f"{null}by_{name}", f"{words} where only the strongest 1, 2, .. k features are kept{more}",
                kind="array", dtype="float32")
          for null, more in (("", ""), ("null_", ", of the Gaussian"))
          for name, words in (("l0", "features active"), ("fvu", "FVU"), ("low", "lower end of the FVU's interval"),
                              ("high", "upper end of it"))),
    ],
)  # fmt: skip
def exp003_sparse_features(
    model: Energies, problems: Matrices, params: SparseFeaturesParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (source, feature)."""
    _check(params, model.schedule.levels)
    drawn, tables = problems.more(params.samples, params.seed), []
    bent = _dictionaries.mean_hessian(model, problems, params.level)
    for at, what in enumerate(SOURCES):

        def said(done: float, at: int = at, what: str = what) -> None:
            progress((at + done) / len(SOURCES), f"{what}: autoencoders")

        found = _dictionaries.told_of(model, drawn, what, params, said)
        tables.append(_table(model, problems, drawn, found, bent, params, at))
    declared: Any = exp003_sparse_features
    return pd.concat(tables, ignore_index=True)[[c.name for c in (*declared.axes, *declared.values)]]


def _check(params: SparseFeaturesParams, levels: int) -> None:
    if params.level >= levels:
        raise BadInput(f"Level {params.level}", f"the model has levels 0 to {levels - 1}", "Choose one of them")
    if params.k > params.d_sae:
        raise BadInput(f"{params.k} active features", f"a dictionary of {params.d_sae}", "Lower k or raise d_sae")


@exp003_sparse_features.costs
def work(card: ModelCard, subject: Problems, params: SparseFeaturesParams) -> Work:
    """Gradients and energies of the samples by this net and untrained ones, a Hessian per problem, the trainings."""
    told = card.energy
    _check(params, int(told["levels"]))
    d, width = int(told["d_y"]), int(told["width"])
    per_update = 6.0 * BATCH * params.d_sae * 2 * (2 * d + 3 * width) * (3 + 2 * NETS)
    held = params.samples * (int(told["d_x"]) + 3 * d + 16 * width)
    nets = (1 + NETS) * params.samples
    return _energy.work(card, energies=3 * nets, gradients=2 * nets + 3 * params.d_sae * subject.n,
                        hessians=subject.n, held_numbers=held, operations=params.steps * per_update,
                        solver_seconds=UPDATE_SECONDS * TRAININGS * params.steps)  # fmt: skip


def _table(
    model: Energies, problems: Matrices, drawn: Matrices, found: dict[str, Any], bent: Any,
    params: SparseFeaturesParams, at: int,
) -> pd.DataFrame:  # fmt: skip
    """Return the rows of one source, the most often active feature first."""
    sae, features = found["sae"], found["sae"].encode(found["held"])
    density = (features > 0).double().mean(0).cpu().numpy()
    order = np.argsort(-density, kind="stable")
    ways = _dictionaries.directions(model, problems, params.level, SOURCES[at], sae.W_dec).double()
    unit = ways / ways.norm(dim=1, keepdim=True).clamp_min(1e-300)
    rayleigh = ((unit @ bent) * unit).sum(1).cpu().numpy()
    examples = drawn.y[::_dictionaries.HELD_OUT][features.argmax(0)].float().cpu().numpy()
    return pd.DataFrame({
        "source": at, "feature": np.arange(len(order)), "what": SOURCES[at], "density": density[order],
        "cosine": found["cosine"][order], "rayleigh": rayleigh[order],
        "rayleigh_null": float(bent.trace()) / len(bent), **found["told"],
        **{name: [curve] * len(order) for name, curve in found["curves"].items()},
        "direction": list(unit.float().cpu().numpy()[order]), "example": list(examples[order]),
    })  # fmt: skip


# ---------------------------------------------------------------- what it says of what was expected


@exp003_sparse_features.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Which sources has training given more structure than their covariance, and do two seeds find the same?"""
    per = table.groupby("what", sort=False).first()
    at = f"level {(view.params if view else {}).get('level', 0)}"
    claims = [_structure(what, row, at) for what, row in per.iterrows()]
    return [*claims, _agree(per)]


def _structure(what: Any, row: Any, at: str) -> Claim:
    noised = what == "noised field"
    named = f"{what} sparse features" + (" (the original study reads this one)" if noised else "")
    apart = row.fvu_high < row.null_low and row.ratio_high < row.untrained_low
    clear = row.ratio_high < row.untrained_low - WIDER * row.untrained_spread
    return Claim(f"training has given the {named}, {at}",
                 f"a Gaussian of its covariance: FVU {row.null_fvu:.3f} [{row.null_low:.3f}, {row.null_high:.3f}]; "
                 f"with untrained weights FVU is {_untrained(row)} of the Gaussian's",
                 f"FVU {row.fvu:.3f} [{row.fvu_low:.3f}, {row.fvu_high:.3f}], {_times(row, 'ratio')} of the Gaussian's"
                 f", excess kurtosis {row['kurtosis']:.2f}; intervals over held-out samples of one trained "
                 f"autoencoder: the untrained nets' is widened by {WIDER} spreads",
                 "met by its null" if not apart else "holds" if clear else "cannot be tested here")  # fmt: skip


def _times(row: Any, name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _untrained(row: Any) -> str:
    return f"{_times(row, 'untrained')} (over {NETS} initialisations, spread {row.untrained_spread:.2f})"


def _agree(per: pd.DataFrame) -> Claim:
    words = ", ".join(f"{w} {r.mcc:.2f}" for w, r in per.iterrows())
    null = ", ".join(f"{w} {r.mcc_null:.2f}" for w, r in per.iterrows())
    same = (per.mcc >= SAME) & (per.mcc - per.mcc_null > ABOVE_NULL)
    return Claim(f"two seeds find the same features (some source: MCC of {SAME} or more, {ABOVE_NULL} above its null)",
                 f"directions that the Gaussian's autoencoder finds: {null}", words,
                 "holds" if same.any() else "fails")  # fmt: skip


# ---------------------------------------------------------------- figures


@exp003_sparse_features.figure("Variance unexplained, beside a Gaussian of the same covariance")
def unexplained_variance(table: pd.DataFrame, view: View) -> Any:
    """With 95 % intervals; where the bar is as high as the grey one there is no structure beyond correlations.
    Nets with untrained weights may lie below their own Gaussian as well: hover."""
    per = table.groupby("what", sort=False).first()
    hover = [f"{w}: FVU {r.fvu:.3f}, null {r.null_fvu:.3f}: {_times(r, 'ratio')} of it, with untrained weights "
             f"{_untrained(r)}; L0 {r.l0:.1f}, dead {r.dead:.0%}, MCC {r.mcc:.2f} (null "
             f"{r.mcc_null:.2f}), excess kurtosis {r['kurtosis']:.2f}" for w, r in per.iterrows()]  # fmt: skip
    return bars([str(w) for w in per.index], per.fvu, errors=per.fvu_high - per.fvu, errors_below=per.fvu - per.fvu_low,
                null=per.null_fvu, x_title="source", y_title="fraction of variance unexplained", hover=hover,
                names_of=("data", "Gaussian of its covariance"))  # fmt: skip


@exp003_sparse_features.figure("Variance unexplained against active features, beside the Gaussian's band", whole=True)
def by_active(table: pd.DataFrame, view: View) -> Any:
    """The same autoencoders with fewer of their features kept; dashed, with its interval: the Gaussian's."""
    curves = []
    for at, (what, rows) in enumerate(table.groupby("what", sort=False)):
        if "by_l0" in rows and rows.by_l0.notna().all():
            one, colour = rows.iloc[0], CATEGORIES[at]
            curves.append(Line(str(what), one.by_l0, one.by_fvu, one.by_low, one.by_high, colour))
            curves.append(Line(f"{what}: Gaussian", one.null_by_l0, one.null_by_fvu, one.null_by_low, one.null_by_high,
                               colour, dash="dash"))  # fmt: skip
    return lines(curves, x_title="L0: features active per held-out sample", y_title="fraction of variance unexplained",
                 height=400)  # fmt: skip


@exp003_sparse_features.figure("Do two seeds find the same features?")
def seeds(table: pd.DataFrame, view: View) -> Any:
    """Mean cosine of paired directions; grey: with what the Gaussian's autoencoder finds."""
    per = table.groupby("what", sort=False).first()
    return bars([str(w) for w in per.index], per.mcc, null=per.mcc_null, x_title="source",
                y_title="MCC (mean cosine)", names_of=("two seeds", "with the Gaussian's"))  # fmt: skip


@exp003_sparse_features.figure("How often each feature is active, and how the energy bends along it")
def features(table: pd.DataFrame, view: View) -> Any:
    """A point per feature that is active at all; the height over tr H / d is 1 for a random direction."""
    rows = table[table.density > 0]
    bend = rows.rayleigh / rows.rayleigh_null
    hover = [f"{w}, feature {f}: active on {d:.1%}, bend {b:.2f} of the mean, other seed {c:.2f}" for w, f, d, b, c in
             zip(rows.what, rows.feature, rows.density, bend, rows.cosine, strict=True)]  # fmt: skip
    figure = scatter(rows.density, bend, x_title="share of samples on which it is active",
                     y_title="v'Hv over tr H / d", group=list(rows.what), hover=hover)  # fmt: skip
    return figure.update_xaxes(type="log", exponentformat="power", dtick="D2")


@exp003_sparse_features.figure("Cards of the most active features, and where each is strongest", choose=["source"])
def cards(table: pd.DataFrame, view: View) -> Any:
    """Directions among solutions as matrices; below each the solution on which it is most active."""
    rows = table[table.source == int(view.chosen.get("source", 0))].head(SHOWN)
    if "direction" not in rows or rows.direction.isna().any():  # the page asked without arrays
        return lines([], x_title="column", y_title="row")
    maps: dict[str, Panel] = {}
    for start in range(0, len(rows), 3):
        some = rows.iloc[start : start + 3]
        for name in ("direction", "example"):
            for row in some.itertuples():
                square = _square(getattr(row, name))
                maps[_title(row, name, square)] = Panel(square, diverging=True)
    return panels(maps, x_title="column", y_title="row", columns=3, square=True)


def _square(values: Any) -> np.ndarray:
    side = int(round(len(values) ** 0.5))
    return np.asarray(values, float).reshape(side, side)


def _title(row: Any, name: str, matrix: np.ndarray) -> str:
    if name == "example":
        return f"{row.feature}: strongest at"
    share = np.linalg.svd(matrix, compute_uv=False) ** 2
    return f"{row.feature}: {row.density:.0%}, bend {row.rayleigh / row.rayleigh_null:.1f}, s1 {share[0]:.0%}"


@exp003_sparse_features.figure("Singular values of those directions", choose=["source"])
def singular(table: pd.DataFrame, view: View) -> Any:
    """1 then 0: the feature is a matrix of rank 1."""
    rows = table[table.source == int(view.chosen.get("source", 0))].head(SHOWN)
    curves = []
    for row in rows.itertuples():
        if "direction" in rows and row.direction is not None:
            values = np.linalg.svd(_square(row.direction), compute_uv=False)
            curves.append(Line(f"feature {row.feature}", np.arange(1, len(values) + 1), values))
    figure = lines(curves, x_title="rank, largest first", y_title="singular value of the unit direction")
    return figure.update_xaxes(dtick=max(1, len(curves[0].x) // 10) if curves else 1)
