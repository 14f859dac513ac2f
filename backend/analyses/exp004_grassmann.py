"""EXP-004: does the energy rise with the distance from the low-rank matrices, or only with the size of a perturbation?

Around the solution Y = sqrt(abar_k) y* of every problem and level, perturbations of several sizes and of three kinds,
each as long as the others: `turned` (Y rotated from the left, so that the span of its r leading columns moves along a
Grassmann geodesic; rank, singular values and |Y| stay), `raised` (a step normal to the matrices of rank r), `any` (a
step in a random direction). Energies are above that of the solution. Rank correlations of the energy with sum theta^2,
the squared Grassmann distance of the spans, and with dist^2, the squared distance to the matrices of rank r; raw, and
partial at equal |perturbation| or equal |Y'|. Everything grows with the size, so a raw correlation is mostly size: that
of the size itself, its null and trivial baseline, is drawn beside it. At equal size: how often raising the rank costs
more than turning (isotropic: one half). Then the energy along the geodesic of both spans to those of another solution,
singular values kept, beside the straight line, whose middle has rank 2r, and that line rescaled to the geodesic's norm.

Ground truth: for an energy of dist^2 / 2 the correlation with dist^2 is 1, raw and partial, turning and geodesic cost
nothing. Control: a task without low rank (inverse), where the partial correlations should vanish; that raising the rank
costs more and that the geodesic is a valley is judged only where the solutions have the rank.
Means, shares and correlations with bootstrap intervals over problems (points of a problem stay together).
Source: Edelman, Arias and Smith (1998), The geometry of algorithms with orthogonality constraints; Vandereycken (2013),
Low-rank matrix completion by Riemannian optimization.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _energy, _low_rank
from backend.analyses._perturbed import ANGLES, KINDS, PATHS, TIMES, Perturbed
from backend.contract import Axis, Claim, Energies, Matrices, ModelCard, Problems, Progress, Value, View, analysis
from backend.costs import Work
from backend.figures import NULL_GREY, Line, hexbin, lines, marked, scatter

CORRELATED = 0.1  # least rank correlation that counts


class GrassmannParams(_low_rank.RankParams):
    """Which rank, and the seed of the perturbations."""

    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the perturbations and of the bootstrap")


@analysis(
    version=1, group="Energy landscapes",
    title="EXP-004 Distance from low rank",
    asks="Does the energy rise with the distance from the matrices of rank r, or only with a perturbation's size?",
    subject=Problems, params=GrassmannParams,
    axes=[_energy.LEVEL, Axis("at", "which size, or point of a path; 0 where there is but one"),
          Axis("what", "turned, raised, any: perturbations; geodesic, straight, rescaled: points of a path and, with "
               "`middle`, its height; `cost more`, at a size or overall: raised above turned; `A | B`: correlation of "
               "the energy with A at equal B; `tail`: s_(r+1) / s_r of the solutions", kind="str")],
    values=[
        Value("x", "size over |Y|, or time on the path; absent elsewhere"),
        Value("value", "mean energy above the solution's, share, correlation or median tail, by `what`"),
        Value("low", "lower end of its 95 % interval"), Value("high", "upper end"),
        Value("energies", "energy above the solution's, of each problem", kind="array", dtype="float32"),
        Value("angles", "sum theta^2 of each problem's perturbation", "rad^2", kind="array", dtype="float32"),
        Value("distances", "dist^2 to rank r of each perturbed matrix", kind="array", dtype="float32"),
        Value("sizes", "|perturbation|", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def exp004_grassmann(model: Energies, problems: Matrices, params: GrassmannParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (level, size or time, what)."""
    _low_rank.checked(model.card, params.rank)
    rows: list[dict[str, Any]] = []
    for k in range(model.schedule.levels):
        rows += Perturbed(model, problems, params.rank, params.seed, k).rows()
        progress((k + 1) / model.schedule.levels, f"level {k}")
    return pd.DataFrame(rows)


@exp004_grassmann.costs
def work(card: ModelCard, subject: Problems, params: GrassmannParams) -> Work:
    """Energies of the solution, of its perturbations and of the paths. Raises Unfit for a rank without an outside."""
    side, levels = _low_rank.checked(card, params.rank), int(card.energy["levels"])
    points = 1 + len(KINDS) * len(ANGLES) + len(PATHS) * TIMES
    n = subject.n * levels
    return _energy.work(card, energies=n * points, held_numbers=6.0 * subject.n * points * side**2,
                        operations=200.0 * side**3 * n * points, solver_seconds=0.15 * levels)  # fmt: skip


# ---------------------------------------------------------------- what it says of what was expected


def _at(table: pd.DataFrame, what: str) -> pd.Series:
    return table[(table.level == table.level.min()) & (table.what == what)].mean(numeric_only=True)


def _told(row: pd.Series) -> str:
    return _low_rank.spanned(row.low, row.value, row.high)


