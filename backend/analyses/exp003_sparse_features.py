"""EXP-003: are there sparse features in what an energy computes, beyond what a Gaussian of its covariance has?

TopK autoencoders (backend/maths/sae.py) of five sources at one annealing level, on `samples` problems of which a
quarter is held out: the residual field dE/dy at the solutions sqrt(abar) y0 (0 for an ideal energy), the same at noised
solutions (what training makes white noise), and the hidden activations h1, h2, h3 at the solutions. Held-out fraction
of variance unexplained (FVU) with its 95 % bootstrap interval over samples, active features L0, dead share, MCC (mean
cosine of directions paired one to one) of two seeds, and the mean excess kurtosis of the coordinates.

Null of each: the Gaussian with the same mean and covariance, its own autoencoder, trained alike; its FVU needs no
structure, and the MCC of the data's features with its features needs none either. White noise has kurtosis 0 and the
FVU of its null. Ground truth: a known dictionary is found again, Gaussian data reach their null (tests).
Second null: the same net with untrained weights drawn from `seed`, at the same problems, its source beside a Gaussian
of its own covariance: no hidden layer is Gaussian, trained or not. Only where the trained net's FVU lies further below
its Gaussian's than the untrained net's (ratios with 95 % bootstrap intervals, apart) has training made the structure.
A feature's direction is shown among solutions: of a field its row of W_dec, of h_l the mean change d (h_l . v) / dy.
`rayleigh` is v'Hv of that direction at norm 1, H the mean Hessian at the solutions; its null is tr H / d.
Exact but for training and intervals. Cost: 25 trainings of `steps` updates. Absorption, a score of language models'
first letters, has no meaning here.
Source: Gao et al. (2024), Scaling and evaluating sparse autoencoders; Sharkey et al. (2022), Taking features out of
superposition with sparse autoencoders (MMCS).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _energy
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
from backend.figures import Panel, bars, lines, panels, scatter

SOURCES = ("residual field", "noised field", "h1", "h2", "h3")
HELD_OUT = 4  # one in so many
DEAD_AFTER, BATCH = 100, 256
SHOWN = 6  # feature cards at once
DRAWS = 400  # of the bootstrap


class SparseFeaturesParams(Params):
    """The autoencoders."""

    level: int = Field(3, ge=0, le=99, description="annealing level; 0 is the sharpest")
    d_sae: int = Field(64, ge=2, le=4096, description="features in each dictionary")
    k: int = Field(6, ge=1, le=512, description="features active per sample")
    samples: int = Field(2048, ge=64, le=65_536, description="problems that are read; a quarter is held out")
    steps: int = Field(400, ge=5, le=50_000, description="updates of each training, of 256 samples")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of problems, trainings and the bootstrap")


@analysis(
    version=2, group="Energy landscapes",
    title="EXP-003 Sparse features",
    asks="Are there sparse features in what an energy computes, beyond its covariance?",
    subject=Problems, params=SparseFeaturesParams,
    axes=[Axis("source", "0: residual field at solutions; 1: field at noised ones; 2 to 4: h1 to h3"),
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
        Value("untrained", "the same ratio of the same net with untrained weights"),
        Value("untrained_low", "lower end of its 95 % interval"),
        Value("untrained_high", "upper end of its 95 % interval"),
        Value("l0", "features active per held-out sample"),
        Value("dead", "share of features silent for 100 updates"),
        Value("mcc", "mean cosine of directions of two seeds, paired one to one"),
        Value("mcc_null", "the same with the directions that the Gaussian's autoencoder found"),
        Value("kurtosis", "mean excess kurtosis of the coordinates; 0 for a Gaussian"),
        Value("kurtosis_null", "that of as many Gaussian samples"),
        Value("direction", "its direction among solutions", kind="array", dtype="float32"),
        Value("example", "the solution of the held-out sample on which it is most active", kind="array",
              dtype="float32"),
    ],
)  # fmt: skip
def exp003_sparse_features(
    model: Energies, problems: Matrices, params: SparseFeaturesParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (source, feature)."""
    _check(params, model.schedule.levels)
    drawn, tables = problems.more(params.samples, params.seed), []
    bent, fresh = _mean_hessian(model, problems, params.level), untrained(model.net, params.seed)
    for at, what in enumerate(SOURCES):

        def said(done: float, at: int = at, what: str = what) -> None:
            progress((at + done) / len(SOURCES), f"{what}: autoencoders")

        found = _source(_read(model, drawn, params.level, what), params, lambda done: said(0.6 * done))
        null = _read(model, drawn, params.level, what, fresh)
        found["told"] |= _beside(null, params, lambda done: said(0.6 + 0.4 * done))
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
    """Gradients and energies of the samples by this net and an untrained one, a Hessian per problem, 25 trainings."""
    told = card.energy
    _check(params, int(told["levels"]))
    d, width = int(told["d_y"]), int(told["width"])
    per_update = 6.0 * BATCH * params.d_sae * 2 * (2 * d + 3 * width) * 5
    held = params.samples * (int(told["d_x"]) + 3 * d + 16 * width)
    return _energy.work(card, energies=6 * params.samples, gradients=4 * params.samples + 3 * params.d_sae * subject.n,
                        hessians=subject.n, held_numbers=held, operations=params.steps * per_update,
                        solver_seconds=7e-4 * 25 * params.steps)  # fmt: skip


