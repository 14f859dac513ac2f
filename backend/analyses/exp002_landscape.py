"""EXP-002: what does the energy look like on a plane through the noised solution or the answer, at every level?

Energies of one problem at y = centre + a u + b v, for (u, v) the eigenvectors of the two largest eigenvalues of the
exact Hessian there, the noise's parts along and across the matrices of rank r (the solution lies in that plane then),
or the two principal components of the path that inference takes. The path, from the same noise, is projected onto the
plane, scaled to each level; how far it lies from the plane is said beside it.

Check at the centre: the second difference along u, in float64, is u'Hu of the exact Hessian. Ground truth: on a
quadratic y'Ay/2 the slice on eigenvectors is (l1 a^2 + l2 b^2)/2, ellipses with axes in the ratio sqrt(l1 / l2); where
x decides y an ideal energy is a round bowl of curvature 1/sigma in every plane, without any learning. Null: a random
plane, drawn on the same scale. Of the two largest eigenvalues none is the floor of a valley: that asks another plane.
Trivial baseline of the path: the straight line from its first guess to its answer.
Exact in the dtype of the model; of one problem, so without an interval. The problem's matrices are kept to look at.
Source: Li et al. (2018), Visualizing the loss landscape of neural nets; Du, Mao and Tenenbaum (2024), Learning
Iterative Reasoning through Energy Diffusion, algorithm 2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _energy, _low_rank, _plane
from backend.analyses._plane_rows import level_rows
from backend.contract import Axis, Claim, Energies, Matrices, ModelCard, Problems, Progress, Value, View, analysis
from backend.costs import Calls, Work
from backend.errors import BadInput, Unfit
from backend.figures import NULL_GREY, Line, Panel, Slice, lines, marked, panels, slices

VALLEY = 2.0  # ratio of curvatures from which a slice is called a valley
STEEPEST = "; the two steepest directions: the floor of a valley is never among them"
INNER = 5  # gradient steps of inference at a level, as the official code takes


class LandscapeParams(_low_rank.RankParams):
    """Which plane of which problem."""

    plane: Literal["eigenvectors", "tangent-normal", "trajectory"] = Field(
        "eigenvectors", description="top two eigenvectors of the Hessian; along and across rank r; PCA of the inference"
    )
    centre: Literal["noised", "answer"] = Field(
        "noised", description="the point the plane goes through: the noised solution of each level, or the final answer"
    )
    problem: int = Field(0, ge=0, le=4095, description="which problem, 0-based")
    reach: float = Field(
        3.0,
        ge=0.1,
        le=20,
        description="half the side of the square in units of the level's "
        "sigma; more where the solution lies outside, or a point of the trajectory in its own plane",
    )
    resolution: int = Field(41, ge=11, le=101, description="points along each side")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random plane")


@analysis(
    version=1, group="Energy landscapes",
    title="EXP-002 Energy landscape",
    asks="What does the energy look like on a plane through a noised solution or an answer, at every level?",
    subject=Problems, params=LandscapeParams,
    axes=[_energy.LEVEL, Axis("item", "a row of the plane or of the random one, a direction, a point of the path, "
                              "a matrix", kind="str")],
    values=[
        Value("part", "plane, random plane, direction, random direction, path, straight, point or matrix", kind="str"),
        Value("at", "second coordinate of a row of a plane; level that the path has passed"),
        Value("energy", "of a point of the path or of the straight line beside it, at this row's level"),
        Value("second_difference", "of the energy along a direction at the centre, by finite difference in float64"),
        Value("curvature", "u'Hu of the exact Hessian there"),
        Value("off_plane", "distance from the plane"),
        Value("along", "energies along a row of a plane", kind="array", dtype="float32"),
        Value("matrix", "entries by rows", kind="array", dtype="float32"),
        Value("singular", "singular values, descending", kind="array", dtype="float32"),
        Value("coordinates", "(first, second) in the plane", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def exp002_landscape(model: Energies, problems: Matrices, params: LandscapeParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (level, item)."""
    from backend.maths.annealed_inference import infer

    _checked(model.card, problems.asked, params)
    i = slice(params.problem, params.problem + 1)
    one = replace(problems, x=problems.x[i], y=problems.y[i], noise=problems.noise[i])
    path = infer(model.net, one.x, one.noise, model.schedule, INNER).solutions[:, 0]
    rows: list[dict[str, Any]] = []
    for k in range(model.schedule.levels):
        rows += level_rows(_plane.Spot(model, one, path, k), params)
        progress((k + 1) / model.schedule.levels, f"level {k}")
    return pd.DataFrame(rows)


