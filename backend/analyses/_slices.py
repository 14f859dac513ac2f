"""What slices of a loss share, whatever the model: the knobs, the table, the null and the figures.

Formulas, errors and sources: loss_slices.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._at_weights import LossesAt
from backend.contract import Axis, Params, Progress, Value
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines, surface

_SHUFFLE = 7_000_003  # seeds of the null's shuffles are none of a direction


class SlicesParams(Params):
    """How far and how fine."""

    directions: int = Field(4, ge=2, le=32, description="random directions")
    reach: float = Field(1.0, ge=0.001, le=10.0, description="farthest t; at 1 every row moves by its own length")
    points: int = Field(21, ge=5, le=201, description="points along a direction; an even number becomes the next odd")
    grid: int = Field(15, ge=3, le=61, description="points along each side of the plane; likewise")
    step: float = Field(0.02, ge=0.0001, le=1.0, description="h of the second difference")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the directions and of the null")


AXES = (
    Axis("direction", "random direction; -1: the plane of the first two"),
    Axis("a", "how far along it (in the plane: along the first)", "own row norms", kind="float"),
    Axis("b", "how far along the second, in the plane; else 0", "own row norms", kind="float"),
)


def values_in(loss: str, unit: str, over: str) -> list[Value]:
    """Return the columns of values of a loss in such a unit, errors `over` rows or problems."""
    return [
        Value("loss", f"{loss} there; NULL where it is not finite", unit),
        Value("rise_se", f"standard error over {over} of its difference from the middle", unit),
        Value("null", "the loss as far along from shuffled weights; NULL in the plane", unit),
        Value("curvature", "d'Hd at the middle, exact (the same in every row of a direction)", unit),
        Value("second_difference", "the same from three values of the loss", unit),
        Value("curvature_null", "d'Hd at the shuffled weights", unit),
    ]


def evaluations(params: SlicesParams) -> int:
    """Return how often the loss of all rows is asked for."""
    points, grid = len(ticks(1.0, params.points)), len(ticks(1.0, params.grid))
    return 1 + params.directions * (2 * points + 2) + grid**2


def sliced(losses: LossesAt, params: SlicesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per point of a slice."""
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
    names = [*(axis.name for axis in AXES), *(value.name for value in values_in("", "", ""))]
    return pd.DataFrame(found, columns=names).replace([np.inf, -np.inf], np.nan)


def ticks(reach: float, points: int) -> list[float]:
    """Return an odd number of points from -reach to reach; the middle is 0 exactly."""
    half = points // 2
    return [reach * i / half for i in range(-half, half + 1)]


def drawn_directions(at: Mapping[str, Any], params: SlicesParams) -> list[dict[str, Any]]:
    """Return the filter-normalised directions around these weights."""
    import torch

    from backend.maths import landscape

    return [landscape.direction(at, torch.Generator().manual_seed(params.seed + i)) for i in range(params.directions)]


def _value(losses: LossesAt, at: Mapping[str, Any], along: list, lengths: list[float]) -> np.ndarray:
    from backend.maths import landscape

    return losses.rows(landscape.moved(at, along, lengths))


def _told(there: np.ndarray, middle: np.ndarray) -> tuple[float, float]:
    error = (there - middle).std(ddof=1) / len(there) ** 0.5 if len(there) > 1 else np.nan
    return float(there.mean()), float(error)


def _null(losses: LossesAt, params: SlicesParams, progress: Progress) -> tuple[list[list[float]], list[float]]:
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


def shuffled(at: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the weights with the entries of every matrix in another order; vectors stay."""
    import torch

    dice, found = torch.Generator().manual_seed(seed + _SHUFFLE), {}
    for name, tensor in at.items():
        order = torch.randperm(tensor.numel(), generator=dice).to(tensor.device)
        found[name] = tensor.flatten()[order].reshape(tensor.shape) if tensor.ndim > 1 else tensor
    return found


# ---------------------------------------------------------------- figures


def along_each(table: pd.DataFrame, unit: str, log: bool = False) -> Any:
    """Draw the loss along every direction, with its error; grey: around shuffled weights, mean of directions.

    `log`: on a logarithmic scale, of a loss that is above 0 and rises by powers of ten.
    """
    mine, curves = table[table["direction"] >= 0], []
    null = mine.groupby("a")["null"].mean()
    curves.append(Line("shuffled weights", null.index, null, colour=NULL_GREY))
    for i, rows in mine.groupby("direction"):
        error = rows["rise_se"].fillna(0)
        low = rows["loss"] - error
        curves.append(Line(f"direction {i}", rows["a"], rows["loss"], low.clip(lower=rows["loss"] / 10) if log else low,
                           rows["loss"] + error, CATEGORIES[int(str(i)) % len(CATEGORIES)]))  # fmt: skip
    figure = lines(curves, x_title="t along the direction (1: every row by its own length)",
                   y_title=f"loss ({unit}; band: ± s.e.)", height=380)  # fmt: skip
    return figure.update_yaxes(type="log", dtick=1) if log else figure


def over_plane(table: pd.DataFrame, unit: str, log: bool = False) -> Any:
    """Draw the loss over the plane of directions 0 and 1, `log` as above; the cross is the model."""
    grid = table[table["direction"] < 0].pivot(index="b", columns="a", values="loss")
    z = np.log10(grid.to_numpy().clip(1e-30)) if log else grid.to_numpy()
    return surface(grid.columns, grid.index, z, x_title="a along direction 0", y_title="b along direction 1",
                   value="log10 of the " * log + f"loss ({unit})", marked="the model")  # fmt: skip


def curvature_of_each(table: pd.DataFrame, unit: str) -> Any:
    """Draw d'Hd from exact products; grey: around shuffled weights. The hover has the second difference."""
    each = table[table["direction"] >= 0].groupby("direction").first()
    mean, error = each["curvature"].mean(), each["curvature"].std() / len(each) ** 0.5
    hover = [f"direction {i}: exact {r['curvature']:.4g}<br>second difference {r['second_difference']:.4g}<br>"
             f"around shuffled weights {r['curvature_null']:.4g}" for i, r in each.iterrows()]  # fmt: skip
    return bars([str(i) for i in each.index], each["curvature"], null=each["curvature_null"], hover=hover,
                x_title=f"direction (mean {mean:.3g} ± {error:.2g} over directions)",
                y_title=f"curvature d'Hd ({unit})", names_of=("this model", "shuffled weights"))  # fmt: skip
