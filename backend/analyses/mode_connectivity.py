"""Are two models one basin: does the loss rise on the way from these weights to those of another checkpoint or run?

Paths from this model w_0 to the other w_1: `straight` (1 - t) w_0 + t w_1; `matched`, the same to the other with its
units in the order that fits this model best (coordinates of the stream, heads, neurons: no order changes what a model
computes); `curved`, a quadratic Bezier curve to the matched other (the plain one where units are not known by name)
whose bend was trained on half of the rows. The barrier is max over t of L(path) - [(1 - t) L(0) + t L(1)], measured on
the other half of the rows; [barrier_low, barrier_high] its 95 % bootstrap interval over these rows.

The null: `copy`, to this very model with its units in random order, which has the barrier that order alone makes, and
`copy, matched`, whose barrier is 0 where the matching finds all units again. A model beside itself has barrier 0.
Inner bases of heads are not matched, so `matched` is an upper bound of what separates two models.
Exact but for rows and bend. Cost: a forward on the held-out rows per point, a gradient per step of the bend.
Source: Frankle et al. (2020), Linear mode connectivity and the lottery ticket hypothesis; Garipov et al. (2018), Loss
surfaces, mode connectivity; Ainsworth, Hayase and Srinivasa (2023), Git Re-Basin; Entezari et al. (2022).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from backend.analyses import _at_weights, _paths
from backend.analyses._work import Plan
from backend.contract import Corpus, Model, ModelCard, Progress, Rows, View, analysis
from backend.costs import Work


class ModeConnectivityParams(_paths.PathParams):
    """The other end, how finely the way is looked at, and on how many rows."""

    rows_used: int = Field(16, ge=1, le=4096, description="rows of the corpus, at most; half train the bend")


@analysis(
    version=1, group="Spectra",
    title="Mode connectivity", asks="Does the loss rise on the way from this model to another checkpoint or run?",
    subject=Corpus, params=ModeConnectivityParams, needs=["gradients"],
    axes=_paths.AXES, values=_paths.values_in("mean cross-entropy", "nats", "rows"),
)  # fmt: skip
def mode_connectivity(model: Model, subject: Rows, params: ModeConnectivityParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (path, t)."""
    named = _paths.named_other(params, model.card.spec)
    rows = _at_weights.used(subject, params.rows_used)
    training, held_out = (_at_weights.Losses(model, part) for part in _paths.halves(rows))
    units = model.exchangeable() if "named_weights" in model.card.capabilities else []
    return _paths.walked(training, held_out, model.sibling(*named), units, params, progress)


@mode_connectivity.costs
def work(card: ModelCard, subject: Corpus, params: ModeConnectivityParams) -> Work:
    """A forward per point of every path; a gradient per step of the bend. Raises BadInput where no other is named."""
    _paths.named_other(params, card.spec)
    plan, rows = Plan(card), min(params.rows_used, subject.rows)
    length, training = min(subject.length, card.n_ctx), max(1, rows // 2)
    paths = _paths.PATHS if "named_weights" in card.capabilities else _paths.UNMATCHED
    plan.call(min(training, _at_weights.graph_rows(plan, length)), length, params.bend_steps, gradients=True)
    _at_weights.plan_rows(plan, subject, rows - rows // 2, params.points * len(paths))
    matching = 20 * card.d_model * card.n_params if len(paths) == len(_paths.PATHS) else 0
    return plan.total(4 * card.n_params * 12, matching, _at_weights.FEWER)


# ---------------------------------------------------------------- figures


@mode_connectivity.figure("Loss along each path")
def along(table: pd.DataFrame, view: View) -> Any:
    """The loss from this model (t = 0) to the other end (t = 1), with the error over rows; grey: to a shuffled copy."""
    return _paths.along_each(table, view, "nats")


@mode_connectivity.figure("Barriers")
def barriers(table: pd.DataFrame, view: View) -> Any:
    """The barrier of each path with its interval over rows; grey: copies of this model with units in another order."""
    return _paths.barrier_of_each(table, view, "nats", "rows")
