"""EXP-006: do the singular vectors of the energy's gradient, read as a matrix, know the solution, or only the noise?

At y_t = sqrt(abar_k) y* + delta, delta = size sigma_k e, the gradient g is read as an n x n matrix. Alignment of its
r leading left singular vectors U_r with those U*_r of another matrix: |U_r' U*_r|_F^2 / r, 1 where the spans agree, r/n
in the mean for random ones. The other matrix is delta, or the solution y*.

Ground truth: where x decides y the ideal gradient is delta / sigma, so the alignment with delta is exactly 1 at every r
and level, and says only that the noise was told, which the gradient is trained to be. Null: of the alignment with the
solution, that of the bare noise with it; of the one with delta, another problem's noise; in closed form r/n (r = n is
trivial and left out). Trivial baseline: the noise itself (1). Beyond the rank of y* its singular vectors are arbitrary:
such problems are left out there, `told` says how many stay.
Exact in the dtype of the model; means over problems with bootstrap intervals. The best of all levels is judged by wider
ones, which hold at all levels together (Bonferroni: 95 % corrected for as many looks as there are levels).
Source: Bjorck and Golub (1973), Numerical methods for computing angles between linear subspaces (sum of cos^2);
Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _energy, _low_rank
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
from backend.errors import Unfit
from backend.figures import NULL_GREY, Line, Panel, lines, marked, panels

Tensor = Any
DRAWS = 2000  # of the bootstrap over problems: ten looks ask for its .0025 quantile
ALIGNED = 0.5  # from which alignment on a vector is that of another: more of it lies along that than across
NEGLIGIBLE = 1e-4  # of the largest singular value: below it the solution has no such rank
#: {column: with what the gradient, or the noise, is compared}
KINDS = {
    "delta": "the gradient with the perturbation delta",
    "solution": "the gradient with the solution y*",
    "noise_solution": "the bare noise with the solution: the null of the gradient's",
    "other": "the gradient with another problem's noise: the null of the gradient's with delta",
}


class AlignmentParams(Params):
    """How far from the solution the gradient is taken."""

    size: float = Field(1.0, ge=0.05, le=5.0, description="size of delta in units of the level's sigma; 1 as trained")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the bootstrap")


def _values() -> list[Value]:
    ends = {"": "mean over problems", "_low": "lower end of the 95 % interval", "_high": "upper end"}
    found = [Value(n + e, f"alignment of {words}; {more}") for n, words in KINDS.items() for e, more in ends.items()]
    looks = "of the interval that holds at all levels together (Bonferroni)"
    return [*found, Value("solution_least", f"alignment of {KINDS['solution']}; lower end {looks}"),
            Value("noise_solution_most", f"alignment of {KINDS['noise_solution']}; upper end {looks}")]  # fmt: skip


@analysis(
    version=2, group="Energy landscapes",
    title="EXP-006 Singular vectors of the score",
    asks="Do the singular vectors of the energy's gradient know the solution, or only the noise?",
    subject=Problems, params=AlignmentParams,
    axes=[_energy.LEVEL, Axis("rank", "r: how many leading singular vectors, from 1")],
    values=[*_values(), Value("random", "r/n: the mean alignment of random subspaces"),
            Value("told", "problems whose solution has rank r at least", kind="int")],
)  # fmt: skip
def exp006_svd_alignment(
    model: Energies, problems: Matrices, params: AlignmentParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (level, rank)."""
    _checked(model.card)
    tables = []
    for k in range(model.schedule.levels):
        tables.append(_level(model, problems, params, k))
        progress((k + 1) / model.schedule.levels, f"level {k}")
    return pd.concat(tables, ignore_index=True)


@exp006_svd_alignment.costs
def work(card: ModelCard, subject: Problems, params: AlignmentParams) -> Work:
    """A gradient per problem and level; singular vectors of four matrices each."""
    levels, side = int(card.energy["levels"]), _checked(card)
    n = subject.n * levels
    return _energy.work(card, gradients=n, operations=100.0 * side**3 * n, solver_seconds=0.05 * levels)