@exp004_grassmann.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Do the correlations outlive the size, does raising the rank cost more, is the geodesic a valley?"""
    size, share = _at(table, "size"), _at(table, "cost more overall")
    tail = float(_at(table, "tail").value)
    has = _low_rank.rank_words(tail, view.params.get("rank", 1))
    claims = [_correlation(table, a, size) for a in ("angle", "distance")]
    own, line = _at(table, "geodesic middle"), _at(table, "rescaled middle")
    of_rank = [
        Claim("raising the rank costs more energy than turning as far (level 0)", "isotropic energy: half of the time",
              f"share of problems, all sizes: {_told(share)}; {has}", _beyond(share, 0.6)),
        Claim("the geodesic of low-rank matrices is a valley between solutions' spaces (level 0)",
              f"the straight line at the same norm: its middle lies {_told(line)} above its ends",
              f"geodesic: {_told(own)}; straight line: {_told(_at(table, 'straight middle'))}; {has}",
              "holds" if own.high < line.low else "fails" if own.low >= line.high else "cannot be tested here"),
    ]  # fmt: skip
    return [*claims, *_low_rank.judged(of_rank, tail)]


def _correlation(table: pd.DataFrame, measure: str, size: pd.Series) -> Claim:
    raw, rest = _at(table, measure), _at(table, f"{measure} | size")
    alone = _beyond(raw, CORRELATED)
    by_size = not rest.low > 0 or rest.high <= CORRELATED  # nothing need be left at equal size
    return Claim(
        f"the energy correlates with {'the Grassmann distance' if measure == 'angle' else 'the distance to rank r'} "
        "(Spearman, level 0)", f"with the size of the perturbation alone: {_told(size)}",
        f"raw {_told(raw)}, at equal size {_told(rest)}",
        alone if alone != "holds" else "met by its null" if by_size else _beyond(rest, CORRELATED),
    )  # fmt: skip


def _beyond(row: pd.Series, least: float) -> Any:
    """Return whether an interval lies above what is asked, below it, or on both sides."""
    return "holds" if row.low > least else "fails" if row.high <= least else "cannot be tested here"


# ---------------------------------------------------------------- figures

NAMES = {"turned": "turned (rank kept)", "raised": "raised (normal step)", "any": "any direction"}
NULLS = ("size", "any", "straight", "rescaled")  # what knows nothing of the rank, or does not keep it
MANY = 300  # points from which on their density is drawn


def _line(table: pd.DataFrame, what: str, name: str, x: str = "level") -> Line:
    rows = table[table.what == what].groupby(x, sort=True)[["value", "low", "high"]].mean()
    return Line(name, rows.index.to_numpy(), rows.value.to_numpy(), rows.low.to_numpy(), rows.high.to_numpy(),
                NULL_GREY if what in NULLS else "")  # fmt: skip


@exp004_grassmann.figure("Rank correlation with the energy: raw, and at equal size", marks=["level"])
def correlations(table: pd.DataFrame, view: View) -> Any:
    """Over all perturbations of a level; the raw ones beside that of the size itself, their null."""
    names = {"size": "size alone (null)", "distance": "dist^2, raw", "distance | size": "dist^2, equal size",
             "angle": "theta^2, raw", "angle | size": "theta^2, equal size"}  # fmt: skip
    return marked(lines([_line(table, what, name) for what, name in names.items()], x_title=_low_rank.X_LEVEL,
                        y_title="Spearman correlation", height=380), view.chosen)  # fmt: skip


@exp004_grassmann.figure("How often raising the rank costs more than turning as far", marks=["level"])
def dearer(table: pd.DataFrame, view: View) -> Any:
    """Share of problems, mean over sizes; one half for an energy that does not know the rank."""
    curves = [_line(table, "cost more", "raised above turned"), _low_rank.level_line(table, 0.5, "isotropic")]
    figure = marked(lines(curves, x_title=_low_rank.X_LEVEL, y_title="share of problems"), view.chosen)
    return figure.update_yaxes(range=[-0.02, 1.02])


def _level(table: pd.DataFrame, view: View) -> pd.DataFrame:
    return table[table.level == int(view.chosen.get("level", table.level.min()))]


@exp004_grassmann.figure("Energy of perturbations of equal size", choose=["level"])
def sizes(table: pd.DataFrame, view: View) -> Any:
    """Mean over problems above the solution's energy, at one level."""
    rows = _level(table, view)
    return lines([_line(rows, kind, name, "x") for kind, name in NAMES.items()],
                 x_title="size of the perturbation over |Y|", y_title="energy above the solution's")  # fmt: skip


@exp004_grassmann.figure("Energy against the distance to rank r", choose=["level"])
def distances(table: pd.DataFrame, view: View) -> Any:
    """How many points of a problem and a size lie where, by kind of one level; few are drawn one by one."""
    rows = _level(table, view)
    rows = rows[rows.what.isin(KINDS)]
    x, y = (np.concatenate([np.asarray(a, float) for a in rows[c]]) for c in ("distances", "energies"))
    kinds = np.repeat(rows.what.to_numpy(), [len(a) for a in rows.energies])
    titles: Any = {"x_title": "squared distance to the matrices of rank r", "y_title": "energy above the solution's"}
    if len(x) < MANY:
        return scatter(x, y, group=[NAMES[k] for k in kinds], **titles)
    return hexbin({NAMES[k]: (x[kinds == k], y[kinds == k]) for k in KINDS}, **titles)


@exp004_grassmann.figure("Energy on the way to another solution's spaces", choose=["level"])
def profile(table: pd.DataFrame, view: View) -> Any:
    """Mean over problems along the geodesic of rank r, the straight line, and that line at the same norm."""
    rows = _level(table, view)
    names = {"geodesic": "geodesic (rank kept)", "straight": "straight line", "rescaled": "straight line, same norm"}
    return lines([_line(rows, path, name, "x") for path, name in names.items()],
                 x_title="time: 0 own solution, 1 the other's spaces",
                 y_title="energy above the solution's")  # fmt: skip
