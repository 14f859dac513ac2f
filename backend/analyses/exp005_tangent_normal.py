"""EXP-005: does the energy bend more across the manifold of rank-r matrices than along it, dimension by dimension?

At Y = the solution the space of matrices splits into what keeps rank r to first order (tangent, r (2n - r) dimensions)
and what does not (normal, (n - r)^2). Looked at is rho = (tr P_N H / dim N) / (tr P_T H / dim T) of the exact Hessian,
1 where the energy bends alike everywhere. The original study asks for |P_N g| / |P_T g| of the gradient g to be much
larger than 1; white noise meets that by counting dimensions, sqrt(dim N / dim T), so that line and the ratio of the
very noise that was added are drawn beside it.

Ground truth: isotropic curvature gives rho = 1; where x decides y the ideal energy is isotropic. Null: the tangent
and normal spaces of another problem's solution at the same Hessian (rho about 1); for gradients the noise. Trivial
baseline: the counted dimensions. Exact in the dtype of the model; the median over problems has the distribution-free
interval of order statistics. Where the tangent curvature is not positive rho is absent from the table, and counted as
above every other in the median if the normal curvature is positive; so is the null's.
Source: Vandereycken (2013), Low-rank matrix completion by Riemannian optimization, section 2; Du, Mao and Tenenbaum
(2024), Learning Iterative Reasoning through Energy Diffusion.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _energy, _low_rank
from backend.contract import Claim, Energies, Matrices, ModelCard, Problems, Progress, Value, View, analysis
from backend.costs import Work
from backend.figures import NULL_GREY, Line, lines, logarithmic, marked, scatter

Tensor = Any


class TangentParams(_low_rank.RankParams):
    """Which manifold, and where the energy is looked at."""

    at: Literal["noised", "solution"] = Field(
        "noised", description="where: the noised solution of each level, or the solution itself, sqrt(abar) y"
    )


@analysis(
    version=2, group="Energy landscapes",
    title="EXP-005 Along and across low rank",
    asks="Does the energy bend more across the matrices of rank r than along them, dimension by dimension?",
    subject=Problems, params=TangentParams,
    axes=[_energy.LEVEL, _energy.PROBLEM],
    values=[
        Value("normal_curvature", "tr P_N H / dim N: mean curvature across the manifold"),
        Value("tangent_curvature", "tr P_T H / dim T: mean curvature along it"),
        Value("rho", "normal over tangent curvature; 1 where isotropic; absent where the tangent one is not positive"),
        Value("rho_other", "the same with the spaces of another problem's solution: the null"),
        Value("normal_other", "tr P_N H / dim N with those spaces; positive where rho_other is absent: unbounded"),
        Value("gradient_ratio", "|P_N g| / |P_T g| of the gradient, as the original study has it"),
        Value("noise_ratio", "|P_N e| / |P_T e| of the noise e that was added to this very solution: its null"),
        Value("noise_line", "sqrt(dim N / dim T): the ratio of white noise by counting dimensions"),
        Value("rank_tail", "s_(r+1) / s_r of the solution: 0 where the rank is exact, 1 where there is none to tell"),
    ],
)  # fmt: skip
def exp005_tangent_normal(
    model: Energies, problems: Matrices, params: TangentParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (level, problem)."""
    _low_rank.checked(model.card, params.rank)
    tables = []
    for k in range(model.schedule.levels):
        tables.append(_level(model, problems, params, k))
        progress((k + 1) / model.schedule.levels, f"level {k}")
    return pd.concat(tables, ignore_index=True)


@exp005_tangent_normal.costs
def work(card: ModelCard, subject: Problems, params: TangentParams) -> Work:
    """A gradient and a Hessian per problem and level. Raises Unfit for a rank without an outside."""
    side, levels = _low_rank.checked(card, params.rank), int(card.energy["levels"])
    n = subject.n * levels
    return _energy.work(card, gradients=n, hessians=n, operations=8.0 * side**4 * n,
                        solver_seconds=0.03 * levels)  # fmt: skip