def _checked(card: ModelCard) -> int:
    side = int(card.energy["side"])
    if side < 2:
        raise Unfit(
            "Singular vectors", "the matrices are single numbers", "Choose a model of matrices of 2 rows or more"
        )
    return side


def _level(model: Energies, problems: Matrices, params: AlignmentParams, k: int) -> pd.DataFrame:
    n, side = len(problems.y), problems.side
    delta = params.size * float(model.schedule.sigma[k]) * problems.noise
    y = float(model.schedule.abar[k]) ** 0.5 * problems.y + delta
    slope = model.net.gradient(problems.x, y, model.level(k, n)).detach()
    (score, _), (noise, _), (solution, ranks) = (_vectors(flat, side) for flat in (slope, delta, problems.y))
    found = {
        "delta": _alignments(score, noise), "solution": _alignments(score, solution),
        "noise_solution": _alignments(noise, solution), "other": _alignments(score, noise.roll(-1, 0)),
    }  # fmt: skip
    columns: dict[str, np.ndarray] = {}
    for name, values in found.items():
        known = np.where(ranks, values, np.nan) if "solution" in name else values
        ends = _means(known, params.seed, model.schedule.levels)
        columns |= dict(zip((f"{name}{e}" for e in ("", "_low", "_high", "_least", "_most")), ends, strict=True))
    at = np.arange(1, side)
    declared = {v.name: columns[v.name] for v in _values()}
    return pd.DataFrame({"level": k, "rank": at, **declared, "random": at / side, "told": ranks.sum(0)})


def _vectors(flat: Tensor, side: int) -> tuple[Tensor, np.ndarray]:
    """Return the left singular vectors [n, side, side], and whether each has rank r [n, side - 1]."""
    import torch

    u, s, _ = torch.linalg.svd(_low_rank.as_matrices(flat.double(), side))
    return u, (s[:, :-1] > NEGLIGIBLE * s[:, :1]).cpu().numpy()


def _alignments(first: Tensor, second: Tensor) -> np.ndarray:
    """Return |U_r' V_r|_F^2 / r for r = 1 .. side - 1, [n, side - 1]: sums over the leading blocks."""
    import torch

    blocks = (first.mT @ second).square().cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)[:, :-1]
    return (blocks / torch.arange(1, first.shape[-1], device=blocks.device)).cpu().numpy()


def _means(values: np.ndarray, seed: int, looks: int) -> tuple[np.ndarray, ...]:
    """Return (mean, low, high, least, most) over problems [n, r], the last two the ends corrected for so many looks;
    NaN values are left out, none left gives NaN."""
    from backend.maths.ranks import LEVEL, bootstrap_means, interval

    mean, low, high, least, most = (np.full(values.shape[1], np.nan) for _ in range(5))
    some = ~np.isnan(values).all(0)
    known = ~np.isnan(values[:, some])
    filled = np.where(known, values[:, some], 0.0)
    sums = bootstrap_means(np.stack([filled, known], 1), DRAWS, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)
    low[some], high[some] = interval(drawn)
    least[some], most[some] = interval(drawn, 1 - (1 - LEVEL) / looks)
    mean[some] = filled.sum(0) / known.sum(0)
    return mean, low, high, least, most


# ---------------------------------------------------------------- what it says of what was expected


