"""EXP-001: how does the energy bend at every annealing level, and is it more than the schedule?

The exact Hessian d2E/dy2 at the noised solutions of every problem and level (level 0 is the sharpest), by each layer's
Jacobian and bend, not by finite differences. An ideal energy has H_k = (1/sigma_k)(1 - (abar_k/sigma_k^2) Cov[y0 | x,
y_t]): where x decides y0 every eigenvalue is exactly 1/sigma_k, so raw eigenvalues "sharpen with annealing" without any
learning. Looked at are therefore sigma_k lambda (1 where nothing is uncertain), the condition number from both ends
(absent where the smallest is not positive), the participation ratio (sum lambda)^2 / sum lambda^2, the gap between the
two largest, and the error that the trace claims, (sigma^2/abar)(1 - sigma tr H / d), beside the true squared error of
the guess at that level.

Ground truth: 1/sigma_k for inverse and addition, the closed form of the Gaussian task. Null: the schedule's line.
Trivial baseline of the claimed error: the same for every problem (its rank correlation with the true one is 0).
Exact in the dtype of the model; the spread over problems is what the figures' bands show.
Source: Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion; Efron (2011), Tweedie's
formula and selection bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from backend.analyses import _energy
from backend.contract import (
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
from backend.figures import NULL_GREY, Line, Ridge, density, lines, marked, ridges, scatter

TOLD = (0, 4)  # levels of which is said whether the trace tells the error
BEYOND = 1.1  # growth of sigma times the largest eigenvalue that the schedule does not explain
TOLERANCE = 0.1  # of the ratio of claimed to true error
HALF = 0.5  # a rank correlation that would be worth something
DRAWS = 500
LEVEL_SECONDS, PROBLEM_SECONDS = 0.03, 1e-4  # of tables and small solvers, on a CPU core that others use as well
OPEN: Any = "cannot be tested here"


class HessianParams(Params):
    """Nothing to choose: problems, seed and distribution say it all."""


@analysis(
    version=1, group="Energy landscapes",
    title="EXP-001 Hessian over levels", asks="How does the energy bend at every level, beyond what the schedule does?",
    subject=Problems, params=HessianParams,
    axes=[_energy.LEVEL, _energy.PROBLEM],
    values=[
        Value("lambda_min", "smallest eigenvalue of d2E/dy2"),
        Value("lambda_max", "largest eigenvalue"),
        Value("scaled_min", "sigma_k times the smallest eigenvalue; 1 for an ideal energy without uncertainty"),
        Value("scaled_max", "sigma_k times the largest eigenvalue"),
        Value("ideal_min", "smallest eigenvalue of the ideal energy, absent where no closed form is known"),
        Value("ideal_max", "largest eigenvalue of the ideal energy"),
        Value("condition", "lambda_max / lambda_min; absent where lambda_min is not positive"),
        Value("participation_ratio", "(sum lambda)^2 / sum lambda^2, of d at most", "dimensions"),
        Value("gap", "largest minus second largest eigenvalue"),
        Value("implied_mse", "squared error per entry that the trace claims, without knowing the solution"),
        Value("true_mse", "squared error per entry of the guess at this level"),
        Value("spectrum", "all eigenvalues, ascending", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def exp001_hessian(model: Energies, problems: Matrices, params: HessianParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (level, problem)."""
    tables = []
    for k in range(model.schedule.levels):
        tables.append(_level(model, problems, k))
        progress((k + 1) / model.schedule.levels, f"level {k}")
    return pd.concat(tables, ignore_index=True)


@exp001_hessian.costs
def work(card: ModelCard, subject: Problems, params: HessianParams) -> Work:
    """A gradient and a Hessian per problem and level."""
    levels, d = int(card.energy["levels"]), int(card.energy["d_y"])
    solve = 10 * float(d) ** 3 * subject.n * levels  # symmetric eigenvalues
    return _energy.work(card, gradients=subject.n * levels, hessians=subject.n * levels, operations=solve,
                        solver_seconds=levels * (LEVEL_SECONDS + PROBLEM_SECONDS * subject.n))  # fmt: skip