def _level(model: Energies, problems: Matrices, params: TangentParams, k: int) -> pd.DataFrame:
    import torch

    from backend.maths import low_rank

    side, n, rank = problems.side, len(problems.y), params.rank
    solution = float(model.schedule.abar[k]) ** 0.5 * problems.y
    y = solution if params.at == "solution" else _energy.noised(model, problems, k)
    bend = torch.cat([_both(h, problems, some, rank) for some, h in zip(
        _energy.slices(n), _energy.hessians(model, problems, k, y), strict=True)]).double().cpu().numpy()  # fmt: skip
    slope = model.net.gradient(problems.x, y, model.level(k, n)).detach()
    with np.errstate(divide="ignore", invalid="ignore"):
        rho, other = (np.where(t > 0, a / t, np.nan) for t, a in ((bend[:, 0], bend[:, 1]), (bend[:, 2], bend[:, 3])))
    return pd.DataFrame({
        "level": k, "problem": np.arange(n), "normal_curvature": bend[:, 1], "tangent_curvature": bend[:, 0],
        "rho": rho, "rho_other": other, "normal_other": bend[:, 3],
        "gradient_ratio": _ratio(slope, problems, rank, side),
        "noise_ratio": _ratio(problems.noise, problems, rank, side),
        "noise_line": low_rank.noise_ratio(side, side, rank), "rank_tail": _low_rank.tails(problems, rank),
    })  # fmt: skip


def _both(hessian: Tensor, problems: Matrices, some: slice, rank: int) -> Tensor:
    """Return tangent and normal curvature per dimension at the problems' own solutions and at the next ones': [n, 4].

    In float64: the normal trace is a small difference where the tangent space is stiff.
    """
    import torch

    from backend.maths import low_rank

    y = _low_rank.as_matrices(problems.y.double(), problems.side)
    found: list[Tensor] = []
    for at in (y, y.roll(-1, 0)):
        spaces = low_rank.spaces(at[some], rank)
        along, across = spaces.traces(hessian.double())
        found += [along / spaces.dims[0], across / spaces.dims[1]]
    return torch.stack(found, 1)


def _ratio(flat: Tensor, problems: Matrices, rank: int, side: int) -> np.ndarray:
    """Return |P_N g| / |P_T g| [n] at the solutions."""
    from backend.maths import low_rank

    spaces = low_rank.spaces(_low_rank.as_matrices(problems.y.double(), side), rank)
    matrix = _low_rank.as_matrices(flat.double(), side)
    across, along = (p.flatten(1).norm(dim=1) for p in (spaces.normal(matrix), spaces.tangent(matrix)))
    return (across / along.clamp_min(1e-30)).cpu().numpy()


# ---------------------------------------------------------------- what it says of what was expected


def _rho(rows: pd.DataFrame) -> np.ndarray:
    """Return rho, infinite where only the tangent curvature is not positive."""
    return np.where(rows.rho.isna() & (rows.normal_curvature > 0), np.inf, rows.rho)


def _rho_other(rows: pd.DataFrame) -> np.ndarray:
    """Return the same of another solution's spaces, the null."""
    return np.where(rows.rho_other.isna() & (rows.normal_other > 0), np.inf, rows.rho_other)


def _ranked(rows: pd.DataFrame) -> str:
    """Say what share of points has no positive tangent curvature and is ranked as infinite, and the median without."""
    from backend.maths.ranks import median_interval

    share, rest = float(np.isinf(_rho(rows)).mean()), rows.rho.dropna().to_numpy()
    without = f"the median without them is {_low_rank.spanned(*median_interval(rest))}" if len(rest) else "no other is"
    return f"{share:.0%} of points have tangent curvature <= 0 and are ranked as infinite, {without}"


@exp005_tangent_normal.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Are normal directions stiffer, by the study's measure and by dimension?"""
    from backend.maths.ranks import median_interval

    sharp = table[table.level == table.level.min()]
    line, noise = float(sharp.noise_line.iloc[0]), float(sharp.noise_ratio.median())
    ratio, rho = median_interval(sharp.gradient_ratio.to_numpy()), median_interval(_rho(sharp))
    other = median_interval(_rho_other(sharp))
    tail = float(table.rank_tail.median())
    told = _low_rank.rank_words(tail, view.params.get("rank", 1))
    claims = [
        Claim("the gradient's normal part is much larger than its tangent part (level 0)",
              f"white noise gives {line:.2f} by counting dimensions; the noise of these problems {noise:.2f}",
              f"{_low_rank.spanned(*ratio)}; {told}",
              "holds" if ratio[0] > max(_low_rank.MORE * max(line, noise), 1) else
              "met by its null" if ratio[0] > 1 and max(line, noise) > 1 else "fails"),
        Claim("the energy is stiffer across the manifold than along it, by dimension (rho > 1.25, level 0)",
              f"isotropic curvature gives 1; another solution's spaces {_low_rank.spanned(*other)}",
              f"rho {_low_rank.spanned(*rho)}; {_ranked(sharp)}; {told}",
              "cannot be tested here" if np.isnan([rho, other]).any() else "fails" if not rho[0] > _low_rank.MORE else
              "holds" if rho[0] > other[2] else "met by its null"),
    ]  # fmt: skip
    return _low_rank.judged(claims, tail)


# ---------------------------------------------------------------- figures