@exp006_svd_alignment.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Does the leading singular vector know the solution, and does it know more than the noise?"""
    one = table[table["rank"] == 1]
    sharp, best = one.sort_values("level").iloc[0], one.sort_values("solution", na_position="first").iloc[-1]
    chance = max(ALIGNED, _low_rank.MORE * float(best.random))
    return [
        Claim(f"the score's leading singular vector is that of the solution (alignment above {ALIGNED} and that of the "
              "bare noise, at the best of all levels)",
              f"random directions give {best.random:.2f}, the bare noise {_said(best, 'noise_solution')}, "
              f"{best.noise_solution_most:.3g} at most over {len(one)} levels",
              f"level {best.level:.0f}: {_said(best, 'solution')}, {best.solution_least:.3g} at least over {len(one)} "
              f"levels; level {sharp.level:.0f}: {_said(sharp, 'solution')}",
              "holds" if best.solution_least > max(chance, best.noise_solution_most) else "fails"),
        Claim(f"the score's leading singular vector is that of the perturbation to be taken off (alignment above "
              f"{ALIGNED}, level 0)",
              "a gradient that is the noise it was trained to be gives 1, without any structure; "
              f"random directions {sharp.random:.2f}, another problem's noise {_said(sharp, 'other')}",
              _said(sharp, "delta"),
              "met by its null" if sharp.delta_low > max(chance, sharp.other_high) else "fails"),
    ]  # fmt: skip


def _said(row: Any, name: str) -> str:
    return _low_rank.spanned(row[f"{name}_low"], row[name], row[f"{name}_high"])


# ---------------------------------------------------------------- figures


SHORT = {"delta": "score, perturbation", "solution": "score, solution", "noise_solution": "noise, solution (null)",
         "other": "score, another's noise (null)"}  # fmt: skip


@exp006_svd_alignment.figure("Alignment above chance, (a - r/n) / (1 - r/n): 1 agrees, 0 is random; the line encloses "
                             "what lies above random directions by its 95 % interval")  # fmt: skip
def maps(table: pd.DataFrame, view: View) -> Any:
    """Levels down, leading singular vectors across; no column where the solutions have no such rank."""
    wide = {}
    for name, words in list(SHORT.items())[:3]:
        above = table.assign(above=(table[name] - table.random) / (1 - table.random))
        known = above.pivot(index="level", columns="rank", values="above").dropna(axis="columns", how="all")
        if known.shape[1]:
            sure = table.assign(sure=table[f"{name}_low"] > table.random).pivot(
                index="level", columns="rank", values="sure")  # fmt: skip
            wide[words] = Panel(known.to_numpy(), (-1.0, 1.0), diverging=True, outlined=sure[known.columns].to_numpy())
    figure = panels(wide, x_title="r, from 1", y_title="level (0 sharpest)", columns=3, value="above chance")
    ranks = sorted(table["rank"].unique())
    return figure.update_xaxes(ticktext=[str(r) for r in ranks], tickvals=list(range(len(ranks))))


def _curves(rows: pd.DataFrame, at: str) -> list[Line]:
    """Return the four alignments with their intervals over a column; what is nowhere known is left out."""
    x = rows[at].to_numpy()
    return [Line(words, x, rows[n].to_numpy(), rows[f"{n}_low"].to_numpy(), rows[f"{n}_high"].to_numpy(),
                 NULL_GREY if words.endswith("(null)") else "")
            for n, words in SHORT.items() if rows[n].notna().any()]  # fmt: skip


@exp006_svd_alignment.figure("Alignment of the first singular vector over levels", marks=["level"])
def first(table: pd.DataFrame, view: View) -> Any:
    """r = 1: means over problems with their intervals, beside 1/n."""
    rows = table[table["rank"] == 1]
    random = _low_rank.level_line(table, float(rows.random.iloc[0]), "random: 1/n")
    return marked(lines([*_curves(rows, "level"), random], x_title=_low_rank.X_LEVEL, y_title="alignment"), view.chosen)


@exp006_svd_alignment.figure("Alignment of the r leading singular vectors", choose=["level"])
def curves(table: pd.DataFrame, view: View) -> Any:
    """Means over problems with their intervals at one level, beside r/n."""
    rows = table[table.level == int(view.chosen.get("level", table.level.min()))]
    at = rows["rank"].to_numpy()
    drawn = [*_curves(rows, "rank"), Line("random: r/n", at, rows.random.to_numpy(), colour=NULL_GREY)]
    figure = lines(drawn, x_title="r: leading singular vectors", y_title="alignment")
    return figure.update_xaxes(dtick=max(1, len(at) // 10))