# ---------------------------------------------------------------- what is read


def untrained(net: Any, seed: int) -> Any:
    """Return a net of the same sizes, dtype and device with weights as training begins with, drawn from a seed."""
    import torch

    like = net.fc1.weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(net)(net.d_x, net.d_y, net.width)
    return fresh.to(like.device, like.dtype).requires_grad_(False)


def _read(model: Energies, drawn: Matrices, k: int, what: str, net: Any = None) -> Any:
    """Return the samples [n, d_in] of a source in the model's dtype, of the model's net or of another."""
    net = net or model.net
    level = model.level(k, len(drawn.y))
    y = float(model.schedule.abar[k]) ** 0.5 * drawn.y
    if what == "noised field":
        y = _energy.noised(model, drawn, k)
    if what.endswith("field"):
        return net.gradient(drawn.x, y, level).detach()
    return _hidden(net, drawn.x, y, level, what).detach()


def _hidden(net: Any, x: Any, y: Any, level: Any, what: str) -> Any:
    import torch

    return torch.nn.functional.silu(net.run(x, y, level).z[int(what[1]) - 1])


def _mean_hessian(model: Energies, problems: Matrices, k: int) -> Any:
    """Return the mean of d2E/dy2 at the solutions of level k: [d, d] in float64."""
    y = float(model.schedule.abar[k]) ** 0.5 * problems.y
    found = [h.double().sum(0) for h in _energy.hessians(model, problems, k, y)]
    return sum(found) / len(y)


# ---------------------------------------------------------------- autoencoders of one source


def _parts(data: Any, seed: int) -> tuple[Any, Any, Any, Any]:
    """Return (what is trained on, what is held out, the Gaussian's of both), at a mean square of 1 per coordinate."""
    import torch

    from backend.maths import sae

    data = data.to(torch.promote_types(data.dtype, torch.float32))
    data = data / (data - data.mean(0)).square().mean().sqrt().clamp_min(1e-30)
    held, train = data[::HELD_OUT], data[torch.arange(len(data), device=data.device) % HELD_OUT != 0]
    dice = torch.Generator().manual_seed(seed + 7)
    null, null_held = (sae.gaussian_like(train, len(part), dice) for part in (train, held))
    return train, held, null, null_held


def _fitted(samples: list[tuple[Any, int]], params: SparseFeaturesParams, said: Any) -> list[tuple[Any, Any]]:
    """Train an autoencoder on each of (samples [n, d_in], seed); return each with how long features were silent."""
    from backend.maths import sae

    found = []
    for i, (part, seed) in enumerate(samples):

        def updated(step: int, i: int = i) -> None:
            said((i + step / params.steps) / len(samples))

        found.append(sae.fit(part, params.d_sae, params.k, params.steps, 3 * params.seed + seed, batch=BATCH,
                             dead_after=DEAD_AFTER, said=updated))  # fmt: skip
    return found