def _level(model: Energies, problems: Matrices, k: int) -> pd.DataFrame:
    from backend.maths import annealing

    sigma, abar = float(model.schedule.sigma[k]), model.schedule.abar[k]
    found = _energy.hessians(model, problems, k)
    spectra = np.concatenate([np.linalg.eigvalsh(h.double().cpu().numpy()) for h in found])
    low, high, d = spectra[:, 0], spectra[:, -1], spectra.shape[1]
    ideal = _energy.ideal_eigenvalues(model, problems.task, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = np.where(low > 0, high / low, np.nan)
        ratio = spectra.sum(1) ** 2 / (spectra**2).sum(1)
    return pd.DataFrame({
        "level": k, "problem": np.arange(len(spectra)), "lambda_min": low, "lambda_max": high,
        "scaled_min": sigma * low, "scaled_max": sigma * high,
        "ideal_min": np.nan if ideal is None else ideal[0], "ideal_max": np.nan if ideal is None else ideal[-1],
        "condition": condition, "participation_ratio": ratio, "gap": high - spectra[:, -2] if d > 1 else 0.0,
        "implied_mse": annealing.implied_mse(spectra.sum(1), d, abar),
        "true_mse": _energy.squared_error(_energy.guess(model, problems, k), problems),
        "spectrum": list(spectra.astype(np.float32)),
    })  # fmt: skip


# ---------------------------------------------------------------- what it says of what was expected


@exp001_hessian.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Does the spectrum progress beyond the schedule, and does the trace know the error?"""
    told = [k for k in TOLD if k in set(table.level)]
    return [_sharpens(table), *(_tells(table, k) for k in told), *(_ranks_problems(table, k) for k in told[:1])]


def _sharpens(table: pd.DataFrame) -> Claim:
    median = table.groupby("level")[["lambda_max", "scaled_max"]].median()
    raw, scaled = (median[c].iloc[0] / median[c].iloc[-1] for c in ("lambda_max", "scaled_max"))
    return Claim(
        "the eigenspectrum sharpens with annealing",
        f"1/sigma alone grows {raw / scaled:.2f}-fold from the smoothest to the sharpest level",
        f"the largest eigenvalue grows {raw:.2f}-fold, sigma times it {scaled:.2f}-fold",
        "fails" if raw <= BEYOND else "holds" if scaled > BEYOND else "met by its null")  # fmt: skip


def _tells(table: pd.DataFrame, k: int) -> Claim:
    """The claimed over the true error of one level, means over problems, with a bootstrap interval over them.

    The null meets the criterion where its own interval does not rule that out.
    """
    from backend.maths import ranks

    rows = table[table.level == k]
    errors, flat = rows[["implied_mse", "true_mse"]].to_numpy(), _flat(rows)
    draws = ranks.bootstrap_means(errors, DRAWS, 0)
    low, high = (float(v) for v in ranks.interval(draws[:, 0] / draws[:, 1]))
    claimed, true = errors.mean(0)
    verdict = _judged(low, high, not _outside(*(float(v) for v in ranks.interval(flat / draws[:, 1]))))
    return Claim(
        f"the trace tells the mean error at level {k} without a solution (ratio within {TOLERANCE:.0%} of 1)",
        f"an energy without any curvature claims {flat:.3g}: ratio {flat / true:.2f}",
        f"claimed / true error {claimed / true:.2f} [{low:.2f}, {high:.2f}], true error {true:.3g}; "
        f"{(errors[:, 0] < 0).mean():.0%} of the {len(errors)} problems get a claim below 0"
        + "; more problems would tell" * (verdict == OPEN), verdict)  # fmt: skip


def _judged(low: float, high: float, flat: bool) -> Any:
    """Return the verdict of a ratio's interval; `flat`: an energy without curvature may claim as well."""
    if _outside(low, high):
        return "fails"
    if low < 1 - TOLERANCE or high > 1 + TOLERANCE:
        return OPEN
    return "met by its null" if flat else "holds"


def _outside(low: float, high: float) -> bool:
    """Say whether all of an interval lies further from 1 than the tolerance."""
    return high < 1 - TOLERANCE or low > 1 + TOLERANCE


def _flat(rows: pd.DataFrame) -> float:
    """Return sigma^2 / abar of one level: what a trace of 0 claims."""
    sigma = float((rows.scaled_max / rows.lambda_max).iloc[0])
    return sigma**2 / (1 - sigma**2)


def _ranks_problems(table: pd.DataFrame, k: int) -> Claim:
    """Whether the claimed errors order the problems as the true ones do, with a bootstrap interval over problems."""
    from backend.maths import ranks

    errors = table[table.level == k][["implied_mse", "true_mse"]].to_numpy()
    chosen = np.random.default_rng(0).integers(len(errors), size=(DRAWS, len(errors)))
    drawn = np.nan_to_num(ranks.spearman(errors[chosen, 0], errors[chosen, 1]))  # one claim for all orders nothing
    low, high = (float(v) for v in ranks.interval(drawn))
    here = float(np.nan_to_num(ranks.spearman(*errors.T)))
    return Claim(
        f"the trace tells at level {k} which problems are answered worse",
        "the same claim for every problem: rank correlation 0",
        f"rank correlation {here:.2f} [{low:.2f}, {high:.2f}] over {len(errors)} problems",
        "holds" if low > 0 else "fails" if high < HALF else "cannot be tested here")  # fmt: skip


# ---------------------------------------------------------------- figures

GRID = 300  # points of a density


@exp001_hessian.figure("All eigenvalues, a ridge per level, and 1/sigma", whole=True, marks=["level"])
def ridgeline(table: pd.DataFrame, view: View) -> Any:
    """Densities over all problems, each on a scale of its own; dashed: where the schedule alone puts them."""
    if "spectrum" not in table or table.spectrum.isna().any():  # the page asked without arrays
        return lines([], x_title="eigenvalue", y_title="annealing level")
    found = {int(str(k)): np.concatenate([np.asarray(s, float) for s in rows.spectrum])
             for k, rows in table.groupby("level")}  # fmt: skip
    ends = [f(np.quantile(v, q) for v in found.values()) for f, q in ((min, 0.002), (max, 0.998))]
    pad = 0.05 * (ends[1] - ends[0]) or 1.0
    grid = np.linspace(ends[0] - pad, ends[1] + pad, GRID)
    rows = [Ridge(str(k), grid, density(v, grid, (grid[-1] - grid[0]) / 150), f"level {k}: {v.min():.3g} to "
                  f"{v.max():.3g}, median {np.median(v):.3g}") for k, v in found.items()]  # fmt: skip
    figure = ridges(rows, x_title="eigenvalue of the Hessian", y_title="annealing level (0 sharpest)", each=True,
                    chosen=str(view.chosen["level"]) if "level" in view.chosen else None)  # fmt: skip
    per = table.groupby("level").first()
    figure.add_scatter(x=per.lambda_max / per.scaled_max, y=np.arange(len(per)), mode="lines+markers", name="1/sigma",
                       line={"color": "#555555", "width": 1.5, "dash": "dash"}, marker={"symbol": "line-ns-open"},
                       hovertemplate="1/sigma: %{x:.3g}<extra></extra>")  # fmt: skip
    return figure


def _bands(table: pd.DataFrame, name: str, words: str, colour: str = "") -> Line:
    grouped = table.groupby("level")[name]
    low, mid, high = (grouped.quantile(q) for q in (0.1, 0.5, 0.9))
    return Line(words, mid.index.to_numpy(), mid.to_numpy(), low.to_numpy(), high.to_numpy(), colour)


@exp001_hessian.figure("sigma times the eigenvalues: 1 is the schedule alone", marks=["level"])
def scaled(table: pd.DataFrame, view: View) -> Any:
    """Both ends over levels, median and the middle 80 % of the problems, beside the ideal energy's."""
    curves = [_bands(table, "scaled_max", "largest"), _bands(table, "scaled_min", "smallest")]
    per = table.groupby("level").first()
    sigma = per.scaled_max / per.lambda_max
    for end, words in (("ideal_max", "ideal, largest"), ("ideal_min", "ideal, smallest")):
        if per[end].notna().all():
            curves.append(Line(words, per.index.to_numpy(), (sigma * per[end]).to_numpy(), colour=NULL_GREY))
    return marked(lines(curves, x_title="annealing level (0 sharpest)", y_title="sigma x eigenvalue"), view.chosen)


@exp001_hessian.figure("Raw eigenvalues beside 1/sigma", marks=["level"])
def raw(table: pd.DataFrame, view: View) -> Any:
    """What the original study plots, with the line that the schedule gives by itself."""
    per = table.groupby("level").first()
    schedule = Line("1/sigma", per.index.to_numpy(), (per.lambda_max / per.scaled_max).to_numpy(), colour=NULL_GREY)
    curves = [_bands(table, "lambda_max", "largest"), _bands(table, "lambda_min", "smallest"), schedule]
    figure = lines(curves, x_title="annealing level (0 sharpest)", y_title="eigenvalue of the Hessian")
    return marked(figure, view.chosen)


@exp001_hessian.figure("Condition number", marks=["level"])
def condition(table: pd.DataFrame, view: View) -> Any:
    """Over the problems whose smallest eigenvalue is positive."""
    curve, left = _bands(table, "condition", "condition number"), table.condition.isna()
    gaps = [str(k) for k, none in left.groupby(table.level).all().items() if none]
    said = f"<br>left out: {left.mean():.0%} (smallest eigenvalue not positive)" if left.any() else ""
    said += f"<br>at level {', '.join(gaps)} every one" if gaps else ""
    figure = lines([curve], x_title=f"annealing level (0 sharpest){said}", y_title="largest / smallest eigenvalue")
    return marked(figure, view.chosen)


@exp001_hessian.figure("Error claimed by the trace against the true one", choose=["level"])
def implied(table: pd.DataFrame, view: View) -> Any:
    """A point per problem of one level; on the diagonal the trace is right."""
    k = int(view.chosen.get("level", table.level.min()))
    rows = table[table.level == k]
    figure = scatter(rows.true_mse, rows.implied_mse, x_title="true squared error per entry",
                     y_title="squared error that tr H claims",
                     hover=[f"problem {p}: claims {a:.3g}, is {b:.3g}" for p, a, b in
                            zip(rows.problem, rows.implied_mse, rows.true_mse, strict=True)])  # fmt: skip
    ends = [float(min(rows.true_mse.min(), rows.implied_mse.min())), float(rows.true_mse.max())]
    return figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", hoverinfo="skip",
                              line={"color": NULL_GREY, "dash": "dot", "width": 1})  # fmt: skip


@exp001_hessian.figure("All eigenvalues of the problems, times sigma", choose=["level"])
def spectrum(table: pd.DataFrame, view: View) -> Any:
    """Median and the middle 80 % of the problems at each rank of one level."""
    k = int(view.chosen.get("level", table.level.min()))
    rows = table[table.level == k]
    sigma = float((rows.scaled_max / rows.lambda_max).iloc[0])
    if "spectrum" in rows and rows.spectrum.notna().all():
        found = sigma * np.stack([np.asarray(s, float) for s in rows.spectrum])[:, ::-1]
    else:  # the page asked without arrays
        found = np.stack([rows.scaled_max, rows.scaled_min], 1)
    low, mid, high = np.quantile(found, (0.1, 0.5, 0.9), axis=0)
    at = np.arange(1, found.shape[1] + 1)
    schedule = Line("1 (the schedule)", at, np.ones(len(at)), colour=NULL_GREY)
    return lines([Line("eigenvalues", at, mid, low, high), schedule],
                 x_title="rank, largest first", y_title="sigma x eigenvalue")  # fmt: skip