@exp002_landscape.costs
def work(card: ModelCard, subject: Problems, params: LandscapeParams) -> Work:
    """Two grids, a Hessian and a gradient per level, and one inference. Raises where there is no such plane."""
    _checked(card, subject, params)
    levels, d, square = int(card.energy["levels"]), int(card.energy["d_y"]), params.resolution**2
    few = 4 * 3 + 2 * levels  # of second differences, of the path and the line beside it
    told = _energy.work(card, hessians=levels, operations=10.0 * d**3 * levels, held_numbers=6.0 * square * d)
    calls = (Calls(square, 1, n=2 * levels), Calls(few + 1 + INNER, 1, n=levels),
             Calls(1 + INNER + 1, 1, gradients=True, n=levels))  # fmt: skip
    return replace(told, calls=calls, knobs="Use a smaller resolution")


def _checked(card: ModelCard, subject: Problems, params: LandscapeParams) -> None:
    if params.problem >= subject.n:
        raise BadInput(f"Problem {params.problem}", f"there are {subject.n}", f"Choose one from 0 to {subject.n - 1}")
    if params.plane == "tangent-normal":
        _low_rank.checked(card, params.rank)
    if int(card.energy["side"]) < 2:
        raise Unfit("A plane of matrices", "they are single numbers", "Choose a model of matrices of 2 rows or more")
    if params.plane == "trajectory" and int(card.energy["levels"]) < 3:
        raise Unfit("A plane of the trajectory", "it has fewer than 3 points", "Choose another plane")


# ---------------------------------------------------------------- what it says of what was expected


