"""What does an energy model's own loss look like around its parameters, along random directions?

L(w + t d) for `directions` filter-normalised random directions d, and L(w + a d_0 + b d_1) over the plane of the first
two (its rows have direction -1), of the denoising loss L that the model was trained on: the squared error of its
gradient field dE/dy against one fixed noise, mean over problems, levels (or one) and entries. A direction gives every
row of a matrix (a unit's incoming weights; of the map of the level too) the norm of the model's own row and leaves the
biases where they are. In the bias of fc4 the field is linear, so that L is a parabola along it at any reach; what bends
otherwise comes from the other layers.

Several directions are the error bar: one slice of many dimensions shows little, and convexity in it shows nothing of
other directions. `rise_se` is the standard error over problems of L - L(0), problem by problem. `curvature` is d'Hd,
exact, by a product with the Hessian of Energy Hessian; `second_difference` is [L(h) - 2 L(0) + L(-h)] / h^2 at h =
`step`. The null: the same slices around the model's weights with the entries of every matrix shuffled.
A contrastive term of the training is no part of L.
Exact. Cost: a gradient of the energy on every problem and level per point, a graph and a product per direction.
Source: Li et al. (2018), Visualizing the loss landscape of neural nets, section 4; Pearlmutter (1994); Du, Mao and
Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from backend.analyses import _slices
from backend.analyses._denoising import Denoised, graph_bytes, levels_of, plan_denoised, product_operations, taken
from backend.analyses._energy import FEWER
from backend.contract import Energies, Matrices, ModelCard, Problems, Progress, View, analysis
from backend.costs import Work

UNIT = "squared error"


class EnergySlicesParams(_slices.SlicesParams):
    """How far and how fine, at which levels and on how many problems."""

    level: int = Field(-1, ge=-1, le=999, description="annealing level of the loss, 0 the sharpest; -1: all of them")
    problems_used: int = Field(16, ge=1, le=4096, description="problems that the loss is the mean over, at most")


@analysis(
    version=1, group="Spectra", title="Energy loss slices",
    asks="What does an energy model's own loss look like around its parameters, along random directions?",
    subject=Problems, params=EnergySlicesParams,
    axes=_slices.AXES, values=_slices.values_in("mean squared error of the field", UNIT, "problems"),
)  # fmt: skip
def energy_slices(model: Energies, problems: Matrices, params: EnergySlicesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per point of a slice."""
    levels = levels_of(model.card, params.level)
    return _slices.sliced(Denoised(model, taken(problems, slice(params.problems_used)), levels), params, progress)


@energy_slices.costs
def work(card: ModelCard, subject: Problems, params: EnergySlicesParams) -> Work:
    """A gradient per point of every slice, around the weights and around shuffled ones; a product per direction."""
    n, levels = min(params.problems_used, subject.n), len(levels_of(card, params.level))
    calls = plan_denoised(card, n, levels, _slices.evaluations(params) + 2)
    held = 8.0 * card.n_params * (params.directions + 4) + graph_bytes(card) * max(c.rows for c in calls)
    operations = 2 * product_operations(card, n * levels, params.directions)
    return Work(tuple(calls), held, operations, knobs=f"{FEWER} (problems_used), points or directions")


# ---------------------------------------------------------------- figures


@energy_slices.figure("Along each direction")
def along(table: pd.DataFrame, view: View) -> Any:
    """The loss along every direction, with the error over problems; grey: around shuffled weights."""
    return _slices.along_each(table, UNIT, log=True)


@energy_slices.figure("The plane of the first two directions")
def plane(table: pd.DataFrame, view: View) -> Any:
    """The loss over the plane of directions 0 and 1; the cross is the model."""
    return _slices.over_plane(table, UNIT, log=True)


@energy_slices.figure("Curvature along each direction")
def curvature(table: pd.DataFrame, view: View) -> Any:
    """d'Hd from exact products; grey: around shuffled weights. The hover has the second difference."""
    return _slices.curvature_of_each(table, UNIT)
