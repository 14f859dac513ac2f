"""What does the loss look like around the weights, along random directions?

L(w + t d) for `directions` filter-normalised random directions d, and L(w + a d_0 + b d_1) over the plane of the first
two (its rows have direction -1). A direction gives every row of a matrix the norm of the model's own row and leaves
vectors (biases, norms) where they are, so t = 1 moves each row by its own length. Rows are those of the tensors as the
module stores them: a neuron's incoming weights; in GPT-2, which stores its matrices transposed, its outgoing ones.

Several directions are the error bar: one slice of many dimensions shows little, and convexity in it shows nothing of
other directions. `rise_se` is the standard error over rows of L - L(0), row by row. `curvature` is d'Hd, exact, by a
product with the Hessian; `second_difference` is [L(h) - 2 L(0) + L(-h)] / h^2 at h = `step`: where the two differ, the
loss is not smooth at that scale (or h is within rounding). The null: the same slices around the model's weights with
the entries of every matrix shuffled.
Exact. Cost: a forward on `rows_used` rows per point, a graph and a product per direction for the curvature.
Source: Li et al. (2018), Visualizing the loss landscape of neural nets, section 4; Pearlmutter (1994).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _at_weights
from backend.analyses._work import Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines, surface

_SHUFFLE = 7_000_003  # seeds of the null's shuffles are none of a direction


class LossSlicesParams(Params):
    """How far and how fine."""

    directions: int = Field(4, ge=2, le=32, description="random directions")
    reach: float = Field(1.0, ge=0.001, le=10.0, description="farthest t; at 1 every row moves by its own length")
    points: int = Field(21, ge=5, le=201, description="points along a direction; an even number becomes the next odd")
    grid: int = Field(15, ge=3, le=61, description="points along each side of the plane; likewise")
    step: float = Field(0.02, ge=0.0001, le=1.0, description="h of the second difference")
    rows_used: int = Field(16, ge=1, le=4096, description="rows of the corpus that the loss is the mean over, at most")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the directions and of the null")


@analysis(
    version=1, group="Spectra",
    title="Loss slices", asks="What does the loss look like around the weights, along random directions?",
    subject=Corpus, params=LossSlicesParams, needs=["gradients"],
    axes=[
        Axis("direction", "random direction; -1: the plane of the first two"),
        Axis("a", "how far along it (in the plane: along the first)", "own row norms", kind="float"),
        Axis("b", "how far along the second, in the plane; else 0", "own row norms", kind="float"),
    ],
    values=[
        Value("loss", "mean cross-entropy there; NULL where it is not finite", "nats"),
        Value("rise_se", "standard error over rows of its difference from the middle", "nats"),
        Value("null", "the loss as far along from shuffled weights; NULL in the plane", "nats"),
        Value("curvature", "d'Hd at the middle, exact (the same in every row of a direction)", "nats"),
        Value("second_difference", "the same from three values of the loss", "nats"),
        Value("curvature_null", "d'Hd at the shuffled weights", "nats"),
    ],
)  # fmt: skip
def loss_slices(model: Model, subject: Rows, params: LossSlicesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per point of a slice."""
    losses = _at_weights.Losses(model, _at_weights.used(subject, params.rows_used))
    drawn = drawn_directions(losses.own, params)
    progress(0.02, "Products with the Hessian")
    exact = losses.curvatures(drawn)
    null, bent = _null(losses, params, progress)
    middle = losses.rows(losses.own)
    found: list[tuple[float, ...]] = []
    for i, one in enumerate(drawn):
        progress(0.3 + 0.3 * i / len(drawn), f"Direction {i} of {len(drawn)}")
        ends = [_value(losses, losses.own, [one], [t]) for t in (params.step, -params.step)]
        second = (ends[0] + ends[1] - 2 * middle).mean() / params.step**2
        for at, t in enumerate(ticks(params.reach, params.points)):
            there = _value(losses, losses.own, [one], [t])
            found.append((i, t, 0.0, *_told(there, middle), null[i][at], exact[i], second, bent[i]))
    side = ticks(params.reach, params.grid)
    for i, a in enumerate(side):
        progress(0.6 + 0.4 * i / len(side), f"Plane, line {i} of {len(side)}")
        found += [
            (-1, a, b, *_told(_value(losses, losses.own, drawn[:2], [a, b]), middle), *[np.nan] * 4) for b in side
        ]
    declared: Any = loss_slices
    table = pd.DataFrame(found, columns=[c.name for c in (*declared.axes, *declared.values)])
    return table.replace([np.inf, -np.inf], np.nan)


def ticks(reach: float, points: int) -> list[float]:
    """Return an odd number of points from -reach to reach; the middle is 0 exactly."""
    half = points // 2
    return [reach * i / half for i in range(-half, half + 1)]