@exp005_tangent_normal.figure("Normal over tangent curvature per dimension", marks=["level"])
def ratio(table: pd.DataFrame, view: View) -> Any:
    """Median over problems with its interval; 1 is isotropic; beside it another solution's spaces."""
    curves = [_low_rank.medians(table, _rho, "rho, own solution"),
              _low_rank.medians(table, _rho_other, "another solution's spaces"),
              _low_rank.level_line(table, 1.0, "isotropic")]  # fmt: skip
    figure = lines(curves, x_title=_low_rank.X_LEVEL, y_title="normal / tangent curvature")
    positive = np.concatenate([np.asarray(c.low, float) for c in curves[:2]])
    marked(figure, view.chosen)
    return logarithmic(figure) if np.nanmin(positive, initial=1.0) > 0 else figure


def _level_of(table: pd.DataFrame, view: View) -> pd.DataFrame:
    return table[table.level == int(view.chosen.get("level", table.level.min()))]


@exp005_tangent_normal.figure("Every problem: curvature across against curvature along", choose=["level"])
def each(table: pd.DataFrame, view: View) -> Any:
    """Per dimension; on the line the energy bends alike in both, above it more across."""
    rows = _level_of(table, view)
    along, across = rows.tangent_curvature, rows.normal_curvature
    hover = [f"problem {p}: along {a:.3g}, across {b:.3g}" for p, a, b in zip(rows.problem, along, across, strict=True)]
    figure = scatter(along, across, x_title="curvature along (tangent), per dimension",
                     y_title="curvature across (normal)", hover=hover)  # fmt: skip
    ends = [float(f([f(along), f(across)])) for f in (np.min, np.max)]
    return figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", hoverinfo="skip",
                              line={"color": NULL_GREY, "dash": "dot", "width": 1})  # fmt: skip


@exp005_tangent_normal.figure("Every problem: the gradient's ratio beside that of its noise", choose=["level"])
def spread(table: pd.DataFrame, view: View) -> Any:
    """|P_N g| / |P_T g| of each problem and of the noise added to it, smallest first, and what counting gives."""
    rows = _level_of(table, view)
    at = np.arange(1, len(rows) + 1)
    names = {"gradient_ratio": "gradient", "noise_ratio": "the noise added"}
    curves = [Line(words, at, np.sort(rows[name].to_numpy())) for name, words in names.items()]
    line = Line("white noise: sqrt(dim N / dim T)", at, rows.noise_line.to_numpy(), colour=NULL_GREY)
    return lines([*curves, line], x_title="problems, smallest first", y_title="|normal| / |tangent|", height=300)


@exp005_tangent_normal.figure("The two curvatures beside the schedule", marks=["level"])
def curvatures(table: pd.DataFrame, view: View) -> Any:
    """Means per dimension along and across, and 1/sigma: what an ideal energy has where nothing is uncertain."""
    from backend.maths.annealing import cosine

    sigma = cosine(int(view.card["energy"]["levels"])).sigma
    curves = [_low_rank.medians(table, c, words) for c, words in
              (("normal_curvature", "across (normal)"), ("tangent_curvature", "along (tangent)"))]  # fmt: skip
    at = np.array(sorted(table.level.unique()))
    curves.append(Line("1/sigma", at, 1 / sigma[at], colour=NULL_GREY))
    return marked(lines(curves, x_title=_low_rank.X_LEVEL, y_title="curvature per dimension"), view.chosen)


@exp005_tangent_normal.figure("The original study's ratio of gradients beside noise", marks=["level"])
def gradients(table: pd.DataFrame, view: View) -> Any:
    """|P_N g| / |P_T g|: median with interval; the noise that was added, and what counting dimensions gives."""
    curves = [_low_rank.medians(table, "gradient_ratio", "gradient"),
              _low_rank.medians(table, "noise_ratio", "the noise added"),
              _low_rank.level_line(table, table.noise_line.iloc[0], "white noise: sqrt(dim N / dim T)")]  # fmt: skip
    return marked(lines(curves, x_title=_low_rank.X_LEVEL, y_title="|normal| / |tangent|"), view.chosen)


@exp005_tangent_normal.figure("Do the solutions have this rank?")
def rank_told(table: pd.DataFrame, view: View) -> Any:
    """s_(r+1) / s_r of every solution, smallest first: near 0 the rank is real, near 1 it is a choice of yours."""
    tail = np.sort(table[table.level == table.level.min()].rank_tail.to_numpy())
    return lines([Line("s_(r+1) / s_r", np.arange(1, len(tail) + 1), tail)], x_title="solutions, smallest first",
                 y_title="s_(r+1) / s_r", height=240).update_yaxes(range=[-0.02, 1.02])  # fmt: skip
