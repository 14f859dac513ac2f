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

import pandas as pd
from pydantic import Field

from backend.analyses import _at_weights, _slices
from backend.analyses._work import Plan
from backend.contract import Corpus, Model, ModelCard, Progress, Rows, View, analysis
from backend.costs import Work


class LossSlicesParams(_slices.SlicesParams):
    """How far and how fine, and on how many rows."""

    rows_used: int = Field(16, ge=1, le=4096, description="rows of the corpus that the loss is the mean over, at most")


@analysis(
    version=1, group="Spectra",
    title="Loss slices", asks="What does the loss look like around the weights, along random directions?",
    subject=Corpus, params=LossSlicesParams, needs=["gradients"],
    axes=_slices.AXES, values=_slices.values_in("mean cross-entropy", "nats", "rows"),
)  # fmt: skip
def loss_slices(model: Model, subject: Rows, params: LossSlicesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per point of a slice."""
    return _slices.sliced(_at_weights.Losses(model, _at_weights.used(subject, params.rows_used)), params, progress)


@loss_slices.costs
def work(card: ModelCard, subject: Corpus, params: LossSlicesParams) -> Work:
    """A forward per point of every slice, around the weights and around shuffled ones; a product per direction."""
    plan, rows = Plan(card), params.rows_used
    _at_weights.plan_rows(plan, subject, rows, _slices.evaluations(params))
    products = sum(_at_weights.plan_curvatures(plan, subject, rows, params.directions) for _ in range(2))
    return plan.total(8 * card.n_params * (params.directions + 4), products, _at_weights.FEWER)


# ---------------------------------------------------------------- figures


@loss_slices.figure("Along each direction")
def along(table: pd.DataFrame, view: View) -> Any:
    """The loss along every direction, with the error over rows; grey: around shuffled weights, mean of directions."""
    return _slices.along_each(table, "nats")


@loss_slices.figure("The plane of the first two directions")
def plane(table: pd.DataFrame, view: View) -> Any:
    """The loss over the plane of directions 0 and 1; the cross is the model."""
    return _slices.over_plane(table, "nats")


@loss_slices.figure("Curvature along each direction")
def curvature(table: pd.DataFrame, view: View) -> Any:
    """d'Hd from exact products; grey: around shuffled weights. The hover has the second difference."""
    return _slices.curvature_of_each(table, "nats")