def drawn_directions(at: dict[str, Any], params: LossSlicesParams) -> list[dict[str, Any]]:
    """Return the filter-normalised directions around these weights."""
    import torch

    from backend.maths import landscape

    return [landscape.direction(at, torch.Generator().manual_seed(params.seed + i)) for i in range(params.directions)]


def _value(losses: Any, at: dict[str, Any], along: list, lengths: list[float]) -> np.ndarray:
    from backend.maths import landscape

    return losses.rows(landscape.moved(at, along, lengths))


def _told(there: np.ndarray, middle: np.ndarray) -> tuple[float, float]:
    error = (there - middle).std(ddof=1) / len(there) ** 0.5 if len(there) > 1 else np.nan
    return float(there.mean()), float(error)


def _null(losses: Any, params: LossSlicesParams, progress: Progress) -> tuple[list[list[float]], list[float]]:
    """Return (losses [direction][point], curvatures) around weights with the entries of every matrix shuffled."""
    own, losses.own = losses.own, shuffled(losses.own, params.seed)
    try:
        drawn, found = drawn_directions(losses.own, params), []
        for i, one in enumerate(drawn):
            progress(0.05 + 0.25 * i / len(drawn), f"Shuffled weights, direction {i} of {len(drawn)}")
            found.append([float(_value(losses, losses.own, [one], [t]).mean())
                          for t in ticks(params.reach, params.points)])  # fmt: skip
        return found, losses.curvatures(drawn)
    finally:
        losses.own = own


def shuffled(at: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the weights with the entries of every matrix in another order; vectors stay."""
    import torch

    dice, found = torch.Generator().manual_seed(seed + _SHUFFLE), {}
    for name, tensor in at.items():
        order = torch.randperm(tensor.numel(), generator=dice).to(tensor.device)
        found[name] = tensor.flatten()[order].reshape(tensor.shape) if tensor.ndim > 1 else tensor
    return found


@loss_slices.costs
def work(card: ModelCard, subject: Corpus, params: LossSlicesParams) -> Work:
    """A forward per point of every slice, around the weights and around shuffled ones; a product per direction."""
    plan, rows = Plan(card), params.rows_used
    points, grid = len(ticks(1.0, params.points)), len(ticks(1.0, params.grid))
    _at_weights.plan_rows(plan, subject, rows, 1 + params.directions * (2 * points + 2) + grid**2)
    products = sum(_at_weights.plan_curvatures(plan, subject, rows, params.directions) for _ in range(2))
    return plan.total(8 * card.n_params * (params.directions + 4), products, _at_weights.FEWER)


# ---------------------------------------------------------------- figures


@loss_slices.figure("Along each direction")
def along(table: pd.DataFrame, view: View) -> Any:
    """The loss along every direction, with the error over rows; grey: around shuffled weights, mean of directions."""
    mine, curves = table[table["direction"] >= 0], []
    null = mine.groupby("a")["null"].mean()
    curves.append(Line("shuffled weights", null.index, null, colour=NULL_GREY))
    for i, rows in mine.groupby("direction"):
        error = rows["rise_se"].fillna(0)
        curves.append(Line(f"direction {i}", rows["a"], rows["loss"], rows["loss"] - error, rows["loss"] + error,
                           CATEGORIES[int(str(i)) % len(CATEGORIES)]))  # fmt: skip
    return lines(curves, x_title="t along the direction (1: every row by its own length)",
                 y_title="loss (nats; band: ± s.e.)", height=380)  # fmt: skip


@loss_slices.figure("The plane of the first two directions")
def plane(table: pd.DataFrame, view: View) -> Any:
    """The loss over the plane of directions 0 and 1; the cross is the model."""
    grid = table[table["direction"] < 0].pivot(index="b", columns="a", values="loss")
    return surface(grid.columns, grid.index, grid.to_numpy(), x_title="a along direction 0",
                   y_title="b along direction 1", value="loss (nats)", marked="the model")  # fmt: skip


@loss_slices.figure("Curvature along each direction")
def curvature(table: pd.DataFrame, view: View) -> Any:
    """d'Hd from exact products; grey: around shuffled weights. The hover has the second difference."""
    each = table[table["direction"] >= 0].groupby("direction").first()
    mean, error = each["curvature"].mean(), each["curvature"].std() / len(each) ** 0.5
    hover = [f"direction {i}: exact {r['curvature']:.4g}<br>second difference {r['second_difference']:.4g}<br>"
             f"around shuffled weights {r['curvature_null']:.4g}" for i, r in each.iterrows()]  # fmt: skip
    return bars([str(i) for i in each.index], each["curvature"], null=each["curvature_null"], hover=hover,
                x_title=f"direction (mean {mean:.3g} ± {error:.2g} over directions)",
                y_title="curvature d'Hd (nats)", names_of=("this model", "shuffled weights"))  # fmt: skip