def _source(data: Any, params: SparseFeaturesParams, said: Any) -> dict[str, Any]:
    """Train two seeds and the null; return the first autoencoder and what is said of the source."""
    import torch

    from backend.maths import sae

    train, held, null, null_held = _parts(data, params.seed)
    fitted = _fitted([(train, 0), (train, 1), (null, 2)], params, said)
    (first, silent), (second, _), (other, _) = fitted
    _, cosine = sae.match(first.W_dec, second.W_dec)
    fvu, null_fvu = unexplained(first, held, params.seed), unexplained(other, null_held, params.seed)
    whole = [torch.cat(both) for both in ((train, held), (null, null_held))]
    told = {"fvu": fvu[0], "fvu_low": fvu[1], "fvu_high": fvu[2], "null_fvu": null_fvu[0], "null_low": null_fvu[1],
            "null_high": null_fvu[2], **_ratio("ratio", first, held, other, null_held, params.seed),
            "l0": sae.measures(first, held)["l0"],
            "dead": float((silent >= DEAD_AFTER).double().mean()), "mcc": float(cosine.mean()),
            "mcc_null": float(sae.match(first.W_dec, other.W_dec)[1].mean()), "kurtosis": kurtosis(whole[0]),
            "kurtosis_null": kurtosis(whole[1])}  # fmt: skip
    return {"sae": first, "held": held, "cosine": cosine.numpy(), "told": told}


def _beside(data: Any, params: SparseFeaturesParams, said: Any) -> dict[str, float]:
    """Return how far the source of an untrained net lies below its own Gaussian, by autoencoders trained alike."""
    train, held, null, null_held = _parts(data, params.seed)
    (one, _), (other, _) = _fitted([(train, 0), (null, 2)], params, said)
    return _ratio("untrained", one, held, other, null_held, params.seed)


def _ratio(name: str, one: Any, held: Any, other: Any, null_held: Any, seed: int) -> dict[str, float]:
    """Return the FVU over the Gaussian's as column `name`, with its 95 % interval; both are resampled by themselves."""
    (fvu, drawn), (null, null_drawn) = _resampled(one, held, seed), _resampled(other, null_held, seed + 1)
    low, high = np.quantile(drawn / np.maximum(null_drawn, 1e-300), [0.025, 0.975])
    return {name: fvu / max(null, 1e-300), f"{name}_low": float(low), f"{name}_high": float(high)}