@exp002_landscape.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Is the slice the Hessian's, is it more than the schedule's bowl, and does inference run downhill?"""
    sigma = _sigma(view)
    sharp = table[table.level == table.level.min()]
    both, chance = (sharp[sharp.part == p].curvature.to_numpy() * sigma[0] for p in ("direction", "random direction"))
    plane = str(view.params.get("plane", "eigenvectors"))
    bent = table[table.part.isin(["direction", "random direction"])]
    scale = bent.groupby("level").curvature.transform(lambda c: c.abs().max())
    off = float(((bent.second_difference - bent.curvature).abs() / scale).max())
    return [
        Claim("the slices bend as the exact Hessian says (second difference at the centre, all levels)",
              "rounding of the differences is about 1e-6", f"largest difference {off:.1e} of the largest curvature",
              "holds" if off < 1e-3 else "fails"),
        Claim(f"on this plane the landscape is a valley, {VALLEY:g} times as steep across as along (level 0)",
              f"by the schedule alone a round bowl, both 1; a random plane {min(chance):.2f} and {max(chance):.2f}",
              f"sigma x curvature {min(both):.2f} and {max(both):.2f}" + STEEPEST * (plane == "eigenvectors"),
              _valley(plane, both, chance)),
        _downhill(sharp),
    ]  # fmt: skip


def _valley(plane: str, both: np.ndarray, chance: np.ndarray) -> Any:
    """Return the verdict of the curvatures [2] of a plane beside those of a random one."""
    if plane == "eigenvectors":
        return "cannot be tested here"
    here, there = (max(c) > VALLEY * max(min(c), 0.0) for c in (both, chance))
    return "fails" if not here else "met by its null" if there else "holds"


def _downhill(rows: pd.DataFrame) -> Claim:
    """Count the steps between levels at which the sharpest energy falls, along the path and along a straight line."""
    falls = {}
    for part in ("path", "straight"):
        energies = rows[rows.part == part].sort_values("at", ascending=False).energy.to_numpy()
        falls[part] = (int((np.diff(energies) <= 0).sum()), len(energies) - 1, energies[0], energies[-1])
    (down, steps, start, end), (straight, *_) = falls["path"], falls["straight"]
    return Claim(
        "inference runs downhill in the sharpest energy, level by level",
        f"on the straight line from its first guess to its answer the energy falls at {straight} of {steps} steps",
        f"falls at {down} of {steps} steps, from {start:.3g} to {end:.3g}",
        "fails" if down < steps else "met by its null" if straight == steps else "holds",
    )


# ---------------------------------------------------------------- figures

NAMES = {"eigenvectors": ("along eigenvector 1", "along eigenvector 2"),
         "tangent-normal": ("along rank r (tangent)", "across it (normal)"),
         "trajectory": ("along component 1", "along component 2")}  # fmt: skip


def _sigma(view: View) -> np.ndarray:
    from backend.maths.annealing import cosine

    return cosine(int(view.card["energy"]["levels"])).sigma


def _level(table: pd.DataFrame, view: View) -> pd.DataFrame:
    return table[table.level == int(view.chosen.get("level", table.level.min()))]


def _kept(rows: pd.DataFrame, part: str, column: str) -> dict[str, np.ndarray]:
    """Return {item without its part: array} of one part, by `at`."""
    some = rows[rows.part == part].sort_values("at", kind="stable")
    return {
        str(i).removeprefix(f"{part} "): np.asarray(v, float) for i, v in zip(some["item"], some[column], strict=True)
    }


@exp002_landscape.figure("Energy on the plane, and on a random plane", choose=["level"])
def planes(table: pd.DataFrame, view: View) -> Any:
    """Both through the same point on one scale; solution, answer and the path of inference projected onto the first."""
    rows = _level(table, view)
    points = {name: (float(a), float(b)) for name, (a, b) in _kept(rows, "point", "coordinates").items()}
    some = rows[rows.part == "path"].sort_values("at")
    words = [f"after level {k}: energy {e:.3g}, {o:.2g} off the plane" for k, (e, o) in
             enumerate(zip(some.energy, some.off_plane, strict=True))]  # fmt: skip
    path = [
        (float(a), float(b), w) for (a, b), w in zip(_kept(rows, "path", "coordinates").values(), words, strict=True)
    ]
    found = {}
    for title, part, axes in (
        ("the plane chosen", "plane", NAMES[view.params.get("plane", "eigenvectors")]),
        ("a random plane (null)", "random plane", ("random directions 1 and 2", "")),
    ):
        at = np.sort(rows[rows.part == part]["at"].to_numpy())
        found[title] = Slice(np.stack(list(_kept(rows, part, "along").values())), at, *axes)
    chosen = found["the plane chosen"]
    inside = sum(max(abs(a), abs(b)) <= at[-1] for a, b, _ in path)
    chosen.points, chosen.path, chosen.path_name = points, path[::-1], f"inference ({inside} of {len(path)} within)"
    return slices(found, value="energy")


@exp002_landscape.figure("Curvature at the centre: finite difference beside the exact Hessian", marks=["level"])
def check(table: pd.DataFrame, view: View) -> Any:
    """u'Hu of both directions and of the mean random one, beside 1/sigma; crosses: the slice's second difference."""
    names = NAMES[view.params.get("plane", "eigenvectors")]
    curves = []
    for i, name in enumerate(names, start=1):
        rows = table[table["item"] == f"direction {i}"].sort_values("level")
        curves.append(Line(name, rows.level.to_numpy(), rows.curvature.to_numpy()))
    chance = table[table.part == "random direction"].groupby("level").curvature.mean()
    curves.append(Line("random plane, mean", chance.index.to_numpy(), chance.to_numpy(), colour=NULL_GREY))
    at = np.array(sorted(table.level.unique()))
    curves.append(Line("1/sigma", at, 1 / _sigma(view)[at], colour=NULL_GREY))
    figure = marked(lines(curves, x_title=_low_rank.X_LEVEL, y_title="curvature of the energy"), view.chosen)
    seen = table[table.part.isin(["direction", "random direction"])]
    seen = seen.assign(line=np.where(seen.part == "direction", seen["item"], "random"))
    second = seen.groupby(["level", "line"], as_index=False)[["second_difference"]].mean()
    return figure.add_scatter(x=second.level, y=second.second_difference, mode="markers", name="second difference",
                              marker={"symbol": "x-thin", "size": 11, "line": {"width": 2, "color": "#555555"}},
                              hovertemplate="second difference: %{y:.4g}<extra></extra>")  # fmt: skip


@exp002_landscape.figure("Energy along inference", choose=["level"])
def descent(table: pd.DataFrame, view: View) -> Any:
    """The energy of one level at what inference had after each level, beside a straight line to the same answer."""
    rows = _level(table, view)
    some = {part: rows[rows.part == part].sort_values("at") for part in ("path", "straight")}
    names = {"path": "inference", "straight": "straight line"}
    figure = lines([Line(names[p], r["at"].to_numpy(), r.energy.to_numpy(), colour=NULL_GREY if p == "straight" else "")
                    for p, r in some.items()], x_title="inference after level (0 last)",
                   y_title=f"energy of level {int(rows.level.iloc[0])}", height=280)  # fmt: skip
    return figure.update_xaxes(autorange="reversed")


@exp002_landscape.figure("The matrices", choose=["level"])
def matrices(table: pd.DataFrame, view: View) -> Any:
    """Problem, solution, noised solution, answer, gradient and the plane's directions; each on a scale of its own."""
    found = _kept(_level(table, view), "matrix", "matrix")
    side = int(round(len(next(iter(found.values()))) ** 0.5))
    maps = {name: Panel(m.reshape(side, side), diverging=True) for name, m in found.items()}
    return panels(maps, x_title="column", y_title="row", columns=3, square=True)


@exp002_landscape.figure("Their singular values", choose=["level"])
def singular(table: pd.DataFrame, view: View) -> Any:
    """Over the largest of each matrix: how many dimensions it has."""
    found = _kept(_level(table, view), "matrix", "singular")
    curves = [Line(name, np.arange(1, len(s) + 1), s / (s[0] or 1.0)) for name, s in found.items()]
    return lines(curves, x_title="index, largest first", y_title="singular value / largest", height=320).update_xaxes(
        dtick=max(1, len(curves[0].x) // 10))  # fmt: skip