def unexplained(sae: Any, x: Any, seed: int) -> tuple[float, float, float]:
    """Return the FVU on samples [n, d_in] with its 95 % bootstrap interval over them."""
    fvu, drawn = _resampled(sae, x, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return fvu, float(low), float(high)


def _resampled(sae: Any, x: Any, seed: int) -> tuple[float, np.ndarray]:
    """Return (the FVU on samples [n, d_in], that of DRAWS resamples of them)."""
    left = (x - sae(x)).double().square().sum(1).cpu().numpy()
    size = np.maximum((x - x.mean(0)).double().square().sum(1).cpu().numpy(), 1e-300)
    drawn = np.random.default_rng(seed).integers(len(left), size=(DRAWS, len(left)))
    return float(left.sum() / size.sum()), left[drawn].sum(1) / size[drawn].sum(1)


def kurtosis(x: Any) -> float:
    """Return the mean over coordinates of E z^4 / (E z^2)^2 - 3, of samples [n, d]; those that never move left out."""
    z = (x - x.mean(0)).double()
    square = z.square().mean(0)
    moved = square > 1e-12 * square.max()
    return float((z.pow(4).mean(0)[moved] / square[moved].square()).mean() - 3) if bool(moved.any()) else 0.0


def _table(
    model: Energies, problems: Matrices, drawn: Matrices, found: dict[str, Any], bent: Any,
    params: SparseFeaturesParams, at: int,
) -> pd.DataFrame:  # fmt: skip
    """Return the rows of one source, the most often active feature first."""
    sae, features = found["sae"], found["sae"].encode(found["held"])
    density = (features > 0).double().mean(0).cpu().numpy()
    order = np.argsort(-density, kind="stable")
    ways = directions(model, problems, params.level, SOURCES[at], sae.W_dec).double()
    unit = ways / ways.norm(dim=1, keepdim=True).clamp_min(1e-300)
    rayleigh = ((unit @ bent) * unit).sum(1).cpu().numpy()
    examples = drawn.y[::HELD_OUT][features.argmax(0)].float().cpu().numpy()
    return pd.DataFrame({
        "source": at, "feature": np.arange(len(order)), "what": SOURCES[at], "density": density[order],
        "cosine": found["cosine"][order], "rayleigh": rayleigh[order],
        "rayleigh_null": float(bent.trace()) / len(bent), **found["told"],
        "direction": list(unit.float().cpu().numpy()[order]), "example": list(examples[order]),
    })  # fmt: skip


def directions(model: Energies, problems: Matrices, k: int, what: str, rows: Any) -> Any:
    """Return the directions of features among solutions [feature, d_y]: of a field as they are, of h_l the mean of
    d (h_l . v) / dy over the problems' solutions."""
    import torch

    if what.endswith("field"):
        return rows
    with torch.enable_grad():
        y = (float(model.schedule.abar[k]) ** 0.5 * problems.y).detach().requires_grad_()
        h = _hidden(model.net, problems.x, y, model.level(k, len(y)), what)
        said = (h @ rows.to(h).mT).mean(0)
        found = [torch.autograd.grad(s, y, retain_graph=True)[0].sum(0) for s in said]
    return torch.stack(found)


# ---------------------------------------------------------------- what it says of what was expected


@exp003_sparse_features.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Which sources has training given more structure than their covariance, and do two seeds find the same?"""
    per = table.groupby("what", sort=False).first()
    claims = [_structure(what, row) for what, row in per.iterrows()]
    return [*claims, _agree(per)]


def _structure(what: Any, row: Any) -> Claim:
    noised = what == "noised field"
    named = f"{what} sparse features" + (" (the original study reads this one)" if noised else "")
    learnt = row.fvu_high < row.null_low and row.ratio_high < row.untrained_low
    return Claim(f"training has given the {named}",
                 f"a Gaussian of its covariance: FVU {row.null_fvu:.3f} [{row.null_low:.3f}, {row.null_high:.3f}]; "
                 f"with untrained weights FVU is {_times(row, 'untrained')} of the Gaussian's",
                 f"FVU {row.fvu:.3f} [{row.fvu_low:.3f}, {row.fvu_high:.3f}], {_times(row, 'ratio')} of the Gaussian's"
                 f", excess kurtosis {row['kurtosis']:.2f}",
                 "holds" if learnt else "met by its null")  # fmt: skip


def _times(row: Any, name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _agree(per: pd.DataFrame) -> Claim:
    words = ", ".join(f"{w} {r.mcc:.2f}" for w, r in per.iterrows())
    null = ", ".join(f"{w} {r.mcc_null:.2f}" for w, r in per.iterrows())
    best = float((per.mcc - per.mcc_null).max())
    return Claim("two seeds find the same features (MCC of .8 or more in some source)",
                 f"directions that the Gaussian's autoencoder finds: {null}", words,
                 "holds" if (per.mcc >= 0.8).any() and best > 0.1 else "fails")  # fmt: skip


# ---------------------------------------------------------------- figures


@exp003_sparse_features.figure("Variance unexplained, beside a Gaussian of the same covariance")
def unexplained_variance(table: pd.DataFrame, view: View) -> Any:
    """With 95 % intervals; where the bar is as high as the grey one there is no structure beyond correlations.
    Nets with untrained weights may lie below their own Gaussian as well: hover."""
    per = table.groupby("what", sort=False).first()
    hover = [f"{w}: FVU {r.fvu:.3f}, null {r.null_fvu:.3f}: {_times(r, 'ratio')} of it, with untrained weights "
             f"{_times(r, 'untrained')}; L0 {r.l0:.1f}, dead {r.dead:.0%}, MCC {r.mcc:.2f} (null "
             f"{r.mcc_null:.2f}), excess kurtosis {r['kurtosis']:.2f}" for w, r in per.iterrows()]  # fmt: skip
    return bars([str(w) for w in per.index], per.fvu, errors=per.fvu_high - per.fvu, errors_below=per.fvu - per.fvu_low,
                null=per.null_fvu, x_title="source", y_title="fraction of variance unexplained", hover=hover,
                names_of=("data", "Gaussian of its covariance"))  # fmt: skip


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
    return figure.update_xaxes(type="log", exponentformat="power")


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
    return panels(maps, x_title="column", y_title="row", columns=3)


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
    from backend.figures import Line

    rows = table[table.source == int(view.chosen.get("source", 0))].head(SHOWN)
    curves = []
    for row in rows.itertuples():
        if "direction" in rows and row.direction is not None:
            values = np.linalg.svd(_square(row.direction), compute_uv=False)
            curves.append(Line(f"feature {row.feature}", np.arange(1, len(values) + 1), values))
    return lines(curves, x_title="rank, largest first", y_title="singular value of the unit direction")
